"""What one arm is asked to do: the message from `study` to the process that runs the arm."""

import json
from dataclasses import dataclass
from pathlib import Path

from qlora_lib.config import ArmEntry, Settings

MODEL_DIR, ADAPTER_DIR = "model", "adapter"
SCRATCH = ".scratch-"  # folders that an arm needs for a moment
OUT_OF_MEMORY = 12  # exit code of an arm's process that memory ran out in: ENOMEM


@dataclass(frozen=True)
class Job:
    """Everything that one arm needs to know."""

    profile: str
    arm: ArmEntry
    settings: Settings
    out: Path
    key: str
    derived_from: Path | None  # results folder of the arm whose weights this one starts from
    before_from: Path | None = None  # results folder of the arm that scored this very base already

    @property
    def processes(self) -> int:
        """How many processes run it; what is not trained has one."""
        return 1 if self.arm.method == "base" else self.settings.runtime.processes

    def to_json(self) -> str:
        return json.dumps(
            {
                "profile": self.profile,
                "arm": self.arm.model_dump(),
                "settings": self.settings.model_dump(),
                "out": str(self.out),
                "key": self.key,
                "derived_from": str(self.derived_from) if self.derived_from else None,
                "before_from": str(self.before_from) if self.before_from else None,
            }
        )

    @classmethod
    def from_json(cls, text: str) -> "Job":
        values = json.loads(text)
        return cls(
            profile=values["profile"],
            arm=ArmEntry.model_validate(values["arm"]),
            settings=Settings.model_validate(values["settings"]),
            out=Path(values["out"]),
            key=values["key"],
            derived_from=Path(values["derived_from"]) if values["derived_from"] else None,
            before_from=Path(values["before_from"]) if values.get("before_from") else None,
        )
