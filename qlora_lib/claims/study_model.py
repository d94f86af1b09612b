"""The study on names, data and model: tables 1 and 2, sections 2.1, 3.1 and 3.2.

How it works: parameters are counted from TinyLlama's published widths (qlora_lib.cost.shapes), once with the widths that
the study prints and once with the model's own; the rest is held against the sources in study_sources.py.
"""

import re

from qlora_lib.claims import study_sources as known
from qlora_lib.claims.checks import agree, cell, figure, figures, tinyllama
from qlora_lib.claims.claim import ASSUMED, FAILS, HOLDS, Claims, Finding, decide, finding
from qlora_lib.claims.sources import PAPERS
from qlora_lib.cost.shapes import ModelShape
from qlora_lib.published import AUTHORS

CLAIMS = Claims("study")


# --- names ---


@CLAIMS.claim("study-names-01", "title page", "Amine IDRISSE", "name")
def author(quote: str) -> Finding:
    same = quote.casefold() == AUTHORS[0].casefold()
    return finding(
        decide(same),
        f"the README of the same study spells the name {AUTHORS[0]}",
        {HOLDS: "Both documents spell the name alike.",
         FAILS: f"The README of the same study has IDRISSI. This project writes {AUTHORS[0]}; which of the two is right, "
                "neither document says."},
        {"readme": AUTHORS[0], "report": quote},
    )  # fmt: skip


@CLAIMS.claim(
    "study-names-02", "2.1", "combines two key innovations: ... 4-bit Quantization ... Low-Rank Adaptation (LoRA)", "name"
)
def innovations(quote: str) -> Finding:
    own = [name for name in known.QLORA_INNOVATIONS if name.casefold() in quote.casefold()]
    missing = [name for name in known.QLORA_INNOVATIONS if name not in own]
    return finding(
        decide(not missing),
        f"the paper's abstract names {len(known.QLORA_INNOVATIONS)}: {', '.join(known.QLORA_INNOVATIONS)}",
        {FAILS: "QLoRA combines 4-bit weights with LoRA, but neither was new with it: LoRA is of Hu et al. (2022). The paper "
                f"names as its own {', '.join(known.QLORA_INNOVATIONS[:-1])} and {known.QLORA_INNOVATIONS[-1]}."},
        {"named in the paper": len(known.QLORA_INNOVATIONS), "of these quoted": len(own)},
    )  # fmt: skip


@CLAIMS.claim("study-names-03", "2.1", "QLoRA is an efficient fine-tuning technique proposed by Dettmers et al. (2023)", "name")
def paper(quote: str) -> Finding:
    title = "QLoRA: Efficient Finetuning of Quantized LLMs"
    true = PAPERS[title]
    return finding(
        decide(true.first_author in quote and agree(figure(quote), true.year)),
        f"{true.first_author} et al., {true.venue} {true.year}: {title}",
        {HOLDS: "So it is.", FAILS: f"It is of {true.first_author} et al. ({true.year})."}, {"year": true.year},
    )  # fmt: skip


# --- data ---


@CLAIMS.claim(
    "study-data-01", "3.1, table 1", "Training Samples 36,718 ... Validation Samples 3,760 ... Test Samples 4,358", "number"
)
def rows(quote: str) -> Finding:
    printed = dict(zip(re.findall(r"(\w+) Samples", quote), figures(quote), strict=True))
    are = {split: agree(value, known.WIKITEXT2_ROWS[split]) for split, value in printed.items()}
    filled = all(agree(value, known.WIKITEXT2_FILLED[split]) for split, value in printed.items())
    empty = 100 * (1 - known.WIKITEXT2_FILLED["Training"] / known.WIKITEXT2_ROWS["Training"])
    rows = ", ".join(f"{n:,}" for n in known.WIKITEXT2_ROWS.values())
    return finding(
        decide(filled, assuming=all(are.values())),
        f"{rows} rows, of which {', '.join(f'{n:,}' for n in known.WIKITEXT2_FILLED.values())} hold text",
        {ASSUMED: f"They are the rows of the published files. A row is a line, not a sample: {empty:.0f} % of the training rows "
                  "are empty, and a sequence of 512 tokens is made of several.",
         FAILS: f"The published files have {rows} rows."},
        {f"{split} rows": n for split, n in known.WIKITEXT2_ROWS.items()}
        | {f"{split} rows with text": n for split, n in known.WIKITEXT2_FILLED.items()},
    )  # fmt: skip


@CLAIMS.claim("study-data-02", "3.1, table 1: WikiText-2 Dataset Statistics", "Vocabulary Size 32,000", "meaning")
def vocabulary(quote: str) -> Finding:
    of_model = tinyllama().vocab_size
    printed = figure(quote)
    return finding(
        decide(agree(printed, known.WIKITEXT2_VOCABULARY), assuming=agree(printed, of_model)),
        f"WikiText-2 has {known.WIKITEXT2_VOCABULARY:,} different words; TinyLlama's tokenizer has {of_model:,} tokens",
        {ASSUMED: f"{of_model:,} is the vocabulary of TinyLlama's tokenizer, whatever the text. That of WikiText-2, which the "
                  f"table is about, is {known.WIKITEXT2_VOCABULARY:,} words."},
        {"tokenizer": of_model, "data set": known.WIKITEXT2_VOCABULARY},
    )  # fmt: skip


