"""The study on LoRA: its formula, its matrices, and how many parameters they have; tables 4, 6 and 12, section 2.2.3.

How it works: adapters are counted on TinyLlama's own widths and on those that the study prints; the formula and the shapes
are held against PEFT's layer.
"""

import re

from qlora_lib.claims.checks import agree, cell, figure, figures, tinyllama
from qlora_lib.claims.claim import ASSUMED, FAILS, HOLDS, Claims, Finding, decide, finding
from qlora_lib.cost.shapes import ALL_LINEAR, ModelShape

CLAIMS = Claims("study")
ATTENTION = ALL_LINEAR[:4]


def printed_rank() -> int:
    return int(cell(4, "lora rank").value)


def adapter_parameters() -> int:
    """Of TinyLlama with the study's rank on all seven projections."""
    return tinyllama().lora_parameters(printed_rank())


@CLAIMS.claim("study-lora-01", "4.1.1, table 6", "QLoRA 12,615,680", "number")
def trainable(quote: str) -> Finding:
    right, rank = adapter_parameters(), printed_rank()
    return finding(
        decide(agree(figure(quote), right)),
        f"{right:,} for rank {rank} on all seven projections of TinyLlama",
        {HOLDS: f"Exact: {tinyllama().num_layers} layers times rank {rank} times the sum of the widths that the seven projections "
                "join.", FAILS: f"Rank {rank} on all seven projections has {right:,}."},
        {"rank": rank, "layers": tinyllama().num_layers, "sum of widths": right // rank // tinyllama().num_layers},
    )  # fmt: skip


@CLAIMS.claim("study-lora-02", "4.1.1, table 6, with table 2", "QLoRA 12,615,680", "consistency")
def trainable_at_printed_widths(quote: str) -> Finding:
    hidden, heads = int(cell(2, "hidden dimension").value), int(cell(2, "attention heads").value)
    shape = ModelShape(
        hidden, int(cell(2, "layers").value), heads, heads, hidden // heads, int(cell(2, "intermediate dimension").value), 1
    )
    implied = shape.lora_parameters(printed_rank())
    return finding(
        decide(agree(figure(quote), implied)),
        f"{implied:,} at the widths that table 2 prints",
        {FAILS: f"At table 2's widths rank {printed_rank()} would have {implied:,} parameters. The printed count needs TinyLlama's "
                "own widths, so the run used those and table 2 is an error of the text."},
        {"at the printed widths": implied, "at TinyLlama's": adapter_parameters()},
    )  # fmt: skip


@CLAIMS.claim("study-lora-03", "4.1.1, table 6", "QLoRA 12,615,680 1.15%", "percentage")
def trainable_share(quote: str) -> Finding:
    count, percent = figures(quote)
    base = tinyllama().parameters.total
    of_base, of_all = 100 * count / base, 100 * count / (base + count)
    return finding(
        decide(agree(percent, of_all), assuming=agree(percent, of_base)),
        f"{of_base.value:.2f} % of the base's parameters, {of_all.value:.2f} % of all parameters of the model that is trained",
        {ASSUMED: f"It is the share of the base model. The model that is trained also has the adapters; of that, which is what "
                  f"PEFT prints, it is {of_all.value:.2f} %.",
         FAILS: f"It is {of_base.value:.2f} % of the base and {of_all.value:.2f} % of the model with its adapters."},
        {"of the base": of_base.value, "of base and adapters": of_all.value, "base": base},
    )  # fmt: skip


@CLAIMS.claim("study-lora-04", "4.1.1", "a 98.85% reduction in trainable parameters", "percentage")
def trainable_reduction(quote: str) -> Finding:
    percent = figure(quote)
    right = 100 * (1 - cell(6, "trainable parameters", "qlora") / cell(6, "trainable parameters", "standard"))
    return finding(
        decide(agree(percent, right)), f"{right.value:.3f} %",
        {HOLDS: "12,615,680 against 1,100,048,384.", FAILS: f"It is {right.value:.2f} %."}, {"reduction": right.value},
    )  # fmt: skip


@CLAIMS.claim("study-lora-05", "4.5, table 12", "Total Parameters 1,100,048,384 1,100,048,384", "meaning")
def total_with_adapters(quote: str) -> Finding:
    standard, qlora = figures(quote)
    base = tinyllama().parameters.total
    right = base + adapter_parameters()
    return finding(
        decide(agree(standard, base) and agree(qlora, right)),
        f"{right:,} for QLoRA: base and adapters",
        {HOLDS: "Base and adapters.",
         FAILS: f"QLoRA adds its adapters to the base and has {right:,}; the second cell repeats the first."},
        {"base": base, "adapters": adapter_parameters(), "QLoRA": right},
    )  # fmt: skip


@CLAIMS.claim("study-lora-06", "3.3.1, table 4", "Target Modules 7 attention/FFN layers", "number")
def targets(quote: str) -> Finding:
    kinds, modules = len(ALL_LINEAR), len(ALL_LINEAR) * tinyllama().num_layers
    printed = figure(quote)
    return finding(
        decide(agree(printed, modules), assuming=agree(printed, kinds)),
        f"{kinds} kinds of projection in each of {tinyllama().num_layers} layers: {modules} modules",
        {ASSUMED: f"Seven kinds of module. Adapters sit on {modules} of them, which the count of trainable parameters confirms."},
        {"kinds": kinds, "modules": modules},
    )  # fmt: skip


@CLAIMS.claim(
    "study-lora-07", "2.2.3",
    "LoRA is typically applied to attention projections: ... (q_proj) ... (k_proj) ... (v_proj) ... (o_proj) ... Feedforward layers "
    "(gate_proj, up_proj, down_proj)", "name",
)  # fmt: skip
def attention_projections(quote: str) -> Finding:
    named = [name for name in ALL_LINEAR if name in quote]
    other = [name for name in named if name not in ATTENTION]
    share = 100 * (1 - tinyllama().lora_parameters(printed_rank(), ATTENTION) / adapter_parameters())
    return finding(
        decide(not other),
        f"{len(named) - len(other)} of the {len(named)} are attention projections",
        {HOLDS: "All of them are attention projections.",
         FAILS: f"{', '.join(other)} belong to the feed-forward block, and hold {share:.0f} % of the adapters' parameters here. The "
                "LoRA paper adapted attention alone; adapting all linear layers is QLoRA's advice."},
        {"attention": len(named) - len(other), "feed-forward": len(other), "percent of the adapters' parameters": share},
    )  # fmt: skip


@CLAIMS.claim("study-lora-08", "2.2.3", r"h = W_0x + \Delta Wx = W_0x + \left(\frac{\alpha}{r}BA\right)x", "formula")
def lora_formula(quote: str) -> Finding:
    from qlora_lib.claims.experiments import adapter

    layer = adapter()
    scaled = r"\frac{\alpha}{r}BA" in quote
    return finding(
        decide(scaled and layer.error < 1e-5),
        f"PEFT's layer and the formula differ by {layer.error:.1e} of the largest output",
        {HOLDS: "PEFT's layer computes this, to rounding.", FAILS: "PEFT's layer computes W0 x + (alpha / r) B A x."},
        {"relative difference": layer.error},
    )  # fmt: skip


@CLAIMS.claim("study-lora-09", "2.2.3", r"$\Delta W = BA$: Low-rank update composed of rank- r matrices", "consistency")
def update(quote: str) -> Finding:
    scale = cell(4, "lora alpha").value / cell(4, "lora rank").value
    scaled = bool(re.search(r"\\alpha.*BA", quote))
    return finding(
        decide(scaled or scale == 1),
        f"the formula above it has (alpha / r) B A, which is {scale:g} times B A with alpha {cell(4, 'lora alpha').value:g} "
        f"and rank {printed_rank()}",
        {HOLDS: "As in the formula.",
         FAILS: f"The formula two lines before makes the update (alpha / r) B A; without the factor it is {scale:g} times too small."},
        {"alpha / r": scale},
    )  # fmt: skip


@CLAIMS.claim("study-lora-10", "2.2.3", r"$A, B \in \mathbb{R}^{r \times d}$ with $r \ll d$", "formula")
def shapes(quote: str) -> Finding:
    from qlora_lib.claims.experiments import adapter

    layer = adapter()
    rank = layer.a[0]
    alike = bool(re.search(r"A, B \\in", quote))  # one shape for both
    multiplies = layer.b[1] == layer.a[0]  # B A needs columns of B = rows of A
    h, kv = tinyllama().hidden_size, tinyllama().kv_width
    return finding(
        decide(not alike and multiplies),
        f"in PEFT a layer from {layer.a[1]} to {layer.b[0]} features has A {layer.a[0]} x {layer.a[1]} and B {layer.b[0]} x {rank}",
        {HOLDS: "A is r x d_in and B is d_out x r.",
         FAILS: "Two matrices of r x d cannot be multiplied to B A unless r = d. A is r x d_in and B is d_out x r, and the two widths "
                f"differ: {h:,} and {kv} in TinyLlama's k_proj."},
        {"rows of A": layer.a[0], "columns of A": layer.a[1], "rows of B": layer.b[0], "columns of B": layer.b[1]},
    )  # fmt: skip
