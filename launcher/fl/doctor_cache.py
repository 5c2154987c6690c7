"""Environments in the cache that are of no use any more: found by `fl doctor`, removed by `--fix`."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fl.engines.environment import MARKER

_OLD: Final = re.compile(r"\.old-(\d{1,10})$")


@dataclass(frozen=True, slots=True)
class Leftover:
    """A folder or lock file that no run can use."""

    path: Path
    why: str

    @property
    def command(self) -> str:
        """What removes it."""
        return f"rm -rf {self.path}"


def find(environments: Path) -> tuple[Leftover, ...]:
    """Half made, changed and left over entries, in order of their names. What another process is at work on is left out."""
    try:
        entries = sorted(environments.iterdir())
    except OSError:
        return ()
    return tuple(Leftover(entry, why) for entry in entries if (why := _why(entry)) is not None and not _in_use(entry))


def _why(entry: Path) -> str | None:
    if entry.suffix == ".lock":
        return None if entry.with_suffix("").exists() else "a lock whose environment is gone"
    if (match := _OLD.search(entry.name)) is not None:
        return None if Path(f"/proc/{match[1]}").exists() else "the rest of a removal that was interrupted"
    return unsound(entry) if entry.is_dir() else None


def unsound(folder: Path) -> str | None:
    """Why an environment cannot be used; None: it is as it was made."""
    try:
        marker = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        python, packages = str(marker["python"]), int(marker["packages"])
    except FileNotFoundError:
        return "half made: its installation did not end"
    except (OSError, ValueError, KeyError, TypeError):
        return f"its {MARKER} cannot be read"
    if os.path.realpath(folder / "bin/python") != python or not os.access(folder / "bin/python", os.X_OK):
        return f"its Python {python} is gone or another one"
    found = sum(1 for site in folder.glob("lib/python3*/site-packages") for entry in site.glob("*.dist-info"))
    return None if found == packages else f"it has {found} packages, {packages} were installed"


def _in_use(entry: Path) -> bool:
    """Another process installs into it, or runs from it."""
    lock = entry if entry.suffix == ".lock" else entry.with_suffix(".lock")
    if lock.exists():
        try:
            with lock.open("r") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
    return entry.is_dir() and _runs_from(entry)


def _runs_from(folder: Path) -> bool:
    inside = os.fsencode(f"{folder}/")
    for name in os.listdir("/proc"):  # noqa: PTH208 - thousands of entries, names only
        if name.isdigit():
            try:
                if inside in Path(f"/proc/{name}/cmdline").read_bytes():
                    return True
            except OSError:
                continue
    return False


def remove(leftover: Leftover) -> None:
    """Removes it; OSError where it cannot. Out of the way at once, so that an interrupted removal is no folder that looks made."""
    path = leftover.path
    if path.is_dir():
        gone = path if _OLD.search(path.name) else path.with_name(f"{path.name}.old-{os.getpid()}")
        if gone != path:
            path.rename(gone)
        shutil.rmtree(gone)
    else:
        path.unlink(missing_ok=True)
