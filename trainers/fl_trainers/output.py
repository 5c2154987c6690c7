"""Whose the output folder is: one run writes to it at a time, and a model that stands in it is replaced only when the recipe says so."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from pathlib import Path
from typing import Final

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


_REASONS: Final = tuple(
    (number, text) for number, text in (
        (errno.ENOSPC, "no space left on device"), (errno.EDQUOT, "disk quota exceeded"), (errno.EROFS, "read-only file system"),
        (errno.EACCES, "permission denied"), (errno.EFBIG, "file too large"), (errno.EIO, "input/output error"),
        (errno.ESTALE, "stale file handle"),
    )
)  # fmt: skip
_WRITERS: Final = ("inline_container.cc", "pytorchstreamwriter failed", "unexpected pos", "iostream error")
"""What torch says when a file could not be written to its end; it keeps the reason to itself."""


def fault(error: BaseException, config: Config) -> InputError | None:
    """What kept a file from being written, if that is what the error or one that it came of is about; None for anything else."""
    seen: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in seen:
        seen.append(link)
        link = link.__cause__
    for one in seen:
        number, text = getattr(one, "errno", None) if isinstance(one, OSError) else None, str(one).lower()
        library = type(one).__module__.partition(".")[0] == "safetensors" or any(word in text for word in _WRITERS)
        why = next((why for code, why in _REASONS if number == code or (library and (why in text or f"os error {code})" in text))), None)
        if why is not None or (library and any(word in text for word in _WRITERS)):
            place = getattr(one, "filename", None) or config.training.output_dir
            return _unwritable(str(place), why, config)
    return None


def _unwritable(place: str, why: str | None, config: Config) -> InputError:
    try:
        free = shutil.disk_usage(config.training.output_dir).free // 2**20
        why = f"{why or ('it could not be written to its end' if free else _REASONS[0][1])}; {free} MiB are free in output_dir"
    except OSError:
        why = why or "it could not be written to its end"
    return InputError(f"{place}: {why}", "free space (`save_total_limit:` and `save_only_model: true` need less), or another output_dir")
