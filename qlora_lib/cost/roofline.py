"""How long a step and a token take: the limit that a card sets, and an estimate beside it.

How it works: a step cannot be faster than its matrix products at the card's peak for their dtype, nor than its weights,
gradients and states can be read and written at the bandwidth of its memory, nor than those states of a paged optimizer
that find no place can cross the link to the host. The slowest is the limit, and says whether the step is bound by
`compute`, by `memory` or by `paging`. A token decoded at batch 1 must read every weight once, so its
limit is the bandwidth over those bytes.

An estimate is the limit over the share that others reached (`speeds`), or that this machine reached (`calibrated`); it is
a range where the points differ, and there is none where there are no points. Training: the share of the peak that a
step's products reach. Decoding on a GPU: the time to launch a layer's kernels, which at batch 1 is longer than the
reading of 4-bit weights; the limit where that is longer.

Source of the limit: Williams et al. 2009 (roofline). Activations are left out of the bytes: what is written may still be
in the cache when it is read, so they set no limit.
"""

from dataclasses import dataclass, replace

from qlora_lib.cost.cards import Card, gpu_card
from qlora_lib.cost.flops import StepFlops, step_flops
from qlora_lib.cost.memory import optimizer_bytes, resident, trained_tensors, trained_width
from qlora_lib.cost.models import MODELS
from qlora_lib.cost.speeds import DECODE_SPEEDS, Range, TrainingSpeed, range_of, training_speeds
from qlora_lib.cost.workload import WIDTH, Workload

HOST_LINK = 12e9  # bytes a second: what is reached of the 15.75 GB/s of PCIe 3.0 x16, which a T4 has; newer cards have 4.0


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimizer step on one card. None where a figure of the card is not known."""

    compute_seconds: float | None  # at the peak
    memory_seconds: float | None  # at the bandwidth
    paging_seconds: float  # of a paged optimizer's states over the link to the host
    peak: str  # which peak: card, dtype, figure and source
    bandwidth: str
    estimate: tuple[float, float] | None  # seconds: (at the highest share, at the lowest)
    share: tuple[float, float] | None  # of the peak that the estimate takes to be reached: (lowest, highest)
    share_words: str

    @property
    def limit_seconds(self) -> float | None:
        if self.compute_seconds is None:
            return None
        return max(self.compute_seconds, self.memory_seconds or 0.0, self.paging_seconds)

    @property
    def bound(self) -> str | None:
        """`compute`, `memory` or `paging`; None where the bandwidth or the peak is not known."""
        if self.compute_seconds is None or self.memory_seconds is None:
            return None
        seconds = {"compute": self.compute_seconds, "memory": self.memory_seconds, "paging": self.paging_seconds}
        return max(seconds, key=seconds.get)


@dataclass(frozen=True)
class DecodeTime:
    """Greedy decoding at batch 1, tokens a second."""

    bytes_per_token: int  # weights, constants and the cache of keys and values
    limit: float | None  # at most
    bandwidth: str
    estimate: tuple[float, float] | None  # (lowest, highest)
    estimate_words: str

    @property
    def share(self) -> tuple[float, float] | None:
        """Of the bandwidth that the estimate amounts to."""
        return (self.estimate[0] / self.limit, self.estimate[1] / self.limit) if self.estimate and self.limit else None


def flops_of(work: Workload) -> StepFlops:
    return step_flops(
        work.shape, work.method, work.batch, work.length, work.rank, work.targets or "all-linear",
        gradient_checkpointing=work.checkpointing, accumulation=work.accumulation,
    )  # fmt: skip


def bytes_moved(work: Workload) -> int:
    """Bytes that an optimizer step reads and writes at least.

    The weights are read in every forward and backward pass, and once more where they recompute; gradients are written
    and read; trained weights and both averages are read and written.
    """
    held, trained = resident(work), trained_tensors(work)
    looked_up = 0 if work.shape.tied_embeddings else work.shape.parameters.embedding * work.weight_width
    passes = 2 + work.checkpointing
    states = sum(optimizer_bytes(work))
    updates = 4 * sum(trained) * trained_width(work) + 2 * states
    return work.accumulation * passes * (held.total - looked_up) + updates


def step_time(work: Workload, card: Card, paging_bytes: int = 0) -> StepTime:
    """Raises nothing where a card lacks units for the dtype: its peak is then said to be missing."""
    flops = flops_of(work).hardware_flops
    peak, words = card.peaks.get(work.dtype, (None, f"no peak for {work.dtype} is known of {card.name}"))
    compute = flops / peak if peak else None
    memory = bytes_moved(work) / card.bandwidth if card.bandwidth else None
    paging = paging_bytes / HOST_LINK
    time = StepTime(compute, memory, paging, words, card.bandwidth_words, None, None, "no estimate: nothing to go by")
    reached = training_share(work, card)
    if compute is None or reached is None:
        return replace(time, share_words="no estimate: --calibrate measures this machine") if card.device == "cpu" else time
    floor = max(memory or 0.0, compute) if paging else time.limit_seconds
    estimate = tuple(max(floor, compute / share) + paging for share in (reached.high, reached.low))
    return replace(time, estimate=estimate, share=(reached.low, reached.high), share_words=reached.words)


def training_share(work: Workload, card: Card) -> Range | None:
    """The share of the peak that a step's products are taken to reach."""
    if card.calibration:
        known = {s.method for s in card.calibration.steps}
        method = work.method if work.method in known else {"lora": "qlora", "qlora": "lora"}.get(work.method)
        steps = [s for s in card.calibration.steps if s.method == method]
        same = [s for s in steps if s.fast == work.fast] or steps
        if not same:
            return None
        shares = [s.share(card.calibration.gemm_flops_per_second) for s in same]
        one = same[0]
        words = f"measured here: {one.model}, {one.method}, {one.batch} x {one.length} tokens, {'qlora_lib.fast' if one.fast else 'stock forwards'}"
        return Range(min(shares), max(shares), words)
    if card.device == "cpu":
        return None
    points = [p for p in training_speeds() if p.quantized == (work.quantization != "none")]
    return range_of(points, card.name, share_reached)


