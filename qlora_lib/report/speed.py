"""This library against the stock stack: the sentences that `qlora bench`'s records make, and what is shown of them.

How it works: each slot has a function that writes its paragraphs, mostly by `outcome` of speed_cases.py, which chooses the
sentence for the way that the measured cases go. What was not run leaves its sentence out or says so; without any
record one sentence says that.
"""

from typing import Any

from qlora_lib.report import reading
from qlora_lib.report.formats import NOT_MEASURED
from qlora_lib.report.phrases import join
from qlora_lib.report.sentences import Paragraph
from qlora_lib.report.speed_cases import ALLOCATOR, STACK, against_stock, cases, outcome, with_part
from qlora_lib.report.speed_tables import PUBLISHED, ours, tables
from qlora_lib.report.values import Store

NOTHING = f"How this library does against the stock stack was {NOT_MEASURED}: qlora bench was not run for this model."
STOCK, UNFUSED, FAST = "nf4dq_adapter.stock", "nf4dq_adapter.stock_unfused", "nf4dq_adapter.fast"
CAUSES = ("dequantization", "adapter products", "memory traffic", "everything else")
GROWTHS = (  # series, quantity, words
    ("training.length", "seconds", "the time of a step grows with its length"),
    ("training.batch", "seconds", "with the number of sequences in it"),
    ("training.length", "peak_tensor_bytes", "its tensors’ peak with its length"),
    ("decode.context", "seconds", "the time of a token with the tokens before it"),
)
LINES = {"qlora": "QLoRA", "full": "full fine-tuning", "fp32": "unquantized weights", "nf4dq_adapter": "4-bit with adapter"}
VERSIONS = {name: f"provenance.versions.{name.lower()}" for name in ("torch", "transformers", "PEFT", "bitsandbytes")}


def define(s: Store) -> None:
    """Derived values: what the study prints, as ratios of speeds, and a token's time as the sum of its parts."""
    seconds, rates = "published.9.total training time", "published.11.tokens per second"
    s.derive(PUBLISHED["training"], "ratio", [f"{seconds}.standard", f"{seconds}.qlora"], "times")
    s.derive(PUBLISHED["decode"], "ratio", [f"{rates}.qlora", f"{rates}.standard"], "times")
    s.derive("printed.decode-slowdown", "ratio", [f"{rates}.standard", f"{rates}.qlora"], "times")
    s.derive("printed.training-change", "change", [f"{seconds}.qlora", f"{seconds}.standard"], "percent_signed")
    for a in s.benches:
        at = f"bench.{a}.measurements.decode"
        rates = [f"{at}.{model}.fast.tokens_per_second" for model in ("nf4dq_adapter", "fp32")]
        s.derive(ours(a), "ratio", rates, "times")
        errors = [f"bench.{a}.numerics.gradient_error.{who}" for who in ("fast", "stock")]
        s.derive(f"bench-gradient-error.{a}", "ratio", errors, "decimal2")
        s.derive(f"bench-losses.{a}", "largest", [f"bench.{a}.numerics.loss_relative_differences"], "power")
        s.derive(f"bench-losses.{a}.steps", "count", [f"bench.{a}.numerics.loss_relative_differences"], "count")
        for arm in dict.fromkeys(c.arm for c in s.benches[a].causes):
            known = [key for c in CAUSES if s.has(key := f"bench.{a}.causes.{arm}.{c}.seconds_per_token")]
            if known:
                s.derive(f"bench-token.{a}.{arm}", "total", known, "ms_unit")


def all_sentences(s: Store) -> dict[str, list[Paragraph]]:
    slots = {
        "speed": method,
        "speed-found": found,
        "speed-published": published,
        "speed-why": why,
        "speed-growth": growth,
        "speed-numerics": numerics,
    }
    if not s.benches:
        return {name: [] for name in slots} | {"speed": [("", NOTHING)]}
    return {name: [("", text) for text in write(s)] for name, write in slots.items()}


def all_tables(s: Store) -> dict[str, Any]:
    return {t.name: t.as_json(s) for t in tables(s)}


def shown(s: Store) -> dict[str, Any]:
    """Names of the tables and pictures that these records allow, in the order in which they stand."""
    pictures = [f"bench-{a}" for a in s.benches if s.benches[a].measurements]
    pictures += ["bench-scaling"] * bool(with_part(s, "scaling")) + ["bench-causes"] * bool(with_part(s, "causes"))
    return {"tables": [t.name for t in tables(s)], "pictures": pictures}


