"""The form of an entry in the tables of known error texts (causes.py and the lanes')."""

from __future__ import annotations

import re
from dataclasses import dataclass

from fl.errors import FlError
from fl.hardware import LaneName


@dataclass(frozen=True, slots=True)
class Cause:
    """`error` is the class of the failure, and so its exit code, where nothing else tells."""

    code: str
    lane: LaneName | None
    cause: str
    cure: str
    error: type[FlError]


@dataclass(frozen=True, slots=True)
class Known:
    """A text, and its cause. `{0}` in cause and cure is the pattern's first group."""

    pattern: re.Pattern[str]
    meaning: Cause


def known(code: str, lane: LaneName | None, error: type[FlError], pattern: str, cause: str, cure: str) -> Known:
    """An entry; the pattern ignores case, and stays within a line."""
    return Known(re.compile(pattern, re.I), Cause(code, lane, cause, cure, error))
