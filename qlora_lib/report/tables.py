"""The report's tables: 1-12 as in the study, then quantization alone and quantizing after training.

How it works: each function names rows by value key (grid.py); what the study published and what was
measured here stand in columns of their own.
"""

from typing import Any

from qlora_lib.report import verdicts
from qlora_lib.report.phrases import training_peak
from qlora_lib.report.grid import HERE, METHODS, NAMES, PUBLISHED, Table, against_full, beside, row
from qlora_lib.report.segments import parse
from qlora_lib.report.values import Store


def all_tables(store: Store) -> dict[str, Any]:
    tables = [_glance(store), *_setup(), *_results(), _complete(), *_quality(store)]
    return {t.name: t.as_json(store) for t in tables}


def _glance(store: Store) -> Table:
    """What the run measured, for the title page."""
    peak = training_peak(store)[1]
    return Table("glance", "", [("Measured here", NAMES[m]) for m in METHODS], [
        _of_methods("Model, adapter included (MiB)", "size_bytes.total"),
        _of_methods("Trainable parameters", "parameters.trainable"),
        _of_methods(f"{'Tensors’ peak in' if 'tensor' in peak else 'Peak memory of'} training (MiB)", peak),
        _of_methods("Time per training step (s)", "train.seconds_per_step"),
        _of_methods("Perplexity before training", "perplexity.before"),
        _of_methods("Perplexity after training", "perplexity.after"),
        _of_methods("Generation (tokens per second)", "generation.tokens_per_second"),
    ], label_width=5.4)  # fmt: skip


def _of_methods(label: str, path: str) -> tuple[str, ...]:
    return (label, *(f"{m}.{path}" for m in METHODS))


def _setup() -> list[Table]:
    data = [
        ("Training samples", "training samples", "splits.train.documents"),
        ("Validation samples", "validation samples", "splits.validation.documents"),
        ("Test samples", "test samples", "splits.test.documents"),
        ("Training tokens", "", "train_tokens"),
        ("Test tokens", "", "eval_tokens"),
        ("Sequence length in training (tokens)", "max sequence length", "window_length"),
        ("Vocabulary", "vocabulary size", "vocabulary_size"),
    ]
    architecture = [
        ("Parameters", "total parameters", "total", "any.model.parameters_total"),
        ("Hidden size", "hidden dimension", "hidden", "hidden-size"),
        ("Layers", "layers", "layers", "layers"),
        ("Attention heads", "attention heads", "heads", "heads"),
        ("Key and value heads", "", "kv_heads", "kv-heads"),
        ("Intermediate size", "intermediate dimension", "intermediate", "intermediate-size"),
        ("Vocabulary", "", "vocabulary", "vocabulary"),
    ]
    quantization = [
        ("Quantization type", "quantization type", "settings.quantization.format"),
        ("Double quantization", "double quantization", "settings.quantization.double_quant"),
        ("Compute dtype", "compute dtype", "provenance.dtype"),
        ("LoRA rank", "lora rank", "settings.lora.rank"),
        ("LoRA alpha", "lora alpha", "settings.lora.alpha"),
        ("LoRA dropout", "lora dropout", "settings.lora.dropout"),
        ("Target modules", "target modules", "settings.lora.target_modules"),
    ]
    return [
        Table(
            "data", "The data set. Published: WikiText-2. Measured here: {any.data.name}.",
            [("Published", "WikiText-2"), ("Measured here", "{any.data.name}")],
            [(label, f"published.1.{p}" if p else "", f"any.data.{path}") for label, p, path in data],
            "A published sample is a row of the raw file, headings and blank lines included; a sample "
            "here is a document. Nothing is trained on a document of another split.",
            label_width=6.5,
        ),
        Table(
            "architecture", "Architecture of the model. Published: TinyLlama-1.1B-Chat-v1.0, as the "
            "study prints it and as the model's own configuration has it. Measured here: "
            "{any.model.name}.",
            [("Published", "The study"), ("Published", "Configuration"), ("Measured here", "{any.model.name}")],
            [
                (label, f"published.2.{p}" if p else "", f"reference.tinyllama.{r}", path)
                for label, p, r, path in architecture
            ],
            label="Parameter", label_width=5.0,
        ),
        beside("hyperparameters", "Training settings.", [
            row("Epochs", "3.epochs", "settings.train.epochs"),
            row("Training batch size", "3.training batch size", "settings.train.batch_size"),
            row("Evaluation batch size", "3.evaluation batch size", "settings.train.eval_batch_size"),
            row("Gradient accumulation steps", "3.gradient accumulation steps",
                "settings.train.gradient_accumulation_steps"),
            row("Maximum steps", "3.maximum steps", "settings.train.max_steps"),
            ("Tokens per step", "printed.step-tokens", "printed.step-tokens.qlora",
             *(f"{m}.train.tokens_per_step" for m in METHODS)),
            row("Learning rate", "3.learning rate", "settings.train.learning_rate", "scientific"),
            row("Optimizer asked for", "3.optimizer", "train.optimizer.requested"),
            row("Optimizer that ran", None, "train.optimizer.ran"),
            row("Precision", "3.precision", "provenance.dtype"),
            row("Warm-up steps", "3.warmup steps", "settings.train.warmup_steps"),
            row("Gradient checkpointing", None, "settings.train.gradient_checkpointing"),
        ], "Epochs read “none” where the steps alone end the training."),
        Table(
            "qlora-settings", f"Settings of QLoRA. {PUBLISHED} {HERE}",
            [("Published", "The study"), ("Measured here", "QLoRA")],
            [(label, f"published.4.{p}", f"qlora.{path}") for label, p, path in quantization],
            label="Parameter",
        ),
    ]  # fmt: skip


