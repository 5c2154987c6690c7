"""Whose the output folder is: one run writes to it at a time, and a model that stands in it is replaced only when the recipe says so."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

from fl_trainers.config import Config
from fl_trainers.errors import InputError
from fl_trainers.progress import rank

MODELS = (
    "adapter_model.safetensors", "adapter_model.bin", "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)  # fmt: skip
"""What a run that has ended leaves: LLaMA-Factory's list."""


def hold(config: Config) -> int | None:
    """Locks the folder for as long as this process lives; None where the file system has no locks, or another rank holds it.

    The folder itself is locked, so that no file of ours stays in it; the kernel lets go when the process ends, however it ends.
    Raises InputError while another run holds it.
    """
    if rank():
        return None
    folder = config.training.output_dir
    held = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(held)
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise InputError(
                f"output_dir {folder}: another run is writing to it", "`fl ps` shows which; wait, or another output_dir"
            ) from error
        return None
    return held


def refuse_model(config: Config, resume: str | None) -> None:
    """A training that begins anew refuses a folder with a trained model, unless it is told to overwrite: LLaMA-Factory's rule."""
    training = config.training
    if resume or not training.do_train or training.overwrite_output_dir or training.resume_from_checkpoint is False:
        return
    found = next((name for name in MODELS if (Path(training.output_dir) / name).is_file()), None)
    if found:
        raise InputError(f"output_dir {training.output_dir} holds a trained model already ({found}), and no checkpoint to go on from",
                         "another output_dir, or `overwrite_output_dir: true`, which replaces it")  # fmt: skip
