"""Several adapters on one base: add, switch, switch off, remove, with the base loaded once.

How it works: PEFT keeps the A and B of every adapter in the same layers, under its name, and a switch only changes
which name each layer reads: nothing is copied, merged or quantized again. An adapter of other layers or another rank may
stand beside the rest. The base's weights are never touched, so outputs are those of a model that was loaded with that
adapter alone, bit for bit. The fast forwards look at the active adapter in each call, and a decoder at the beginning
of each text (qlora_lib.fast), so they follow a switch by themselves.

    adapters = Adapters(load_base(...))
    adapters.add("reviews", "runs/reviews/adapter")
    adapters.add("questions", "runs/questions/adapter")
    adapters.use("reviews")         # adapters.model is what to call
    with adapters.using(None): ...  # the base alone, inside the block
"""

from contextlib import contextmanager
from pathlib import Path

from qlora_lib.errors import UsageError, nearest
from qlora_lib.models import delete_adapter, load_adapter, unwrap


class Adapters:
    """The adapters of one model in use; for inference: none of them is trainable.

    `model` is the PEFT model around the base while an adapter is there, and else the base itself. Made from a PEFT model,
    it takes over the adapters that are on it.
    """

    def __init__(self, model) -> None:
        self.model = model
        self._active: str | None = None
        if self.names:
            self.use((model.active_adapters or self.names)[0])

    @property
    def names(self) -> list[str]:
        """In the order in which they were added."""
        return list(getattr(self.model, "peft_config", {}))

    @property
    def active(self) -> str | None:
        """The adapter that outputs are computed with; None: the base alone."""
        return self._active

    def add(self, name: str, folder: Path | str) -> None:
        """Load the adapter of a local PEFT folder. What was active stays so; the first is made active.

        Raises: UsageError for a name that is taken or cannot be one, QloraError for an adapter of another base. The model
        is then as before.
        """
        if not name or "." in name:
            raise UsageError(f"'{name}' cannot name an adapter", "Give a short name without dots")
        if name in self.names:
            raise UsageError(f"there is an adapter '{name}' already", "Remove it first, or give another name")
        active, first = self.active, not self.names
        self.model = load_adapter(self.model, Path(folder), name=name).eval()
        self.use(name if first else active)

    def use(self, name: str | None) -> None:
        """Compute with this adapter from now on; None: with the base alone."""
        if name is None:
            if self.names:
                self.model.base_model.disable_adapter_layers()
            self._active = None
            return
        if name not in self.names:
            raise UsageError(f"there is no adapter '{name}'", nearest(name, self.names) if self.names else "Add one first")
        self.model.base_model.enable_adapter_layers()
        self.model.set_adapter(name, inference_mode=True)
        self._active = name

    def off(self) -> None:
        """Compute with the base alone; the adapters stay in memory."""
        self.use(None)

    @contextmanager
    def using(self, name: str | None):
        """Another adapter, or none, inside a `with`."""
        before = self.active
        self.use(name)
        try:
            yield self.model
        finally:
            self.use(before)

    def remove(self, name: str) -> None:
        """Free the memory of an adapter. If it was active, the base alone is from now on."""
        if name not in self.names:
            raise UsageError(f"there is no adapter '{name}'", nearest(name, self.names) if self.names else "")
        active = self.active
        delete_adapter(self.model, name)
        if not self.names:  # PEFT's wrapper does not work with none
            self.model = self.model.base_model.model
            unwrap(self.model)
        self.use(None if active == name else active)
