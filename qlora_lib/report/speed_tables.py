"""The tables of `qlora bench`: one a setting of the allocator, and the study's two findings beside ours.

How it works: as in tables.py, rows name values by key; the rows follow the shapes that the record has.
"""

from qlora_lib.report.grid import Table
from qlora_lib.report.values import Store

METHODS = {"qlora": "QLoRA", "full": "Full"}
MODELS = {"nf4dq_adapter": "4-bit, adapter", "fp32": "Unquantized"}
PUBLISHED = {"training": "printed.training-speed", "decode": "printed.decode-speed"}
ALLOCATOR = {"default": "default allocator", "keep": "freed memory kept"}
SHORT = {"default": "default", "keep": "kept"}


def ours(allocator: str) -> str:
    """Key of the speed of 4-bit decoding over unquantized, both with this library."""
    return f"bench-decode-ours.{allocator}"


def tables(s: Store) -> list[Table]:
    return [*(_measured(s, a) for a in s.benches), _published(s)] if s.benches else []


def _measured(s: Store, a: str) -> Table:
    at = f"bench.{a}"
    rows: list[tuple[str, ...]] = []

    def speed(label: str, place: str, name: str, ratio: str, limited: bool = True) -> None:
        shares = [f"{at}.ratio_details.{place}.{who}_over_limit.value@percent0" for who in ("stock", "fast")]
        rows.append((
            label, *(f"{at}.measurements.{name}.{who}.tokens_per_second@rate" for who in ("stock", "fast")),
            f"{at}.ratio_details.{ratio}.value@times", f"{at}.ratio_details.{ratio}.quartiles@times_interval",
            *(shares if limited else ("", "")),
        ))  # fmt: skip

    shapes = [(shape, f"{{{at}.settings.shapes.{i}@shape}}") for i, shape in enumerate(s.benches[a].shapes)]
    trained = [(f"training.{shape}.{m}", f"{shape}.{m}", f"{METHODS[m]}, {text}") for m in METHODS for shape, text in shapes]
    rows.append(("Training, tokens per second",))
    for name, _, label in trained:
        speed(label, name, name, f"{name}.fast_over_stock")
    rows.append(("Peak of a step’s tensors, MiB",))
    for name, place, label in trained:
        rows.append((
            label, *(f"{at}.measurements.{name}.{who}.peak_tensor_bytes@mib" for who in ("stock", "fast")),
            f"{at}.ratio_details.memory.{place}.fast_over_stock.value@times", "", "", "",
        ))  # fmt: skip
    rows.append(("Decoding at batch one, tokens per second",))
    for model, label in MODELS.items():
        speed(label, f"decode.{model}", f"decode.{model}", f"decode.{model}.fast_over_stock")
    rows.append(("Perplexity evaluation, tokens per second",))
    for model, label in MODELS.items():
        ratio = "perplexity.fast_over_stock" if model == "nf4dq_adapter" else f"perplexity.{model}.fast_over_stock"
        speed(label, "", f"perplexity.{model}", ratio, limited=False)
    return Table(
        f"speed-{a}", f"This library against the stock stack, {ALLOCATOR[a]}. Measured here: {{{at}.model.name}}, "
        f"{{{at}.data.name}}, {{{at}.provenance.cpu}}, {{{at}.provenance.threads}} threads, fp32.",
        [("Measured here", title) for title in ("Stock", "This library", "Ratio", "Quartiles")]
        + [("Share of the limit", title) for title in ("Stock", "This library")],
        rows,
        "A ratio is this library’s figure over the stock stack’s: above one it is faster, or takes more memory. Shapes are "
        f"sequences by tokens. The limit is what fp32 products at {{{at}.limits.gemm_flops_per_second@gflops_unit}}, or reading "
        f"the weights once at {{{at}.limits.read_bytes_per_second@gbs_unit}}, would allow alone.",
        label="What is done", label_width=3.6, widths=(1, 1.15, 0.9, 1.7, 0.8, 1.15),
    )  # fmt: skip


def _published(s: Store) -> Table:
    """QLoRA's speed over that of full fine-tuning, and of 4-bit weights over unquantized ones."""
    stacks = [(a, who) for a in s.benches for who in ("stock", "fast")]
    first = next(iter(s.benches))
    rows = []
    for i, shape in enumerate(s.benches[first].shapes):
        cells = [f"bench.{a}.ratio_details.training.{shape}.{who}.qlora_over_full.value@times" for a, who in stacks]
        rows.append((f"Training, {{bench.{first}.settings.shapes.{i}@shape}}", PUBLISHED["training"] if i == 0 else "", *cells))
    stock = "bench.{}.ratio_details.decode.nf4dq_adapter.stock_over_stock_fp32.value@times"
    rows.append(("Generation", PUBLISHED["decode"], *(ours(a) if who == "fast" else stock.format(a) for a, who in stacks)))
    names = {"stock": "Stock", "fast": "This library"}
    return Table(
        "speed-published", "QLoRA’s speed over full fine-tuning’s. Published: TinyLlama-1.1B, WikiText-2, T4 GPU. Measured here: "
        f"{{bench.{first}.model.name}}, {{bench.{first}.data.name}}, {{bench.{first}.provenance.cpu}}.",
        [("Published", "The study")] + [("Measured here", f"{names[who]}, {SHORT[a]}") for a, who in stacks],
        rows,
        "Each stack against itself: below one QLoRA is the slower. Generation is of 4-bit weights with an adapter over "
        "unquantized weights, for this library at the medians. “Default” and “kept” say what the allocator does with freed memory. The study "
        "ran one shape of its own.",
        label="Ratio of speeds", label_width=3.2,
    )  # fmt: skip
