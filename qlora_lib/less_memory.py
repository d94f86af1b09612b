"""What to say when an arm ran out of memory: what its step needs, what there is, and the cheapest change that needs less.

How it works: the planner's own arithmetic, after the fact. The memory to fit is the least of the machine's or card's, its
control groups' and `ulimit -v`; where the plan said that the step fits, and memory ran out all the same (other programs,
or a plan that is too small), the change must save a fifth of what the step was predicted to need. A change is told as the
settings that make it.
"""

from dataclasses import replace

from qlora_lib import hardware
from qlora_lib.config import Settings
from qlora_lib.cost.advice import Way, advise
from qlora_lib.cost.cards import SYSTEM_BYTES, Card, find_cards, this_cpu
from qlora_lib.cost.fitting import Fit, fit
from qlora_lib.cost.plan_table import size, span
from qlora_lib.errors import QloraError
from qlora_lib.profile_plans import OPTIMIZERS, workload

SAVED = 0.8  # of the need of a step that ran out though it was planned to fit: what the change may need at most
GENERAL = "Set train.batch_size or data.window_length lower, or train.gradient_checkpointing=true"
OF_BASE = "It only loads and evaluates: set quantization.format=nf4 where it is not so yet, or close other programs"
NO_WAY = "no setting makes it fit: take a smaller model or a machine with more memory"
NAMES = {
    "batch": "train.batch_size", "accumulation": "train.gradient_accumulation_steps", "checkpointing": "train.gradient_checkpointing",
    "length": "data.window_length", "rank": "lora.rank", "fast": "runtime.fast",
}  # fmt: skip
ASKED = {planned: setting for setting, planned in OPTIMIZERS.items()}


def memory_advice(method: str, settings: Settings, card: Card | None = None) -> str:
    """One line: need, memory, and the best two changes, as settings; a general one where the model's widths are not known."""
    try:
        card = card or _card()
        if method == "base":
            return OF_BASE
        found = fit(workload(method, settings, card), card)
        ways = advise(found.work, _target(found))
    except (QloraError, ValueError):
        return GENERAL
    low, high = found.needs
    said = f"Its step is planned to need {span(size(low), size(high))}, and {size(card.usable_bytes)} can be used"
    ways = [way for way in ways if "weight_dtype" not in way.settings]  # no setting of a profile
    same = [way for way in ways if "method" not in way.settings][:2] or ways[:1]
    return f"{said}; {', or '.join(_told(way) for way in same) or NO_WAY}"


def _card() -> Card:
    """The GPU of this machine, or its CPU with what this process may use of its memory."""
    if hardware.device() == "cuda":
        return find_cards(hardware.device_name("cuda"))[0]
    from qlora_lib.doctor.memory import memory

    cpu = this_cpu()
    return replace(cpu, usable_bytes=max(min(cpu.usable_bytes, memory().usable - SYSTEM_BYTES), 0))


def _target(found: Fit) -> Card:
    """The card that a change must fit: this one, or a smaller one where the step was planned to fit."""
    most = int(SAVED * found.needs[0]) if found.fits else found.card.usable_bytes
    return replace(found.card, usable_bytes=max(most, 1))


def _told(way: Way) -> str:
    needs = span(*map(size, way.needs))
    return f"{' with '.join(f'{key}={value}' for key, value in settings_of(way.settings).items())} needs {needs} ({way.result})"


def settings_of(changed: dict[str, object]) -> dict[str, object]:
    """A profile's keys for the changed fields of a workload."""
    keys: dict[str, object] = {}
    for name, value in changed.items():
        if name == "optimizer":
            keys["train.optimizer"] = ASKED[str(value)]
        elif name == "method":
            keys["method"] = value
        elif name in NAMES:
            keys[NAMES[name]] = str(value).lower() if isinstance(value, bool) else value
    return keys