def _results() -> list[Table]:
    return [
        beside("size", "Bytes of the model, in MiB.", [
            row("Base weights", "5.base", "size_bytes.base"),
            row("  of which quantized codes", None, "size_bytes.quantized_weights"),
            row("  of which quantization state", None, "size_bytes.quantization_state"),
            row("  of which not quantized", None, "size_bytes.unquantized"),
            row("LoRA adapter", "5.adapters", "size_bytes.adapter"),
            row("Total, resident", "5.total", "size_bytes.total"),
            row("On disk", None, "size_bytes.on_disk"),
        ], "The study prints MB; its figures are MiB, and products of a parameter count and a width, "
           "not measurements. Ours are counted from the tensors in memory."),
        beside("parameters", "Trainable parameters.", [
            row("Trainable parameters", "6.trainable parameters", "parameters.trainable"),
            ("Share of the base", "published.6.percentage.standard", "published.6.percentage.qlora",
             *(f"{m}.trainable-share" for m in METHODS)),
        ]),
        beside("flops", "Floating-point operations of one training step, in TFLOP.", [
            row("FLOPs per step", "7.flops per step", "flops_per_step"),
            row("With recomputation", None, "hardware_flops_per_step"),
            against_full("Change against full", None, "flops-change"),
        ], "FLOPs are counted from the architecture by the protocol of {@sec-flops}, as in any study; "
           "time and rates are measured."),
        beside("mfu", "Model FLOPs utilization.", [
            row("MFU", "8.mfu", "mfu"),
            row("HFU (recomputation counted)", None, "hfu"),
            ("Achieved (TFLOP/s)", *(f"published.8.achieved flops.{c}" for c in ("standard", "qlora")),
             *(f"{m}.achieved" for m in METHODS)),
            row("The peak it divides by", None, "peak.flops_per_second"),
        ], "The peak here: {any-peak}."),
        beside("training", "Time and memory of training.", [
            row("Training time (s)", "9.total training time", "train.seconds"),
            row("Time per step (s)", "9.time per step", "train.seconds_per_step"),
            against_full("Time per step against full", None, "step-time-change"),
            against_full("Relative performance", "9.relative performance", "throughput-change"),
            row("Tokens per second", None, "train.tokens_per_second"),
            row("Peak memory of the process (MiB)", None, "train.peak_memory_bytes"),
            row("Peak of the tensors (MiB)", None, "train.peak_tensor_bytes"),
            row("Optimizer state (MiB)", None, "train.optimizer.state_bytes"),
        ], "Time per step is the median, the first step left out. Relative performance here is the change of "
           "tokens per second. Peak memory is the {any-meter}."),
        beside("perplexity", "Perplexity on the test split.", [
            row("Before training", None, "perplexity.before"),
            row("After training", "10.perplexity", "perplexity.after"),
            against_full("Change against full", "10.change", "perplexity-change"),
            ("{confidence} interval of the change", "", "", "", "perplexity-interval.lora.full",
             "perplexity-interval.qlora.full"),
        ], "Protocol here: {any-protocol}. Of QLoRA, “before” is the quantized base. The interval is "
           "a paired one over {any-windows} evaluation windows."),
        beside("inference", "Greedy generation of {any-new-tokens} tokens.", [
            row("Latency (s)", "11.inference time", "generation.latency_seconds"),
            row("Tokens per second", "11.tokens per second", "generation.tokens_per_second"),
            row("First token (s)", None, "generation.first_token_seconds"),
            row("Made by", None, "generation.engine"),
            against_full("Speed against full", None, "decode-change"),
        ], "Protocol here: {any-generation}. Made by: transformers’ generate, or this library’s decoder (fast)."),
    ]  # fmt: skip


