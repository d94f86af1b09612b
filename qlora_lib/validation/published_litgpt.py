"""Amounts of memory that LitGPT has published, with their settings; `litgpt` counts what its program holds differently.

How it works: a row a figure, as in `published_figures`. The settings are those of the tables, of the configurations that
they list and of the scripts of that day; versions of the other libraries are printed there or pinned. Of the code we
take the commit that brought a table (`litgpt.VERSIONS`). The tutorial's names an earlier one, 8641822, whose norms kept
inputs in 16 bits: a few per cent less. Lengths: the tutorial's script puts the longest example into the first step. The
config hub cuts at 512 tokens, which the longest of that data set reaches: the publisher's log of a run says so
(tutorials/0_to_litgpt.md, with Phi-2). How long the micro-batch before a long one was is nowhere said; we take it to be as
long, and a test holds the figures to the goal for both ends of what it can be.
"""

from dataclasses import replace

from qlora_lib.cost.models import MODELS
from qlora_lib.cost.shapes import ModelShape
from qlora_lib.cost.workload import Workload
from qlora_lib.validation import litgpt
from qlora_lib.validation.published_gpu import BF16, QV, Figure, Source


def _untied(model: str) -> ModelShape:
    """LitGPT ties no head to its embedding."""
    return replace(MODELS[model].shape, tied_embeddings=False)


LIGHTNING = "Lightning AI"
LITGPT = Source(
    "LitGPT tutorial", LIGHTNING, "LitGPT, tutorials/finetune_lora.md and resource-tables.md",
    "table of Llama 2; finetune/lora.py, lit_gpt/lora.py and model.py", "2023-10-27",
)  # fmt: skip
HUB = Source(
    "LitGPT config hub", LIGHTNING, "LitGPT, config_hub/finetune/README.md", "table, the configurations that it lists; "
    "litgpt/finetune, lora.py and model.py", "2024-04-24, of Llama 3.2 2024-09-27",
)  # fmt: skip
NAMED = {"full": "full", "lora": "LoRA", "qlora": "QLoRA", "nf4": "QLoRA", "nf4-dq": "QLoRA + DQ"}
LONG = {
    "tinyllama-1.1b": "TinyLlama-1.1B", "llama2-7b": "Llama-2-7B", "llama2-13b": "Llama-2-13B", "mistral-7b-v0.1": "Mistral-7B",
    "llama3-8b": "Llama-3-8B", "llama3.2-1b": "Llama-3.2-1B", "llama3.2-3b": "Llama-3.2-3B",
}  # fmt: skip
PRINTED = dict(unit="GB", unit_because="LitGPT divides torch's peak of allocated bytes by 1e9")
LITGPT_STATED = (
    "A100", "longest example of Alpaca forced into the first step, 1304 tokens of Llama 2", "bf16-true",
    "rank 8 on queries and values, dropout 0.05",
    "AdamW", "no checkpointing on one GPU", "the head's product and the loss in pieces of 128 tokens",
    "bitsandbytes 0.41.1",
)  # fmt: skip
HUB_STATED = (
    "A10G", "Alpaca2k cut to 512 tokens, which its longest reach", "bf16-true", "AdamW", "no checkpointing on one GPU",
    "bitsandbytes 0.42.0",
)  # fmt: skip
IN_PIECES = "the head's product and the loss in pieces of 128 tokens"
BEFORE = ("a long micro-batch is taken to follow another; behind a short one, less is left",)
TOO_LITTLE = (
    "the configuration names torch's AdamW, bf16-true and one GPU, and nothing in that commit's finetune/full.py takes states, "
    "gradients or weights off it; most costs beside Llama 3.2 are of a machine with four such GPUs, among which LitGPT would "
    "divide them",
)


