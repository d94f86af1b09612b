"""Tables 1-12 of the study that this project repeats, and a few facts of the literature beside them.

How it works: each table holds rows of cells as the document prints them; a cell's number is read
from that print, so there is one copy of each figure. Nothing here was measured by this project, and
nothing is corrected: the report prints these cells in columns of their own, and says in prose where
they cannot be right. `REFERENCES` holds figures from other documents, each with its bibliography
key in report/bibliography.bib.
"""

import re
from dataclasses import dataclass

TITLE = "QLoRA Fine-Tuning of LLaMA Models: A Comprehensive Performance Analysis"
AUTHORS = ("Amine Idrissi", "Zakaria Choukri")
# Three more documents, whose systems the report has a chapter on each.
DEMO = "QLoRA Fine-Tuning Demo (TinyLlama 1.1B)"
GUIDE = "Quantized Low-Rank Adaptation (QLoRA) for Efficient LLM Fine-Tuning"
QWEN = "QLoRA Fine-Tuning of Qwen Models"
STUDY = "idrissi-choukri"  # what a profile's `published` key calls it
HARDWARE = "T4 in Colab"  # stated for table 7 only; the document names no other hardware
MODEL = "TinyLlama-1.1B-Chat-v1.0"
DATA = "WikiText-2"

_SUPERSCRIPT = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")


@dataclass(frozen=True)
class Cell:
    """One printed figure. `table` is the number in the document, 0 for `REFERENCES`."""

    table: int
    row: str
    column: str
    text: str
    document: str = TITLE

    @property
    def number(self) -> float | None:
        """The printed number in its printed unit (73.9% is 73.9); None where words are printed."""
        text = self.text.replace(",", "").replace("\u2212", "-")
        if m := re.fullmatch(r"(\d+) × 10([⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+)", text):
            return int(m[1]) * 10.0 ** int(m[2].translate(_SUPERSCRIPT))
        m = re.match(r"[-+]?\d+(\.\d+)?(?=$|[%x× (]| fewer| smaller| less)", text)
        return float(m[0]) if m else None


@dataclass(frozen=True)
class Table:
    number: int
    title: str
    columns: tuple[str, ...]  # short keys, in the order of a row's cells
    rows: dict[str, tuple[str, ...]]  # row key -> cells as printed

    def cell(self, row: str, column: str) -> Cell:
        return Cell(self.number, row, column, self.rows[row][self.columns.index(column)])


BOTH = ("standard", "qlora")