def _complete() -> Table:
    """Table 12: QLoRA against full fine-tuning; the last column of each side is the change."""
    rows = [("Memory and parameters",)]
    columns = [("Published", c) for c in ("Standard", "QLoRA", "Change")]
    columns += [("Measured here", c) for c in ("Full", "QLoRA", "Change")]

    def line(label, printed, path, name):
        cells = [f"published.12.{printed}.{c}" for c in ("standard", "qlora", "improvement")]
        here = [f"full.{path}", f"qlora.{path}", f"{name}.qlora.full" if name else ""]
        rows.append((label, *cells, *here))

    line("Parameters", "total parameters", "parameters.total", "")
    line("Trainable parameters", "trainable parameters", "parameters.trainable", "trainable-change")
    line("Model size (MiB)", "model size", "size_bytes.total", "size-change")
    cells = [f"published.12.compression ratio.{c}" for c in ("standard", "qlora", "improvement")]
    rows.append(("Compression ratio", *cells, "", "size-gain.qlora.full", ""))
    rows.append(("Computation",))
    line("FLOPs per step (TFLOP)", "flops per step", "flops_per_step", "flops-change")
    line("MFU", "mfu", "mfu", "mfu-change")
    line("Training time (s)", "training time", "train.seconds", "total-time-change")
    rows.append(("Inference and quality",))
    line("Inference time (s)", "inference time", "generation.latency_seconds", "latency-change")
    line("Tokens per second", "tokens per second", "generation.tokens_per_second", "decode-change")
    line("Perplexity", "perplexity", "perplexity.after", "perplexity-change")
    return Table(
        "complete", f"Every metric of the study. {PUBLISHED} {HERE}", columns, rows,
        "Changes here are QLoRA’s figure against full fine-tuning’s, so a plus sign means more of what "
        "the row names; training time is that of all steps, the first and the metered one included. The study’s signs "
        "follow no one rule and are printed as they stand.",
        label_width=3.5,
    )  # fmt: skip


def _quality(store: Store) -> list[Table]:
    alone = [
        ("Unquantized", "base", ""),
        ("8-bit", "base-int8", ""),
        ("NF4", "base-nf4", ""),
        ("NF4, double quantization", "base-nf4dq", "reference.dettmers2023qlora.nf4dq"),
        ("FP4", "base-fp4", "reference.dettmers2023qlora.fp4"),
    ]
    after = [
        ("Base, untrained", "base"),
        ("Base in NF4, untrained", "base-nf4dq"),
        ("Full fine-tuning", "full"),
        ("LoRA", "lora"),
        ("QLoRA", "qlora"),
        ("Full, then NF4", "full-nf4dq"),
        ("LoRA merged, then NF4", "lora-nf4dq"),
    ]
    return [
        Table(
            "quantization", "What quantization alone costs, before any training. Published: mean over "
            "models of other sizes and other text (Dettmers and others). " + HERE,
            [("Published", "Perplexity"), ("Measured here", "Resident (MiB)"),
             ("Measured here", "Perplexity"), ("Measured here", "Change"), ("Measured here", "{confidence} interval")],
            [
                (label, printed, f"{arm}.size_bytes.total", f"{arm}.perplexity.before",
                 *((f"perplexity-change.{arm}.base", f"perplexity-interval.{arm}.base")
                   if arm != "base" else ("=baseline", "")))
                for label, arm, printed in alone
            ],
            "Change and interval are against the unquantized base, paired by window.",
            label="Format", label_width=4.0, widths=(1, 1, 1, 1, 1.35),
        ),
        Table(
            "deployed", f"Train on a 4-bit base, or train first and quantize after. {HERE}",
            [("Measured here", t) for t in
             ("Resident (MiB)", "On disk (MiB)", "Perplexity", "QLoRA against it", "{confidence} interval")],
            [
                (label, f"{arm}.size_bytes.total", f"{arm}.size_bytes.on_disk", store.deployed(arm),
                 *((f"perplexity-change.qlora.{arm}", f"perplexity-interval.qlora.{arm}")
                   if arm != "qlora" else ("", "")))
                for label, arm in after
            ],
            "A minus sign says that QLoRA’s perplexity is the lower one. Intervals are paired by window. On disk: a saved "
            "checkpoint; for an adapter, its file and the base’s own.",
            label="What is deployed", label_width=4.0, widths=(1, 1, 1, 1.05, 1.35),
        ),
    ]  # fmt: skip



def choice_rows(store: Store) -> list[list[Any]]:
    """The rows of the choice table: what matters most, what to use, and what the records say."""
    return [
        [parse(aim, store), *(parse(cell.removeprefix("="), store) for cell in (use, why))]
        for aim, use, why in verdicts.choices(store)
    ]
