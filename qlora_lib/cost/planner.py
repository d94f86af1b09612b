"""What a training run will take, before it is run: memory by component, FLOPs, the cards that it fits, time and price.

How it works: `plan` turns a model's name and a method's settings into one `Workload` a card (a card trains in its own
dtype unless one is given), and asks `peak`, `flops`, `roofline`, `fitting` and `advice` about each. The result is one
dictionary of plain values, in bytes, seconds and FLOPs. All of it is *predicted*: nothing is loaded, downloaded or run,
and no figure is taken from a measurement but those of `--calibrate`, which say so.

The top of the dictionary is about the first card that was named; without one, about a GPU with bf16.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from math import ceil

from qlora_lib.cost.advice import Way, advise
from qlora_lib.cost.cards import Card, every_card, find_cards
from qlora_lib.cost.devices import GIB
from qlora_lib.cost.fitting import LARGEST, TIGHT, TOO_LARGE, Fit, fit, largest
from qlora_lib.cost.models import shape_of
from qlora_lib.cost.peak import PARTS
from qlora_lib.cost.roofline import StepTime, decode_time, flops_of, step_time
from qlora_lib.cost.shapes import ModelShape
from qlora_lib.cost.workload import Workload
from qlora_lib.errors import UsageError

DEFAULT_CARD = "RTX 3090"  # for the top of a plan that names none: bf16, and the same bytes as any other GPU with it
SEQ_LEN, BATCH_SIZE = 512, 4


@dataclass(frozen=True)
class Run:
    """How long to train: optimizer steps, or tokens of the data and epochs over them; and a card's price an hour."""

    steps: int | None = None
    tokens: int | None = None
    epochs: float | None = None
    price: float | None = None  # of one card for one hour, in whatever currency

    def __post_init__(self) -> None:
        if self.steps and (self.tokens or self.epochs):
            raise UsageError("steps and tokens both say how long to train", "Give steps, or tokens (with epochs)")
        if self.epochs and not self.tokens:
            raise UsageError("epochs say nothing without the tokens of the data", "Give tokens beside the epochs, or steps in their place")
        for name, value in asdict(self).items():
            if value is not None and not 0 < value < 1e18:
                raise UsageError(f"{name} is {value!r:.30}; a number above 0 and below 1e18 was expected")
        if self.price and not (self.steps or self.tokens):
            raise UsageError("a price an hour says nothing without the length of the run", "Give steps or tokens beside the price")

    def steps_of(self, work: Workload) -> int | None:
        if self.steps:
            return self.steps
        return ceil(self.tokens * (self.epochs or 1) / (work.tokens * work.accumulation)) if self.tokens else None


