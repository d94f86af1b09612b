"""The published amounts of memory, with their sources and settings; `published_gpu` predicts each from the settings alone.

How it works: one row a figure. What is stated and what is assumed was read in the source itself: torchtune and LitGPT
publish the configuration and the code of the version that a figure is of, Dettmers et al. their paper and their scripts.
Which of GB and GiB is meant follows from the line of code that prints the figure. All of these programs but the QLoRA
authors' are not the stock stack that the memory model describes, so each row says what is known to differ. No row
was left out for its error. Left out are models whose layers are not counted here (Falcon, Gemma, Phi, StableLM), runs on
several GPUs, a table's second row with the same figure, batches of unknown length, and what a `Workload` has no word for
(activations moved to the host, the optimizer in the backward pass).
"""

from dataclasses import replace

from qlora_lib.cost.memory import adapter_tensors, quantized_bytes, resident, trained_tensors, trained_width
from qlora_lib.cost.models import MODELS
from qlora_lib.cost.shapes import ModelShape
from qlora_lib.cost.workload import Workload
from qlora_lib.published import AUTHORS, HARDWARE, TITLE, published
from qlora_lib.validation.published_gpu import Difference, Figure, Source

# Weights and all else in bf16, no autocast; a loop of torchtune's or Lightning's own.
BF16 = dict(dtype="bf16", weight_dtype="bf16", adapter_dtype="bf16", device="cuda", trainer=False)
QV = ("q_proj", "v_proj")


def _shape(model: str) -> ModelShape:
    return MODELS[model].shape


def _untied(shape: ModelShape) -> ModelShape:
    """As LitGPT has it, which ties no head to its embedding."""
    return replace(shape, tied_embeddings=False)


# --- what can be counted of the differences: bytes to add, from the settings --------------------------


def _head_quantized(work: Workload) -> int:
    """bitsandbytes' plug-in of Lightning quantizes every linear layer, the head too."""
    elements = work.shape.vocab_size * work.shape.hidden_size
    quantized = sum(quantized_bytes(elements, work.shape.vocab_size, work.quantization, work.double_quant))
    return quantized - elements * work.weight_width


def _head_read_back(work: Workload) -> int:
    """The head's weight, in fp16 as Lightning has quantized it, and in bf16."""
    return 2 * work.shape.vocab_size * work.shape.hidden_size * work.width


def _inputs_kept(work: Workload) -> int:
    """Inputs of 4-bit layers that nothing else keeps: of queries (which keys and values share), of gate (and up), of down."""
    one = 2 * work.shape.hidden_size + work.shape.intermediate_size
    return work.shape.num_layers * work.tokens * one * work.width


def _head_adapter(work: Workload) -> int:
    """Parameters, gradients and both averages of AdamW of an adapter on the head, in 16 bits."""
    return 4 * work.rank * (work.shape.hidden_size + work.shape.vocab_size) * work.adapter_width


def _logits_kept(work: Workload) -> int:
    """Logits of all rows in 16 bits: made in pieces, and all pieces kept until the loss is computed."""
    return work.tokens * work.shape.vocab_size * work.width


def _no_copies(work: Workload) -> int:
    """torch's AdamW on a GPU makes roots of all second moments at once, unless it is the fused one."""
    return -sum(trained_tensors(work)) * trained_width(work)


