"""One result of `fl doctor`: what was looked at, what was found, where it was read, what to type."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from fl.hardware import Evidence

CheckName = Literal[
    "host", "driver", "fabric", "uvm", "ecc", "persistence", "numa", "access", "engine", "runtime", "image", "registry", "disk", "memory",
    "cache", "clock",
]  # fmt: skip
Status = Literal["ok", "warning", "error", "skipped"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """`remedy` is a command, or one a line; empty where nothing is to be done."""

    check: CheckName
    status: Status
    finding: str
    evidence: tuple[Evidence, ...] = ()
    remedy: str = ""

    def to_json(self) -> dict[str, Any]:
        """One entry of `checks`."""
        return {
            "check": self.check,
            "status": self.status,
            "finding": self.finding,
            "evidence": [{"source": e.source, "value": e.value} for e in self.evidence],
            "remedy": self.remedy,
        }