def plan(
    model: str | ModelShape,
    method: str = "qlora",
    seq_len: int = SEQ_LEN,
    batch_size: int = BATCH_SIZE,
    *,
    gpus: str | Card | Iterable[str | Card] | None = None,
    dtype: str | None = None,
    run: Run | None = None,
    search: bool = True,
    **settings,
) -> dict:
    """Predicted cost of training `model` with `method`.

    Args:
        model: a name of `models.MODELS`, a hub id, folder, config.json or .gguf file; or widths.
        method: full, lora or qlora.
        seq_len: tokens of a sequence; batch_size: sequences of a micro-batch.
        gpus: names of cards; "cpu" is this machine. None: all in the table and this machine.
        dtype: of the products; None: each card's own (bf16, a T4's fp16, a CPU's fp32).
        run: how long to train, for time and price.
        search: also find the largest batch and length, and what would make it fit.
        settings: further fields of `Workload`: accumulation, rank, targets, dropout, quantization, double_quant,
            weight_dtype, optimizer, checkpointing, attention, fast, loss.

    Returns a dictionary: `parameters` (total, trainable, by component), `bytes` (by component, at the highest moment),
    `peak_bytes`, `overhead_bytes`, `flops_per_step`, `fits` by card, and under `gpus` each card's verdict and why, step
    time, decode speed, largest batch and length, advice, and the run's time and price.
    Raises UsageError for an unknown name or an impossible setting.
    """
    if unknown := [name for name in settings if name not in Workload.__dataclass_fields__]:
        from qlora_lib.errors import nearest

        raise UsageError(f"unknown setting '{unknown[0]}'", nearest(unknown[0], Workload.__dataclass_fields__))
    shape, where = (model, "given") if isinstance(model, ModelShape) else shape_of(model)

    def workload(card: Card) -> Workload:
        return Workload(
            shape, method, batch_size, seq_len, **{"dtype": dtype or card.dtype, "device": card.device} | settings
        )

    cards = cards_of(gpus)
    first = cards[0] if gpus else find_cards(DEFAULT_CARD)[0]
    top = fit(workload(first), first)
    fits = {card: fit(workload(card), card) for card in cards}
    work, flops = top.work, flops_of(top.work)
    return {
        "predicted": "from the model's widths, the libraries' code and data sheets; nothing was measured, loaded or run",
        "model": model if isinstance(model, str) else "given",
        "widths": where,
        "method": method,
        "settings": settings_of(work),
        "parameters": parameters_of(work),
        "for": first.name if gpus else f"a GPU in {work.dtype}",
        "bytes": {name: top.memory.parts[name] for name in PARTS},
        "sizes": {name: top.memory.sizes[name] for name in PARTS},
        "moment": top.memory.moment,
        "moments": dict(top.memory.moments),
        "peak_bytes": top.memory.peak_bytes,
        "paged_bytes": top.memory.host_bytes,
        "overhead_bytes": {"low": top.overhead[0], "high": top.overhead[1]},
        "estimated": list(top.memory.estimated),
        "tokens_per_step": work.tokens * work.accumulation,
        "flops_per_step": flops.model_flops,
        "flops": {
            "forward": flops.forward, "backward": flops.backward, "recompute": flops.recompute,
            "input_gradient": flops.input_gradient, "model": flops.model_flops, "hardware": flops.hardware_flops,
        },
        "fits": {card.name: found.fits for card, found in fits.items()},
        "gpus": {card.name: _on_card(found, run or Run(), search) for card, found in fits.items()},
    }  # fmt: skip


def cards_of(gpus: str | Card | Iterable[str | Card] | None) -> tuple[Card, ...]:
    """Cards by name, each once, in the order named; all of them for none."""
    if not gpus:
        return every_card()
    gpus = [gpus] if isinstance(gpus, str | Card) else gpus
    found = [card for gpu in gpus for card in ((gpu,) if isinstance(gpu, Card) else find_cards(gpu))]
    return tuple({card.name: card for card in found}.values())


def settings_of(work: Workload) -> dict:
    """The fields of a workload that a user sets, in plain values."""
    names = [name for name in Workload.__dataclass_fields__ if name not in ("shape", "method", "fused_optimizer")]
    values = {name: getattr(work, name) for name in names} | {"targets": list(work.adapted)}
    if work.trains_all:
        values = {name: value for name, value in values.items() if name not in ("rank", "targets", "dropout", "adapter_dtype")}
    return values


def parameters_of(work: Workload) -> dict[str, int]:
    counts = work.shape.parameters
    adapters = 0 if work.trains_all else work.shape.lora_parameters(work.rank, work.targets)
    return {
        "total": counts.total, "trainable": counts.total if work.trains_all else adapters, "embedding": counts.embedding,
        "attention": counts.attention, "mlp": counts.mlp, "norms": counts.norms, "head": counts.head, "adapters": adapters,
    }  # fmt: skip


# --- one card -----------------------------------------------------------------------------------------