LITGPT_LOGITS = Difference("the logits of all pieces, 16-bit, have a name until the step is over", _logits_kept)
LITGPT_LOSS = Difference("and the log-probabilities of all pieces wait for the backward pass", _logits_kept, "the loss")
TORCHTUNE_FUSED = Difference("the fused AdamW makes no copies", _no_copies, "the update")
TORCHTUNE_LOSS = Difference("the logits of all pieces, 16-bit, wait for the loss", _logits_kept, "the loss")
LITGPT_HEAD = Difference("the head is quantized too", _head_quantized)
LITGPT_HEAD_READ = Difference("and read back for its product, in fp16 and in bf16", _head_read_back, "the loss")
LITGPT_INPUTS = Difference(
    "bitsandbytes before 0.43.2 also kept the input of each 4-bit product, which no gradient needs", _inputs_kept, "blocks wait"
)
LITGPT_ADAPTER = Difference("the adapter of the head, with gradients and states", _head_adapter)
LITGPT_WORDS = (
    "LitGPT's own model: one product makes queries, keys and values, its adapter's output is padded to their whole width, "
    "norms and rotations keep other tensors than transformers'",
)
LITGPT_4BIT = (
    "other weights, too, are read back in fp16 first; what else these versions of Lightning and bitsandbytes hold is "
    "not known to us",
)
TORCHTUNE_WORDS = ("torchtune's own model, compiled: what the compiler fuses or makes again is not in the memory model",)


# --- torchtune ----------------------------------------------------------------------------------------

TORCHTUNE = "torchtune maintainers and contributors"
README = Source(
    "torchtune README", TORCHTUNE, "torchtune, README", "Memory and training speed; recipes/configs/llama3_1", "2024-09-24"
)
FLAGS = Source("torchtune README", TORCHTUNE, "torchtune, README", "Optimization flags; recipes/configs/llama3_2", "2024-11-18")
TUTORIAL = Source(
    "torchtune tutorial", TORCHTUNE, "Fine-Tuning Llama2 with QLoRA", "table of peak memory; recipes/configs/llama2", "2024-04-15"
)
README_STATED = (
    "RTX 4090", "batch 2, no accumulation", "packed to 2048 tokens", "compiled", "bf16 weights, adapters and states", "fused AdamW",
    "rank 8, no dropout", "checkpointing of every block", "loss in 8 pieces",
)  # fmt: skip
README_OPEN = ("whether the peak is of allocated, active or reserved memory",)
FLAGS_STATED = ("A100", "batch 2", "packed to 4096 tokens", "bf16 weights and gradients")
FLAGS_OPEN = ("torch's AdamW, fused, with bf16 states: the recipe's own default is an 8-bit one, which a later row adds",)
GIB = dict(unit="GiB", unit_because="torchtune/training/memory.py divides by 1024 ** 3")
GB_TUNE = dict(unit="GB", unit_because="torchtune/utils/memory.py of that day divides by 1e9")
TUTORIAL_OPEN = (
    "every sequence as long as the longest that alpaca_cleaned_dataset gives, 512 tokens",
    "the GPU",
)
RESERVED = (
    "the figure is of reserved memory: with what the caching allocator holds of freed blocks, and never less than at its "
    "earlier peak, the model's initialization"
)


