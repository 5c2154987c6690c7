"""Folders of optional packages, one an extra: made from its lock, checked by hash, whole or not there, on the path of every engine."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from fl.engines import environment
from fl.engines.installer import Installer, Report, room
from fl.errors import EngineError
from fl.images.extras_resolve import MACHINE, MANYLINUX

if TYPE_CHECKING:
    from fl.extras import Chosen

MARKER: Final = "fl-extra.json"


def ready(extra: Chosen) -> bool:
    """Whether its folder is as it was made. Takes a millisecond."""
    return whole(extra.folder) == hashlib.sha256(extra.requirements.encode()).hexdigest()


def whole(folder: Path) -> str | None:
    """Hash of the lines that a folder was made from; None: it is not as it was made."""
    try:
        marker = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        return str(marker["requirements_sha256"]) if marker["packages"] == _packages(folder) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def ensure(extra: Chosen, report: Report, check: Callable[[], None] = lambda: None) -> None:
    """Makes the folder where it is missing or broken. Errors as those of `environment.ensure`.

    For the Python and the platform of the stack, which need not be this machine's: a container's are the image's.
    """
    if ready(extra):
        return
    folder = extra.folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with environment.locked(folder.with_suffix(".lock"), report, check):
            if not ready(extra):
                _make(extra, folder, report, check)
    except OSError as error:
        raise EngineError(f"The folder {folder} cannot be made: {error.strerror or error}", room(folder)) from error


def _make(extra: Chosen, folder: Path, report: Report, check: Callable[[], None]) -> None:
    """Beside the target, then renamed: nobody finds half of it."""
    from fl.pip_config import uv_flags

    started = time.monotonic()
    part = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    report(f"installing {', '.join(extra.packages)} for {extra.name} into {folder}")
    try:
        lines = part / "requirements.txt"
        lines.write_text(extra.requirements, encoding="utf-8")
        words = ["pip", "install", *uv_flags(os.environ), "--target", str(part), "--no-deps", "--require-hashes", "--only-binary", ":all:"]
        words += ["--python", sys.executable, "--python-version", extra.python]
        words += ["--python-platform", f"{MACHINE[extra.platform]}-{MANYLINUX}", "-r", str(lines)]
        Installer(folder, report, check).uv(*words)
        marker = {
            "schema": 1, "requirements_sha256": hashlib.sha256(extra.requirements.encode()).hexdigest(), "packages": _packages(part),
            "extra": extra.name, "python": extra.python, "platform": extra.platform,
        }  # fmt: skip
        (part / MARKER).write_text(json.dumps(marker) + "\n", encoding="utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        part.rename(folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    report(f"{extra.name} ready: {_packages(folder)} packages in {time.monotonic() - started:.0f} s")


def _packages(folder: Path) -> int:
    return sum(1 for entry in os.scandir(folder) if entry.name.endswith(".dist-info"))
