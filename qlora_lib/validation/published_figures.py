"""The published amounts of memory, with their sources and settings; `published_gpu` predicts each from the settings alone.

How it works: one row a figure. What is stated and what is assumed was read in the source itself: torchtune and LitGPT
publish the configuration and the code of the version that a figure is of (LitGPT's rows: `published_litgpt`), PEFT beside each
result the versions it was made with, Dettmers et al. their paper and their scripts. Which of GB and GiB is meant follows
from the line of code that prints the figure. Most of these programs are not the stock stack that the memory model describes,
and PEFT's comparison has a loop of its own, so each row says what is known to differ. No row was left out for its
error. Left out are models whose layers are not counted here (Falcon, Gemma, Phi, StableLM), runs on several GPUs, a table's
second row with the same figure, batches of unknown length, and what a `Workload` has no word for (activations moved to the
host, the optimizer in the backward pass).
"""

from qlora_lib.cost.activations import saved_bytes
from qlora_lib.cost.memory import adapter_tensors, resident, trained_tensors, trained_width
from qlora_lib.cost.models import MODELS
from qlora_lib.cost.shapes import ModelShape
from qlora_lib.cost.workload import MLP, Workload
from qlora_lib.published import AUTHORS, HARDWARE, TITLE, published
from qlora_lib.validation import published_litgpt
from qlora_lib.validation.published_gpu import BF16, QV, Difference, Figure, Source


def _shape(model: str) -> ModelShape:
    return MODELS[model].shape


# --- what can be counted of torchtune's differences: bytes to add, from the settings -------------------


def _logits_kept(work: Workload) -> int:
    """Logits of all rows in 16 bits: made in pieces, and all pieces kept until the loss is computed."""
    return work.tokens * work.shape.vocab_size * work.width


def _no_copies(work: Workload) -> int:
    """torch's AdamW on a GPU makes roots of all second moments at once, unless it is the fused one."""
    return -sum(trained_tensors(work)) * trained_width(work)


TORCHTUNE_FUSED = Difference("the fused AdamW makes no copies", _no_copies, "the update")
TORCHTUNE_LOSS = Difference("the logits of all pieces, 16-bit, wait for the loss", _logits_kept, "the loss")
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


# --- PEFT's own comparison of methods -----------------------------------------------------------------

PEFT = Source(
    "PEFT comparison", "Hugging Face", "PEFT, method_comparison/MetaMathQA", "results with their settings; run.py and utils.py",
    "2026-07-20",
)  # fmt: skip
PEFT_STATED = (
    "L40S", "transformers 5.13.1, PEFT 0.19.2.dev0, PyTorch 2.13.0", "Llama-3.2-3B", "batch 4, no accumulation",
    "cut to 768 tokens", "bf16 weights, no autocast", "torch's AdamW", "no checkpointing", "the loss on all logits at once",
)  # fmt: skip
PEFT_OPEN = (
    "four sequences of 768 tokens: only those of at most 1300 characters are taken",
    "the figure is of reserved memory: we take that no more is reserved than what is allocated at the peak",
)


def _outputs_named(work: Workload) -> int:
    """`outputs` holds the logits, in 16 bits, until the next forward pass."""
    return work.tokens * work.shape.vocab_size * work.width


def without_autocast(work: Workload) -> int:
    """An adapter without dropout reads and keeps what PEFT has turned to fp32, and gives fp32; and there is no 16-bit copy of
    its matrices. All else is as wide as with autocast, where the base has 16 bits already."""
    widths = sum(work.shape.linear_modules[name][0] for name in work.adapted)
    per_token = (widths + len(work.adapted) * work.rank) * (work.adapter_width - work.width)
    return work.shape.num_layers * work.tokens * per_token - saved_bytes(work)["weight copies"]


def _peft() -> list[Figure]:
    """Of several runs with the same settings one."""
    rows = [  # method, rank, modules, and in words, bytes
        ("lora", 32, QV, "queries and values", 22_292_725_760), ("lora", 64, QV, "queries and values", 22_552_772_608),
        ("lora", 10, MLP, "the MLP", 24_698_159_104), ("full", 0, (), "", 38_868_615_168),
    ]  # fmt: skip
    logits = Difference("the logits, 16-bit, have a name until the step is over", _outputs_named)
    wide = Difference("no autocast: adapters read and keep fp32", without_autocast, "blocks wait")
    figures = []
    for method, rank, targets, where, value in rows:
        adapters = dict(rank=rank, targets=targets, dropout=0.0, adapter_dtype="fp32") if rank else {}
        work = Workload(_shape("llama3.2-3b"), method, 4, 768, **{**BF16, **adapters})
        name = f"lora-{rank}-{'mlp' if targets == MLP else 'qv'}" if rank else method
        what = f"LoRA, rank {rank} on {where}" if rank else method
        figures.append(Figure(
            f"peft.llama3.2-3b.{name}", PEFT, what, round(value / 1e9, 3), "GB", unit_because="the file gives bytes", work=work,
            stated=(*PEFT_STATED, *([f"rank {rank} on {where}, no dropout", "fp32 adapters"] if rank else [])), assumed=PEFT_OPEN,
            differs=(logits, wide) if rank else (logits,),
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


FIGURES: tuple[Figure, ...] = (*_torchtune(), *published_litgpt.FIGURES, *_peft(), *_qlora(), *_study())