def _torchtune() -> list[Figure]:
    llama3, llama2, small = _shape("llama3.1-8b"), _shape("llama2-7b"), _shape("llama3.2-3b")
    once = dict(rank=8, dropout=0.0, checkpointing=True, **BF16)
    return [
        Figure(
            "torchtune.llama3.1-8b.lora", README, "LoRA on Llama-3.1-8B", 16.2, **GIB,
            work=Workload(llama3, "lora", 2, 2048, targets=QV, loss="chunked", **once),
            stated=(*README_STATED, "adapters on queries and values"), assumed=README_OPEN,
            because=TORCHTUNE_WORDS, differs=(TORCHTUNE_LOSS, TORCHTUNE_FUSED),
        ),
        Figure(
            "torchtune.llama3.1-8b.lora.a6000", README, "LoRA on Llama-3.1-8B, A6000", 30.3, **GIB,
            work=Workload(llama3, "lora", 2, 2048, targets=QV, loss="chunked", **once),
            stated=("A6000", *README_STATED[1:], "adapters on queries and values"),
            assumed=(*README_OPEN, "what differs from the run on the RTX 4090, for which the table has 16.2 GiB: we take nothing"),
            because=(*TORCHTUNE_WORDS, "one recipe has two figures here: without checkpointing it would need far more"),
            differs=(TORCHTUNE_LOSS, TORCHTUNE_FUSED),
        ),
        Figure(
            "torchtune.llama3.1-8b.qlora", README, "QLoRA on Llama-3.1-8B", 7.4, **GIB,
            work=Workload(llama3, "qlora", 2, 2048, loss="chunked", **once),
            stated=(*README_STATED, "adapters on all linear layers", "NF4 with double quantization"), assumed=README_OPEN,
            because=TORCHTUNE_WORDS, differs=(TORCHTUNE_LOSS, TORCHTUNE_FUSED),
        ),
        Figure(
            "torchtune.llama3.2-3b.full", FLAGS, "full, Llama-3.2-3B", 60.0, **GIB,
            work=Workload(small, "full", 2, 4096, **BF16),
            stated=(*FLAGS_STATED, "loss on all logits at once, no checkpointing, not compiled"), assumed=FLAGS_OPEN,
            because=("torchtune's own model: its norms and its loss keep other tensors than transformers'",),
        ),
        Figure(
            "torchtune.llama3.2-3b.full.compiled", FLAGS, "full, compiled, Llama-3.2-3B", 51.0, **GIB,
            work=Workload(small, "full", 2, 4096, **BF16),
            stated=(*FLAGS_STATED, "compiled", "loss on all logits at once, no checkpointing"), assumed=FLAGS_OPEN,
            because=TORCHTUNE_WORDS,
        ),
        Figure(
            "torchtune.llama3.2-3b.full.chunked", FLAGS, "full, loss in pieces, Llama-3.2-3B", 42.9, **GIB,
            work=Workload(small, "full", 2, 4096, loss="chunked", **BF16),
            stated=(*FLAGS_STATED, "compiled", "loss in 8 pieces", "no checkpointing"), assumed=FLAGS_OPEN,
            because=TORCHTUNE_WORDS, differs=(TORCHTUNE_LOSS, TORCHTUNE_FUSED),
        ),
        Figure(
            "torchtune.llama3.2-3b.full.checkpointing", FLAGS, "full, checkpointed, Llama-3.2-3B", 24.9, **GIB,
            work=Workload(small, "full", 2, 4096, checkpointing=True, loss="chunked", **BF16),
            stated=(*FLAGS_STATED, "compiled", "loss in 8 pieces", "checkpointing of every block"), assumed=FLAGS_OPEN,
            because=TORCHTUNE_WORDS, differs=(TORCHTUNE_LOSS, TORCHTUNE_FUSED),
        ),
        Figure(
            "torchtune-tutorial.llama2-7b.lora", TUTORIAL, "LoRA on Llama-2-7B", 15.57, **GB_TUNE,
            work=Workload(llama2, "lora", 2, 512, targets=QV, **once),
            stated=("batch 2", "bf16", "AdamW", "rank 8 on queries and values, no dropout", "checkpointing", "loss on all logits"),
            assumed=TUTORIAL_OPEN, because=(RESERVED,),
        ),
        Figure(
            "torchtune-tutorial.llama2-7b.qlora", TUTORIAL, "QLoRA on Llama-2-7B", 9.29, **GB_TUNE,
            work=Workload(llama2, "qlora", 2, 512, **once),
            stated=("batch 2", "bf16", "AdamW", "rank 8 on all linear layers, no dropout", "checkpointing", "loss on all logits",
                    "NF4 with double quantization", "9.13 GB of it reserved at the model's initialization, before any step"),
            assumed=TUTORIAL_OPEN, because=(RESERVED,),
        ),
    ]  # fmt: skip


# --- LitGPT -------------------------------------------------------------------------------------------

