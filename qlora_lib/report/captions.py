"""Captions of the pictures, which say what is shown and on which model, text and machine."""

from typing import Any

from qlora_lib.report.grid import HERE
from qlora_lib.report.segments import parse
from qlora_lib.report.values import Store

CAPTIONS = {
    "figure-1-comparison": "Size, time, trainable parameters, perplexity, utilization and speed of "
    "each method. Whiskers on perplexity are paired {confidence} intervals of the difference from the "
    "reference arm.",
    "figure-2-radar": "Profile of the methods. Each axis is a ratio to the best method on it: the rim is "
    "the best, the centre nothing, and the scale between them linear. The area means nothing, since it "
    "depends on the order of the axes.",
    "loss-curves": "Training loss (light: each step; heavy: moving average) and validation loss against "
    "the tokens trained on.",
    "memory-breakdown": "Memory at the fullest moment of a training step, by component. Components are "
    "counted from the tensors; activations and temporaries are what remains of the measured peak.",
    "quality-against-bytes": "Perplexity against the bytes deployed. The dotted line joins what nothing "
    "else beats in both.",
    "quantization-alone": "Perplexity of the untrained base in each format, on the same windows. Whiskers "
    "are paired {confidence} intervals of the difference from the unquantized base.",
}


def all_captions(store: Store) -> dict[str, Any]:
    return {name: parse(f"{text} {HERE}", store) for name, text in CAPTIONS.items()}
