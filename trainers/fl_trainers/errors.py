"""What ends a training run early, one class for each exit code of the trainer."""

from __future__ import annotations

from typing import ClassVar


class TrainerError(Exception):
    """Base of the errors a user can act on; `remedy` says what to do about it."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy


class DeviceError(TrainerError):
    """The accelerator of the lane does not answer inside this environment."""

    exit_code = 3


class InputError(TrainerError):
    """The config, the data, the model or the output folder."""

    exit_code = 5


class TrainingError(TrainerError):
    """The training itself failed: NaN, out of memory."""

    exit_code = 10


class Stopped(TrainerError):
    """SIGTERM or SIGINT."""

    exit_code = 143
