"""Going on from a checkpoint: what of it cannot be read is named, and what it never had is begun anew where that does no harm."""

from __future__ import annotations

import contextlib
import json
import pickle
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fl_trainers import checkpoints, ranks
from fl_trainers.errors import InputError


class Resumes:
    """Before transformers' Trainer among the bases of a loop."""

    lr_scheduler: Any
    is_deepspeed_enabled: bool

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        with _readable(resume_from_checkpoint, "its weights"):
            super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc]

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with _readable(checkpoint, "the state of its random numbers"):
            super()._load_rng_state(checkpoint)  # type: ignore[misc]

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with _readable(checkpoint, "the state of its optimizer or schedule"):
            super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]
        if checkpoint is not None and not self.is_deepspeed_enabled and not checkpoints.goes_on(Path(checkpoint), deepspeed=False):
            self._catch_up(int(json.loads((Path(checkpoint) / "trainer_state.json").read_text(encoding="utf-8"))["global_step"]))

    def _catch_up(self, steps: int) -> None:
        """transformers would begin the schedule anew, with its warm-up, in the middle of the training."""
        if type(self.lr_scheduler).__name__ == "ReduceLROnPlateau":
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch misses the optimizer's own steps
            for _ in range(steps):
                self.lr_scheduler.step()


@contextlib.contextmanager
def _readable(checkpoint: str | None, what: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        if ranks.lost(error) or "out of memory" in str(error).lower():
            raise
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        first = "its content is broken" if isinstance(error, pickle.UnpicklingError) else first
        raise InputError(
            f"{checkpoint}: {what} cannot be read: {first}",
            "`resume_from_checkpoint:` another checkpoint, or remove this one; the same command then goes on from the one before",
        ) from error