LIGHTNING = "Lightning AI"
LITGPT = Source(
    "LitGPT tutorial", LIGHTNING, "LitGPT, tutorials/finetune_lora.md and resource-tables.md",
    "table of Llama 2; finetune/lora.py", "2023-10-27",
)  # fmt: skip
HUB = Source(
    "LitGPT config hub", LIGHTNING, "LitGPT, config_hub/finetune/README.md", "table, and the configurations that it lists",
    "versions of 2024-04-24 to 2024-09-27",
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
)  # fmt: skip
HUB_STATED = (
    "A10G", "Alpaca2k cut to 512 tokens", "bf16-true", "AdamW", "no checkpointing on one GPU",
    "the head's product and the loss in pieces of 128 tokens",
)  # fmt: skip


def _litgpt() -> list[Figure]:
    rows = [  # model, quantization, double, sequences, GB
        ("llama2-7b", "none", False, 1, 21.30), ("llama2-7b", "nf4", False, 1, 14.14), ("llama2-7b", "nf4", True, 1, 13.84),
        ("llama2-7b", "none", False, 2, 29.07), ("llama2-13b", "none", False, 1, 38.12), ("llama2-13b", "nf4", False, 1, 23.14),
        ("llama2-13b", "nf4", True, 1, 22.55),
    ]  # fmt: skip
    figures = []
    for model, quantization, double, batch, value in rows:
        method = "lora" if quantization == "none" else "qlora"
        work = Workload(
            _shape(model), method, batch, 1304, rank=8, targets=QV, quantization=quantization, double_quant=double,
            optimizer="adamw" if method == "lora" else "paged_adamw", loss="chunked", **BF16,
        )  # fmt: skip
        named = method if method == "lora" else "nf4" + "-dq" * double
        figures.append(Figure(
            f"litgpt.{model}.{named}.{batch}x1304", LITGPT,
            f"{NAMED[named]} on {LONG[model]}{', batch 2' * (batch == 2)}", value, **PRINTED, work=work,
            stated=(*LITGPT_STATED, f"micro-batch of {batch}"),
            because=LITGPT_WORDS + LITGPT_4BIT * (method == "qlora"),
            differs=(LITGPT_LOGITS, LITGPT_LOSS, *([LITGPT_HEAD, LITGPT_HEAD_READ, LITGPT_INPUTS] if method == "qlora" else [])),
        ))  # fmt: skip
    return figures


def _litgpt_hub() -> list[Figure]:
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
            _untied(_shape(model)), method, batch, 512, accumulation=step // batch, double_quant=False, loss="chunked",
            **adapters, **BF16,
        )  # fmt: skip
        stated = (*HUB_STATED, f"micro-batches of {batch}, {step} a step")
        stated += ("the head is not tied to the embedding",) * _shape(model).tied_embeddings
        if method != "full":
            where = "all linear layers and the head" if all_linear else "queries and values"
            stated += (f"rank 32 on {where}, dropout 0.05",)
        stated += ("NF4 without double quantization",) * (method == "qlora")
        differs = [LITGPT_LOGITS, LITGPT_LOSS]
        differs += [LITGPT_HEAD, LITGPT_HEAD_READ, LITGPT_INPUTS] if method == "qlora" else []
        differs += [LITGPT_ADAPTER] if adapters and all_linear else []
        figures.append(Figure(
            f"litgpt-hub.{model}.{method}", HUB, f"{NAMED[method]} on {LONG[model]}", value, **PRINTED, work=work, stated=stated,
            because=LITGPT_WORDS + LITGPT_4BIT * (method == "qlora"), differs=tuple(differs),
        ))  # fmt: skip
    return figures


# --- QLoRA, and the study -----------------------------------------------------------------------------

DETTMERS = "Tim Dettmers, Artidoro Pagnoni, Ari Holtzman, Luke Zettlemoyer"
PAPER = Source(
    "QLoRA", DETTMERS, "QLoRA: Efficient Finetuning of Quantized LLMs",
    "introduction and section 5; scripts/finetune_guanaco_65b.sh", "2023-05-23",
)  # fmt: skip
QLORA_STATED = ("NF4 with double quantization", "rank 64 on all linear layers, dropout 0.05 or 0.1")
PAPER_UNIT = dict(unit="GB", unit_because="as printed; what was divided by is not said")


