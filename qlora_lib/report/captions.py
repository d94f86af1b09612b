"""Captions of the pictures, which say what is shown and on which model, text and machine."""

from typing import Any

from qlora_lib.report.grid import HERE
from qlora_lib.report.segments import parse
from qlora_lib.report.speed import shown
from qlora_lib.report.speed_cases import ALLOCATOR, with_part
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
    return {name: parse(f"{text} {HERE}", store) for name, text in CAPTIONS.items()} | _of_benches(store)


def _of_benches(s: Store) -> dict[str, Any]:
    """Of the pictures of `qlora bench` that are shown."""
    of_causes, of_scaling = with_part(s, "causes"), with_part(s, "scaling")
    text = {
        f"bench-{a}": "Training, peak memory of a training step, and decoding at batch one: the stock stack and this library, "
        "measured in turns. Dashed: what fp32 products, or reading the weights once, would take alone. Whiskers: "
        f"quartiles. {_where(a)}"
        for a in s.benches
    }
    text["bench-scaling"] = (
        "How a training step grows with length and batch, and decoding with the context and with the sequences made at a time; "
        "both axes logarithmic. Beside each panel: the exponent of the power law fitted to time or bytes. This library makes one "
        "sequence with its compiled decoder and several with transformers’ generate, so these are not one line. "
        f"{_where(of_scaling)}"
    )  # fmt: skip
    text["bench-causes"] = (
        "One token of a 4-bit model with an adapter, taken apart into the causes that the study gives for QLoRA’s slow decoding. "
        "Where weights are dequantized inside a product, that part cannot be told from the rest. Dashed: a token of the "
        f"stock stack in fp32. {_where(of_causes)}"
    )
    return {name: parse(text[name], s) for name in shown(s)["pictures"]}


def _where(a: str | None) -> str:
    """What a caption says of where a record was made."""
    at = f"bench.{a}"
    return (
        f"Measured here: {{{at}.model.name}}, {{{at}.data.name}}, {{{at}.provenance.cpu}}, {{{at}.provenance.threads}} threads, "
        f"fp32, {ALLOCATOR.get(a, '')}."
    )
