"""What can go wrong, one class for each exit code. A message says what was wanted and what was found; `remedy` what to type."""

from __future__ import annotations

from typing import Any, ClassVar


class FlError(Exception):
    """Base of every error that a user can act on. Anything else is a bug and keeps its traceback (exit 1)."""

    exit_code: ClassVar[int] = 1
    refused: Any = None
    """A `refused.Refused`, where a stack or machine was found not to allow what a recipe wants: that is evidence too."""

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy


class UsageError(FlError):
    """The command line asks for something that cannot be combined."""

    exit_code = 2


class HardwareError(FlError):
    """No usable accelerator, not accessible, or ambiguous."""

    exit_code = 3


class StackError(FlError):
    """No row of the matrix fits, or the id is unknown."""

    exit_code = 4


class RecipeError(FlError):
    """The recipe, its data, its model folder or its output folder."""

    exit_code = 5


class EngineError(FlError):
    """The engine does not answer, or an environment cannot be made."""

    exit_code = 6


class ImageError(FlError):
    """An image is missing, or its build, pull or verification failed."""

    exit_code = 7


class MatrixError(FlError):
    """The matrix or a lock is broken."""

    exit_code = 8


class EvidenceError(FlError):
    """Evidence or a pin does not hold."""

    exit_code = 9


class TrainingError(FlError):
    """The training itself failed: NaN, out of memory, a crash."""

    exit_code = 10


class Interrupted(FlError):
    """Ctrl-C."""

    exit_code = 130


class Terminated(FlError):
    """SIGTERM."""

    exit_code = 143