def method(s: Store) -> list[str]:
    text = [
        "The stock stack is transformers with PEFT and bitsandbytes, driven as write-ups drive it. qlora bench runs it and this "
        "library in turns, in one process: equal weights, text, batches, seed, dropout and threads, no gradient "
        "checkpointing, and fp32 throughout. A ratio is the median over the pairs of repeats, since a machine that slows "
        "down slows both; beside it stand its quartiles.",
        "glibc’s allocator gives large pieces of freed memory back to the system, and can be told to keep them; runs differ in that.",
    ]
    alike: dict[str, list[tuple[str, str]]] = {}
    for a in s.benches:
        at = f"bench.{a}"
        load = " (load of the machine before: {%s.provenance.load_average_before@decimal2})" % at
        same = ("provenance.cpu", "provenance.threads", "data.name", *VERSIONS.values(), "settings.repeats")
        alike.setdefault(str([s.number(f"{at}.{field}") for field in same]), []).append((a, ALLOCATOR[a] + load))
    for group in alike.values():
        at, runs = f"bench.{group[0][0]}", [words for _, words in group]
        versions = ", ".join(f"{name} {{{at}.{field}}}" for name, field in VERSIONS.items())
        text.append(
            f"Measured on {{{at}.model.name}} and {{{at}.data.name}}, {{{at}.provenance.cpu}}, {{{at}.provenance.threads}} "
            f"threads, {versions}, {{{at}.settings.repeats}} repeats: {' and '.join(runs)}."
        )
    return join(*text)


def found(s: Store) -> list[str]:
    ratio = "{shape}.fast.qlora_over_full"
    return join(
        _drawn(s),
        against_stock(s, "training.{shape}.qlora.fast_over_stock", "In QLoRA’s training"),
        against_stock(s, "training.{shape}.full.fast_over_stock", "In full fine-tuning"),
        _memory(s),
    ) + join(
        against_stock(s, "decode.nf4dq_adapter.fast_over_stock", "In decoding from 4-bit weights with an adapter"),
        outcome(
            s, "decode.nf4dq_adapter.fast_over_stock_fp32",
            "It decodes from them faster than the stock stack does from unquantized weights: {how}.",
            "It decodes from them slower than the stock stack does from unquantized weights: {how}.",
            "Against the stock stack’s unquantized weights no difference is shown: {how}.",
            "Against the stock stack’s unquantized weights it depends on the case: {how}.",
        ),
        _llama_cpp(s),
        against_stock(s, "perplexity.fast_over_stock", "In scoring perplexity"),
    ) + join(
        outcome(
            s, f"training.{ratio}",
            "With this library QLoRA trains faster than full fine-tuning: {how}. The frozen base needs no gradients of its "
            "weights, and here that shows.",
            "With this library too QLoRA trains slower than full fine-tuning: {how}.",
            "With this library no difference between QLoRA’s training and full fine-tuning is shown: {how}.",
            "With this library it depends on the case whether QLoRA or full fine-tuning trains faster: {how}.",
        ),
        _limits(s),
    )  # fmt: skip


def _drawn(s: Store) -> str | None:
    drawn = [f"{{@figure-bench-{a}}}" for a in s.benches if s.benches[a].measurements]
    return f"{' and '.join(drawn)} {'draw' if len(drawn) > 1 else 'draws'} it." if drawn else None


def _memory(s: Store) -> str | None:
    """Counted, so without a spread."""
    return outcome(
        s, "memory.{shape}.qlora.fast_over_stock",
        "A QLoRA step’s tensors take more memory at their peak than the stock stack’s: {how}.",
        "A QLoRA step’s tensors take less memory at their peak than the stock stack’s: {how}.",
        "A QLoRA step’s tensors take as much memory at their peak as the stock stack’s: {how}.",
        "Whether a QLoRA step’s tensors take less memory at their peak than the stock stack’s depends on the case: {how}.",
    )  # fmt: skip


def _llama_cpp(s: Store) -> str | None:
    return outcome(
        s, "decode.nf4dq_adapter.fast_over_llama_cpp",
        "llama.cpp, from its own file of the model and without an adapter, is slower: this library has {how} its speed.",
        "llama.cpp, from its own file of the model and without an adapter, is faster: this library has {how} its speed.",
        "From llama.cpp, with its own file of the model and without an adapter, no difference is shown: {how}.",
        "Against llama.cpp, with its own file of the model and without an adapter, it depends on the case: {how}.",
    ) or "llama.cpp was " + NOT_MEASURED + " beside them."  # fmt: skip


