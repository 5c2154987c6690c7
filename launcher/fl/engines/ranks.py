"""What torchrun reports of processes that ended without a word of their own. Pure."""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass
from typing import Final

_ENTRY: Final = re.compile(r"^[\s|]*rank\s*:\s*(\d+) [^\n]*\n[\s|]*exitcode\s*:\s*(-?\d+)\b", re.MULTILINE)
_TOLD: Final = (0, 3, 5, 10, 130, 143, -signal.SIGTERM)
"""Ends of which the process has told the reason, and the signal by which torchrun ends those that are left."""


@dataclass(frozen=True, slots=True)
class Silent:
    """A process of the run that was killed or left without saying why."""

    rank: int
    exit_code: int

    @property
    def killed(self) -> bool:
        """By SIGKILL, as the kernel does when no memory is left."""
        return self.exit_code == -signal.SIGKILL

    def __str__(self) -> str:
        if self.exit_code >= 0:
            return f"process {self.rank + 1} of the run ended with exit code {self.exit_code}, without a word"
        try:
            name = signal.Signals(-self.exit_code).name
        except ValueError:
            name = f"signal {-self.exit_code}"
        return f"process {self.rank + 1} of the run was killed by {name}"


def silent(log: str) -> Silent | None:
    """The first such process in the report at the end of a log; None where there is none."""
    found = [Silent(int(rank), int(code)) for rank, code in _ENTRY.findall(log)]
    return next((one for one in sorted(found, key=lambda one: one.rank) if one.exit_code not in _TOLD), None)