def _qlora() -> list[Figure]:
    adapters = dict(rank=64, adapter_dtype="bf16", dtype="bf16", weight_dtype="bf16", device="cuda")
    guanaco = [
        Figure(
            f"qlora.guanaco-{size}", PAPER, f"Guanaco {size.upper()}", value, **PAPER_UNIT, quantity="resident",
            work=Workload(_shape(f"llama-{size}"), "qlora", 1, 1, **adapters), stated=QLORA_STATED,
            assumed=("the figure is of the 4-bit model with its adapter, at rest", "16-bit embedding, head and adapters",
                     "no cache of keys and values and no other buffers, which a model in use has"),
        )
        for size, value in (("7b", 5), ("13b", 10), ("33b", 21), ("65b", 41))
    ]  # fmt: skip
    largest = _shape("llama-65b")
    return guanaco + [
        Figure(
            "qlora.full-65b", PAPER, "16-bit fine-tuning of 65B", 780, **PAPER_UNIT, quantity="weights, gradients, states",
            bound="more than", work=Workload(largest, "full", 1, 1, dtype="bf16", weight_dtype="bf16", device="cuda"),
            stated=("16-bit weights",), assumed=("16-bit gradients", "32-bit states of AdamW", "no activations"),
        ),
        Figure(
            "qlora.qlora-65b", PAPER, "QLoRA on 65B", 48, **PAPER_UNIT, bound="less than",
            work=Workload(
                largest, "qlora", 1, 16 + 512, rank=64, dropout=0.05, dtype="bf16", weight_dtype="bf16", adapter_dtype="bf16",
                optimizer="paged_adamw", checkpointing=True, device="cuda",
            ),
            stated=(*QLORA_STATED, "batch 1", "16 + 512 tokens", "bf16", "checkpointing", "paged AdamW, 32-bit"),
            assumed=("embedding and head in bf16, norms too (the script keeps those in fp32)",),
        ),
    ]  # fmt: skip


def _study() -> list[Figure]:
    study = Source("the study", " & ".join(AUTHORS), TITLE, "table 5", "2025")
    shape = _shape("tinyllama-1.1b")
    common = dict(dtype="fp16", weight_dtype="fp16", adapter_dtype="fp16", device="cuda")
    unit = dict(
        unit="MiB", printed="MB", quantity="resident",
        unit_because="two bytes a parameter are 2,098.18 MiB of 2 ** 20 bytes",
    )  # fmt: skip
    stated = (f"hardware: {HARDWARE}", "TinyLlama-1.1B", "fp16")
    size = lambda column: published(5, "total", column).number  # noqa: E731
    halves = lambda w: w.shape.parameters.total // 2 + 2 * sum(adapter_tensors(w.shape, w.rank)) - resident(w).total  # noqa: E731
    return [
        Figure(
            "study.standard", study, "TinyLlama-1.1B", size("standard"), **unit, stated=stated,
            work=Workload(shape, "lora", 1, 1, rank=1, targets=("q_proj",), **common),
            assumed=("the model alone, without an adapter: here with the smallest there is",),
        ),
        Figure(
            "study.qlora", study, "TinyLlama-1.1B in NF4 + DQ", size("qlora"), **unit,
            work=Workload(shape, "qlora", 1, 1, rank=int(published(4, "lora rank").number), **common),
            stated=(*stated, "NF4 with double quantization", "rank 16 on the 7 attention and feed-forward layers"),
            assumed=("counted are all tensors of the model",),
            differs=(Difference("as if every parameter took half a byte: embedding, head and norms too, and no scales", halves),),
        ),
    ]  # fmt: skip


FIGURES: tuple[Figure, ...] = (*_torchtune(), *_litgpt(), *_litgpt_hub(), *_qlora(), *_study())