def _limits(s: Store) -> str | None:
    a = next(iter(s.benches))
    share = f"bench.{a}.ratio_details.training.{s.benches[a].shapes[0]}.qlora"
    if not s.has(f"{share}.fast_over_limit.value", f"{share}.stock_over_limit.value"):
        return None
    return (
        f"If fp32 products took all the time, at the {{bench.{a}.limits.gemm_flops_per_second@gflops_unit}} that this machine "
        f"reaches, a QLoRA step at {{bench.{a}.settings.shapes.0@shape}} would take "
        f"{{bench.{a}.limits.training.{s.benches[a].shapes[0]}.qlora.seconds_per_step@seconds_unit}}: the stock stack trains at "
        f"{{{share}.stock_over_limit.value@percent0}} of that speed, this library at {{{share}.fast_over_limit.value@percent0}}. "
        f"Memory reads {{bench.{a}.limits.read_bytes_per_second@gbs_unit}}, which bounds decoding in the same way."
    )


def published(s: Store) -> list[str]:
    """The study's two findings on speed, whether its kind of stack repeats them here, and what this library makes of them."""
    stock, fast = "training.{shape}.stock.qlora_over_full", "training.{shape}.fast.qlora_over_full"
    training = _repeated(
        s, stock,
        f"The study publishes that QLoRA trains slower than full fine-tuning: {{printed.training-change}} in time, "
        f"{{{PUBLISHED['training']}}} the speed.",
    )
    decode = _repeated(
        s, "decode.nf4dq_adapter.stock_over_stock_fp32",
        "It publishes that QLoRA generates slower: full fine-tuning’s model makes {printed.decode-slowdown} the tokens a second.",
    )
    ways = {way for way, *_ in cases(s, fast)} | {way for a in s.benches if (way := reading.bench_decode(s, a))}
    moral = None
    if ways == {"higher"}:
        moral = "Neither finding follows from four bits: with the same weights and less overhead both turn round."
    elif ways and "lower" not in ways:
        moral = "Neither finding holds for every implementation: with this one, QLoRA is not shown to be slower in any case."
    return join(
        training, decode, moral,
        "{@table-speed-published} has the ratios. Model, text and machine of the study are others, so its figures stand "
        "beside these and are not to be subtracted from them.",
    )  # fmt: skip


def _repeated(s: Store, ratio: str, finding: str) -> str | None:
    """The study finds the ratio below one; what the stock stack does here."""
    here = outcome(
        s, ratio,
        "The stock stack does not repeat it here; QLoRA is the faster: {how}.",
        "The stock stack repeats it here: {how}.",
        "With the stock stack no difference is shown here: {how}.",
        "With the stock stack it depends on the case here: {how}.",
    )  # fmt: skip
    return f"{finding} {here or f'With the stock stack that was {NOT_MEASURED} here.'}"


def why(s: Store) -> list[str]:
    """Only what was measured: the parts of a token, and what the allocator changes."""
    a, text = with_part(s, "causes"), []
    if a is None:
        text.append(f"What a token’s time is made of was {NOT_MEASURED}.")
    else:
        text.append(
            "The study gives three causes for slow generation: dequantization, the adapter’s products, memory traffic. "
            "{@figure-bench-causes} takes a token apart."
        )
        if f"bench-token.{a}.{UNFUSED}" in s.values:
            text.append("On this processor bitsandbytes multiplies by 4-bit weights without dequantizing them first.")
        text += [_token(s, a, UNFUSED, "the stock stack with bitsandbytes’ fused 4-bit product switched off"),
                 _token(s, a, STOCK, "the stock stack"), _token(s, a, FAST, "this library")]  # fmt: skip
    return join(*text) + join(_allocators(s), "A training step was not taken apart in this way.")


def _token(s: Store, a: str, arm: str, who: str) -> str | None:
    whole = f"bench-token.{a}.{arm}"
    if whole not in s.values or not s.has(whole):
        return None
    at = {c: f"bench.{a}.causes.{arm}.{c}.seconds_per_token" for c in CAUSES}
    known = ", ".join(f"{{{key}@ms_unit}} {c}" for c, key in at.items() if s.has(key))
    rest = [c for c, key in at.items() if not s.has(key)]
    inside = f"; {' and '.join(rest)} happens inside the products and is not told apart" if rest else ""
    return f"A token of {who} takes {{{whole}}}: {known}{inside}."


def _allocators(s: Store) -> str | None:
    if len(s.benches) < 2:
        return None
    shape = s.benches["default"].shapes[0]
    at = {who: [f"bench.{a}.measurements.training.{shape}.qlora.{who}.tokens_per_second@rate" for a in s.benches]
          for who in STACK}  # fmt: skip
    if not s.has(*at["stock"], *at["fast"]):
        return None
    rates = ", ".join(f"{STACK[who]} from {{{keys[0]}}} to {{{keys[1]}}}" for who, keys in at.items())
    return (
        "What the allocator does: where it keeps freed memory in place of giving it back, QLoRA’s training at "
        f"{{bench.default.settings.shapes.0@shape}} goes, in tokens per second, {rates}. These are two runs, so the machine’s "
        "own changes are in the difference."
    )