TABLES = {
    t.number: t
    for t in (
        Table(1, "WikiText-2 Dataset Statistics", ("value",), {
            "training samples": ("36,718",),
            "validation samples": ("3,760",),
            "test samples": ("4,358",),
            "max sequence length": ("512",),  # tokens
            "vocabulary size": ("32,000",),
        }),
        Table(2, "Model Architecture Parameters", ("value",), {
            "total parameters": ("1,100,048,384",),
            "hidden dimension": ("768",),
            "layers": ("22",),
            "attention heads": ("12",),
            "intermediate dimension": ("3,072",),
        }),
        Table(3, "Hyperparameters for Standard and QLoRA Fine-Tuning", BOTH, {
            "epochs": ("1", "1"),
            "training batch size": ("2", "4"),
            "evaluation batch size": ("2", "4"),
            "gradient accumulation steps": ("4", "2"),
            "maximum steps": ("500", "500"),
            "learning rate": ("2 × 10⁻⁵", "2 × 10⁻⁴"),
            "optimizer": ("AdamW", "paged_adamw_8bit"),
            "precision": ("FP16", "FP16"),
            "warmup steps": ("100", "100"),
        }),
        Table(4, "QLoRA Configuration Details", ("value",), {
            "quantization type": ("4-bit NormalFloat4",),
            "double quantization": ("Enabled",),
            "compute dtype": ("FP16",),
            "lora rank": ("16",),
            "lora alpha": ("32",),
            "lora dropout": ("0.05",),
            "target modules": ("7 attention/FFN layers",),
        }),
        Table(5, "Model Size Comparison", BOTH, {  # MB as printed: the numbers are MiB
            "base": ("2,098.18", "524.54"),
            "adapters": ("—", "24.06"),
            "total": ("2,098.18", "548.61"),
        }),
        Table(6, "Parameter Efficiency", BOTH, {
            "trainable parameters": ("1,100,048,384", "12,615,680"),
            "percentage": ("100%", "1.15%"),
        }),
        Table(7, "FLOPS per Training Step (using T4 in Colab)", BOTH, {
            "flops per step": ("13.52", "3.53"),  # TFLOP
        }),
        Table(8, "Mean FLOPS Utilization", BOTH, {
            "mfu": ("13.18%", "2.51%"),
            "achieved flops": ("4.69", "0.89"),  # TFLOP/s
        }),
        Table(9, "Training Performance", BOTH, {
            "total training time": ("1,441.24", "1,979.42"),  # seconds
            "time per step": ("2.88", "3.96"),
            "relative performance": ("Baseline", "−37.3%"),
        }),
        Table(10, "Perplexity Evaluation on Test Set", BOTH, {
            "perplexity": ("18.42", "21.87"),
            "change": ("Baseline", "+18.73%"),
        }),
        Table(11, "Inference Speed (50 tokens generated)", BOTH, {
            "inference time": ("1.51", "4.71"),  # seconds
            "tokens per second": ("33.12", "10.62"),
        }),
        Table(12, "Complete Performance Metrics Comparison", (*BOTH, "improvement"), {
            "total parameters": ("1,100,048,384", "1,100,048,384", "—"),
            "trainable parameters": ("1,100,048,384", "12,615,680", "98.85% fewer"),
            "model size": ("2,098.18", "548.61", "73.9% smaller"),
            "compression ratio": ("1.00x", "3.82x", "3.82x savings"),
            "flops per step": ("13.52", "3.53", "73.9% less"),
            "mfu": ("13.18%", "2.51%", "−10.67%"),
            "training time": ("1,441.24", "1,979.42", "−37.3%"),
            "inference time": ("1.51", "4.71", "−212.0%"),
            "tokens per second": ("33.12", "10.62", "−67.9%"),
            "perplexity": ("18.42", "21.87", "−18.73%"),
        }),
    )
}


def published(table: int, row: str, column: str = "value") -> Cell:
    """The printed cell of a table of the study; KeyError or ValueError for one that is not there."""
    return TABLES[table].cell(row, column)


def _references(document: str, rows: dict[str, str]) -> dict[str, Cell]:
    return {key: Cell(0, key, "value", text, document) for key, text in rows.items()}


# Keys begin with the bibliography key of the document that states the figure.
REFERENCES: dict[str, Cell] = {
    **_references("TinyLlama/TinyLlama-1.1B-Chat-v1.0, config.json", {
        "tinyllama.total": "1,100,048,384",
        "tinyllama.hidden": "2,048",
        "tinyllama.layers": "22",
        "tinyllama.heads": "32",
        "tinyllama.kv_heads": "4",
        "tinyllama.intermediate": "5,632",
        "tinyllama.vocabulary": "32,000",
    }),
    **_references("NVIDIA T4 Tensor Core GPU datasheet", {
        "t4.fp16": "65",  # TFLOP/s, tensor cores
        "t4.fp32": "8.1",  # TFLOP/s
        "t4.memory": "16",  # GB, GDDR6
    }),
    **_references("QLoRA: Efficient Finetuning of Quantized LLMs", {
        "dettmers2023qlora.int4": "34.34",  # table 2: mean perplexity, models of 125M to 13B
        "dettmers2023qlora.fp4": "31.07",  # E2M1
        "dettmers2023qlora.nf4dq": "27.41",
        "dettmers2023qlora.block": "64",  # weights to a block
        "dettmers2023qlora.second_block": "256",  # absmax to a block
    }),
    **_references(GUIDE, {
        "guide.rank": "16",
        "guide.alpha": "16",
        "guide.dropout": "0.05",
        "guide.quality": "98%",  # of full fine-tuning
        "guide.degradation": "0.2–0.5%",
        "guide.double_quantization": "0.4–3%",  # of memory
    }),
    **_references(DEMO, {"demo.memory": "8"}),  # GB
    **_references(QWEN, {"qwen.ranks": "4, 8, 16"}),
}