@CLAIMS.claim("study-data-03", "3.1", "WikiText-2: A large corpus of Wikipedia articles", "meaning")
def large(quote: str) -> Finding:
    name = next(n for n in known.WIKITEXT_TOKENS if f"{n}:" in quote)
    tokens, largest = known.WIKITEXT_TOKENS[name], max(known.WIKITEXT_TOKENS.values())
    return finding(
        decide(tokens == largest),
        f"{tokens:,} words for training; its larger sister has {largest:,}",
        {FAILS: f"It is the small one of two: {tokens / 1e6:.1f} million words against WikiText-103's {largest / 1e6:.0f} "
                f"million, and {known.TINYLLAMA_PRETRAINING / tokens / 1e6:.1f} million times fewer than TinyLlama was trained on."},
        {"words": tokens, "words of WikiText-103": largest, "tokens of TinyLlama's training": known.TINYLLAMA_PRETRAINING},
    )  # fmt: skip


# --- the model ---


@CLAIMS.claim("study-model-01", "3.2, table 2", "Total Parameters 1,100,048,384 (1.1B)", "number")
def total(quote: str) -> Finding:
    counts = tinyllama().parameters
    return finding(
        decide(agree(figure(quote), counts.total)),
        f"{counts.total:,} from TinyLlama's published widths",
        {HOLDS: f"Exactly the sum over TinyLlama's tensors: {counts.embedding:,} in the embedding and as many in the head, "
                f"{counts.attention:,} in attention, {counts.mlp:,} in the feed-forward layers, {counts.norms:,} in norms.",
         FAILS: f"TinyLlama has {counts.total:,}."},
        {"embedding": counts.embedding, "attention": counts.attention, "feed-forward": counts.mlp, "norms": counts.norms,
         "head": counts.head, "total": counts.total},
    )  # fmt: skip


@CLAIMS.claim(
    "study-model-02", "3.2, table 2",
    "Hidden Dimension 768 ... Number of Attention Heads 12 ... Intermediate Dimension 3,072", "number",
)  # fmt: skip
def widths(quote: str) -> Finding:
    printed = tuple(int(f.value) for f in figures(quote))
    real = tinyllama()
    true = (real.hidden_size, real.num_heads, real.intermediate_size)
    whose = known.KNOWN_WIDTHS.get(printed, "no model known here")
    return finding(
        decide(printed == true),
        f"TinyLlama: hidden {true[0]:,}, {true[1]} heads ({real.num_kv_heads} for keys and values), intermediate {true[2]:,}",
        {HOLDS: "As in TinyLlama's config.json.",
         FAILS: f"These are the widths of {whose}. TinyLlama's config.json has {true[0]:,}, {true[1]} and {true[2]:,}."},
        {"hidden": true[0], "heads": true[1], "key-value heads": real.num_kv_heads, "intermediate": true[2]},
    )  # fmt: skip


@CLAIMS.claim("study-model-03", "3.2, table 2", "Number of Layers 22", "number")
def layers(quote: str) -> Finding:
    true = tinyllama().num_layers
    return finding(
        decide(agree(figure(quote), true)), f"{true} layers in TinyLlama's config.json",
        {HOLDS: "The one width of the table that is TinyLlama's.", FAILS: f"TinyLlama has {true} layers."}, {"layers": true},
    )  # fmt: skip


@CLAIMS.claim(
    "study-model-04", "3.2, table 2",
    "Total Parameters 1,100,048,384 ... Hidden Dimension 768 ... Number of Layers 22 ... Number of Attention Heads 12 ... "
    "Intermediate Dimension 3,072", "consistency",
)  # fmt: skip
def widths_imply_total(quote: str) -> Finding:
    printed, hidden, layers, heads, intermediate = (int(f.value) for f in figures(quote))
    vocabulary = int(cell(1, "vocabulary size").value)

    def sum_with(kv_heads: int) -> int:
        return ModelShape(hidden, layers, heads, kv_heads, hidden // heads, intermediate, vocabulary).parameters.total

    plain = sum_with(heads)
    grouped = sum_with(tinyllama().num_kv_heads)
    return finding(
        decide(printed in (plain, grouped)),
        f"{plain:,} parameters at these widths ({grouped:,} with TinyLlama's {tinyllama().num_kv_heads} key-value heads)",
        {HOLDS: "The total follows from the widths.",
         FAILS: f"A LLaMA of these widths has {plain / 1e6:.0f} million parameters, {100 * plain / printed:.0f} % of the total "
                "above them: the table mixes two models, and only the total is TinyLlama's."},
        {"total at these widths": plain, "with grouped queries": grouped, "printed": printed, "vocabulary": vocabulary},
    )  # fmt: skip