def _tutorial() -> list[Figure]:
    rows = [  # model, quantization, double, sequences, GB
        ("llama2-7b", "none", False, 1, 21.30), ("llama2-7b", "nf4", False, 1, 14.14), ("llama2-7b", "nf4", True, 1, 13.84),
        ("llama2-7b", "none", False, 2, 29.07), ("llama2-13b", "none", False, 1, 38.12), ("llama2-13b", "nf4", False, 1, 23.14),
        ("llama2-13b", "nf4", True, 1, 22.55),
    ]  # fmt: skip
    figures = []
    for model, quantization, double, batch, value in rows:
        method = "lora" if quantization == "none" else "qlora"
        work = Workload(
            _untied(model), method, batch, 1304, rank=8, targets=QV, quantization=quantization, double_quant=double,
            optimizer="adamw" if method == "lora" else "paged_adamw", loss="chunked", **BF16,
        )  # fmt: skip
        named = method if method == "lora" else "nf4" + "-dq" * double
        figures.append(Figure(
            f"litgpt.{model}.{named}.{batch}x1304", LITGPT,
            f"{NAMED[named]} on {LONG[model]}{', batch 2' * (batch == 2)}", value, **PRINTED, work=work,
            stated=(*LITGPT_STATED, f"micro-batch of {batch}"),
            differs=litgpt.differences(work, steady=False), moments=litgpt.moments,
        ))  # fmt: skip
    return figures


def _hub() -> list[Figure]:
    rows = [  # model, method, sequences of a micro-batch, of a step, GB
        ("tinyllama-1.1b", "full", 4, 32, 14.10), ("tinyllama-1.1b", "lora", 8, 8, 13.50), ("tinyllama-1.1b", "qlora", 8, 8, 16.24),
        ("llama2-7b", "lora", 2, 8, 19.77), ("llama2-7b", "qlora", 2, 8, 13.68),
        ("mistral-7b-v0.1", "lora", 2, 8, 20.66), ("mistral-7b-v0.1", "qlora", 2, 8, 14.29),
        ("llama3-8b", "lora", 1, 8, 19.73), ("llama3-8b", "qlora", 2, 8, 17.41),
        ("llama3.2-1b", "full", 4, 64, 8.70), ("llama3.2-1b", "lora", 1, 8, 4.49), ("llama3.2-1b", "qlora", 2, 8, 5.53),
        ("llama3.2-3b", "full", 4, 64, 16.51), ("llama3.2-3b", "lora", 1, 8, 9.67), ("llama3.2-3b", "qlora", 2, 8, 10.30),
    ]  # fmt: skip
    figures = []
    for model, method, batch, step, value in rows:
        all_linear = model == "tinyllama-1.1b"  # its configurations adapt the head besides
        adapters = {} if method == "full" else dict(rank=32, dropout=0.05, targets="all-linear" if all_linear else QV)
        work = Workload(
            _untied(model), method, batch, 512, accumulation=step // batch, double_quant=False, loss="chunked",
            optimizer="paged_adamw" if method == "qlora" else "adamw", **adapters, **BF16,
        )  # fmt: skip
        stated = (*HUB_STATED, f"micro-batches of {batch}, {step} a step")
        stated += (IN_PIECES if method != "full" else "the loss in pieces of 128 tokens",)
        stated += ("the head is not tied to the embedding",) * MODELS[model].shape.tied_embeddings
        if method != "full":
            where = "all linear layers and the head" if all_linear else "queries and values"
            stated += (f"rank 32 on {where}, dropout 0.05",)
        stated += ("NF4 without double quantization",) * (method == "qlora")
        figures.append(Figure(
            f"litgpt-hub.{model}.{method}", HUB, f"{NAMED[method]} on {LONG[model]}", value, **PRINTED, work=work, stated=stated,
            because=TOO_LITTLE * (method == "full" and model != "tinyllama-1.1b") + BEFORE * (method == "qlora"),
            differs=litgpt.differences(work, head_adapted=method != "full" and all_linear), moments=litgpt.moments,
        ))  # fmt: skip
    return figures


FIGURES: tuple[Figure, ...] = (*_tutorial(), *_hub())