def share_reached(point: TrainingSpeed) -> float:
    """Of the card's peak, by a published step: its hardware FLOPs over its seconds."""
    flops = step_flops(
        MODELS[point.model].shape, point.method, point.batch, point.length, point.rank, point.targets,
        gradient_checkpointing=point.checkpointing, accumulation=point.accumulation,
    ).hardware_flops  # fmt: skip
    return flops / point.seconds / gpu_card(point.card).peaks[point.dtype][0]


def decode_bytes(work: Workload, context: int) -> int:
    """What a token reads: all weights but a look-up table, and the keys and values of `context` tokens.

    In the dtype of the products, as models are loaded to decode; adapters are taken to be merged.
    """
    held = resident(replace(work, method="lora", weight_dtype=work.dtype, targets="all-linear"))
    looked_up = 0 if work.shape.tied_embeddings else work.shape.parameters.embedding * WIDTH[work.dtype]
    cache = 2 * work.shape.num_layers * work.shape.kv_width * context * WIDTH[work.dtype]
    return held.weights + held.quantization_constants - looked_up + cache


def decode_time(work: Workload, card: Card) -> DecodeTime:
    """Of the base as this workload stores it, after `work.length` tokens."""
    size = decode_bytes(work, work.length)
    limit = card.bandwidth / size if card.bandwidth else None
    time = DecodeTime(size, limit, card.bandwidth_words, None, "no estimate: nothing to go by")
    if limit is None:
        return replace(time, estimate_words="no estimate: --calibrate measures this machine")
    if card.calibration:
        same = [d for d in card.calibration.decodes if d.quantization == work.quantization and d.fast == work.fast]
        shares = [d.share(card.calibration.bytes_per_second) for d in same]
        if not shares:
            return time
        return replace(time, estimate=(limit * min(shares), limit * max(shares)), estimate_words=f"measured here: {same[0].model}")
    points = [p for p in DECODE_SPEEDS if p.quantization == work.quantization]
    if work.quantization == "nf4":
        points = [p for p in points if p.double_quant == work.double_quant]
    launch = range_of(points, card.name, lambda p: p.seconds_per_layer)
    if launch is None:
        return time
    seconds = [max(1 / limit, work.shape.num_layers * s) for s in (launch.high, launch.low)]
    return replace(time, estimate=(1 / seconds[0], 1 / seconds[1]), estimate_words=launch.words)
