"""The documents that are audited, by key."""

from qlora_lib.claims.claim import Document
from qlora_lib.published import AUTHORS, DEMO, GUIDE, QWEN, TITLE

README_TITLE = "QLoRA Fine-Tuning of LLaMA Models: A Performance Analysis"

DOCUMENTS: dict[str, Document] = {
    d.key: d
    for d in (
        Document("study", AUTHORS, TITLE, "a report of twelve tables: full fine-tuning and QLoRA of TinyLlama-1.1B on WikiText-2"),
        Document("readme", AUTHORS, README_TITLE, "the README of the same study"),
        Document("demo", (), DEMO, "the README of a training of TinyLlama-1.1B on Dolly-15K on one RTX 3070"),
        Document("guide", (), GUIDE, "a guide to QLoRA with code for Llama-3.1-8B"),
        Document("qwen", (), QWEN, "the README of a project on Qwen2.5, three tasks and three ranks"),
        Document("across", (), "Between the documents", "claims of one document against another"),
    )
}