def _on_card(found: Fit, run: Run, search: bool) -> dict:
    card, work = found.card, found.work
    step, decode = step_time(work, card, found.paging_bytes), decode_time(work, card)
    answer = {
        "verdict": found.verdict,
        "why": why(found),
        "notes": notes(found),
        "memory_bytes": card.memory_bytes,
        "usable_bytes": card.usable_bytes,
        "dtype": work.dtype,
        "peak_bytes": found.memory.peak_bytes,
        "overhead_bytes": {"low": found.overhead[0], "high": found.overhead[1]},
        "step": {
            "limit_seconds": step.limit_seconds,
            "bound": step.bound,
            "compute_seconds": step.compute_seconds,
            "memory_seconds": step.memory_seconds,
            "paging_seconds": step.paging_seconds,
            "peak": step.peak,
            "bandwidth": step.bandwidth,
            "estimate_seconds": _pair(step.estimate),
            "share_of_peak": _pair(step.share),
            "share_from": step.share_words,
        },
        "decode": {
            "limit_tokens_per_second": decode.limit,
            "bytes_per_token": decode.bytes_per_token,
            "estimate_tokens_per_second": _pair(decode.estimate),
            "share_of_bandwidth": _pair(decode.share),
            "estimate_from": decode.estimate_words,
        },
        "run": None if found.verdict == TOO_LARGE else run_of(run, work, step),
        "calibrated": card.calibration.measured_at if card.calibration else None,
    }
    if search:
        answer["largest"] = {"batch_size": largest(work, card, "batch"), "seq_len": largest(work, card, "length"),
                             "search_ends_at": {"batch_size": LARGEST["batch"], "seq_len": LARGEST["length"]}}  # fmt: skip
        answer["advice"] = [advice_of(way) for way in advise(work, card)]
    return answer


def why(found: Fit) -> str:
    """In words, why a step fits a card or does not."""
    low, high = found.needs
    needs = f"{low / GIB:.1f}" if low == high else f"{low / GIB:.1f} to {high / GIB:.1f}"
    text = f"needs {needs} GiB{' with what stands beside the tensors' if found.overhead[1] else ''}, {found.card.usable_bytes / GIB:.1f} GiB can be used"
    if found.fits:
        return text
    if found.verdict == TIGHT:
        return f"{text}: whether it fits depends on how much CUDA and its allocator take"
    sizes = found.memory.sizes
    if found.fixed_bytes > found.card.usable_bytes:
        named = [name for name in ("weights", "adapters", "gradients", "optimizer states") if sizes[name] >= 0.05 * GIB]
        parts = [f"{name} ({sizes[name] / GIB:.1f})" for name in named]
        listed = " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
        return f"{text}; {listed} alone are {found.fixed_bytes / GIB:.1f} GiB, whatever the batch and length"
    parts = found.memory.parts
    most = max(("activations", "logits and loss", "temporary buffers", "gradients", "weights"), key=lambda name: parts[name])
    return f"{text}; the largest part is {most}, {parts[most] / GIB:.1f} GiB ({found.memory.moment})"


def notes(found: Fit) -> list[str]:
    """What else is to be known of a step on a card."""
    said, card, work = [], found.card, found.work
    if card.device == "cuda" and work.dtype not in card.peaks:
        said.append(f"{card.name} has no {work.dtype} matrix units, so no time is given: train in {card.dtype} there")
    if card.device == "cpu" and work.dtype != "fp32":
        said.append(f"few CPUs multiply in {work.dtype} faster than in fp32; qlora doctor says which dtype suits this one")
    if found.paging_bytes and found.verdict != TOO_LARGE:
        said.append(f"{found.paging_bytes / 2 / GIB:.1f} GiB of optimizer states find no place on the card and cross to the host's memory and back in every step")
    return said


def run_of(run: Run, work: Workload, step: StepTime) -> dict | None:
    """Hours and price of a whole run: at least, and estimated (low, high); None where no length was given."""
    steps = run.steps_of(work)
    if steps is None:
        return None
    hours = lambda seconds: None if seconds is None else steps * seconds / 3600  # noqa: E731
    least = hours(step.limit_seconds)
    estimate = None if step.estimate is None else (hours(step.estimate[0]), hours(step.estimate[1]))
    price = None
    if run.price:
        cost = lambda h: None if h is None else h * run.price  # noqa: E731
        price = {"per_hour": run.price, "at_least": cost(least), "estimate": _pair(None if estimate is None else tuple(map(cost, estimate)))}
    return {
        "steps": steps, "tokens": steps * work.tokens * work.accumulation, "hours_at_least": least,
        "hours_estimate": _pair(estimate), "price": price,
    }  # fmt: skip


def advice_of(way: Way) -> dict:
    return {
        "changes": list(way.changes),
        "settings": way.settings,
        "result": way.result,
        "time_ratio": way.time_ratio,
        "needs_bytes": {"low": way.needs[0], "high": way.needs[1]},
    }


def _pair(values: tuple[float, float] | None) -> dict[str, float] | None:
    return None if values is None else {"low": min(values), "high": max(values)}