def growth(s: Store) -> list[str]:
    a = with_part(s, "scaling")
    if a is None:
        return join(f"How time and memory grow with length, batch and context was {NOT_MEASURED}.")
    parts = []
    for series, quantity, words in GROWTHS:
        arms = [f.arm for f in s.benches[a].fits if (f.series, f.quantity) == (series, quantity) and f.exponent is not None]
        listed = ", ".join(f"{{bench.{a}.fits.{series}.{arm}.{quantity}.exponent@decimal2}} ({_line(arm)})" for arm in arms)
        if listed:
            parts.append(f"{words} as a power of {listed}")
    return join(
        "{@figure-bench-scaling} shows how both grow.",
        f"Fitted to what was measured, {'; '.join(parts)}. One is in proportion; an exponent holds for the lengths drawn and "
        "no further." if parts else None,
        _in_batches(s, a),
    )  # fmt: skip


def _in_batches(s: Store, a: str) -> str | None:
    """Several sequences at a time, where the compiled decoder does not apply."""
    points = {(p.arm, p.x): p for p in s.benches[a].scaling if p.series == "decode.batch" and p.x > 1}
    ours, stock = ({x: p for (arm, x), p in points.items() if arm == f"nf4dq_adapter.{who}"} for who in ("fast", "stock"))
    both = [x for x in ours if x in stock and ours[x].tokens_per_second and stock[x].tokens_per_second]
    slower = [x for x in both if ours[x].tokens_per_second < stock[x].tokens_per_second]
    if not both:
        return None
    series = f"bench.{a}.scaling.decode.batch.nf4dq_adapter"
    if len(slower) == len(both):
        listed = ", ".join(
            f"{{{series}.fast.{x}.tokens_per_second@decimal1}} tokens a second against "
            f"{{{series}.stock.{x}.tokens_per_second@decimal1}} for {{{series}.fast.{x}.x}} sequences" for x in both
        )
        return f"Several sequences at a time this library decodes from 4-bit weights more slowly than the stock stack: {listed}."
    which = "in some batches and slower in others" if slower else "in all of them"
    return f"Of several sequences at a time this library decodes faster than the stock stack {which}."


def _line(arm: str) -> str:
    what, _, who = arm.rpartition(".")
    return f"{LINES.get(what, what)}, {STACK.get(who, who)}"


def numerics(s: Store) -> list[str]:
    text = []
    a = next((a for a in s.benches if s.has(f"bench.{a}.numerics.loss_relative_difference")), None)
    if a:
        at = f"bench.{a}.numerics"
        text.append(
            f"At identical weights and no dropout the loss of a step differs by {{{at}.loss_relative_difference@power}} of "
            f"itself between the two, and all adapters’ gradients together by {{{at}.gradient_relative_difference@power}}."
        )
        if s.has(f"bench-gradient-error.{a}"):
            text.append(
                f"Against fp64 the stock stack’s gradients are off by {{{at}.gradient_error.stock@power}} and this library’s by "
                f"{{{at}.gradient_error.fast@power}}, {{bench-gradient-error.{a}}} times as much."
            )
        if s.has(f"bench-losses.{a}"):
            text.append(f"The losses of {{bench-losses.{a}.steps}} steps differ by at most {{bench-losses.{a}}} of themselves.")
        if s.has(f"{at}.greedy.tokens"):
            text.append(
                f"Of {{{at}.greedy.tokens@count}} greedy tokens in {{{at}.greedy.texts}} texts {{{at}.greedy.equal@count}} are the "
                "stock forward’s own first choice after the same tokens."
            )
        apart = f"{at}.perplexity_relative_difference.nf4dq_adapter"
        if s.has(apart):
            text.append(f"Perplexity of the 4-bit model with its adapter differs by {{{apart}@power}} of itself.")
    for a in s.benches:
        equal = f"bench.{a}.numerics.equal_tokens.nf4dq_adapter"
        if s.has(equal):
            made = f"bench.{a}.settings.new_tokens"
            text.append(
                f"All {{{made}}} greedy tokens of the two are equal."
                if s.number(equal) == s.number(made)
                else f"Of {{{made}}} greedy tokens the first {{{equal}}} are equal; after one that differs the texts are two."
            )
            break
    return join(*text) or join(f"Whether both compute the same was {NOT_MEASURED}.")
