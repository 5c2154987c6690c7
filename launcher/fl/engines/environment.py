"""Virtual environments of the host engine: made from a lock, checked by hash, kept in the user's cache, never half made."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from fl.engines.installer import Installer, Report, room
from fl.engines.pythons import pythons
from fl.errors import EngineError, MatrixError
from fl.paths import cache_home

MARKER: Final = "fl-environment.json"
_TICK: Final = 0.2


def key(lock: Path, python_version: str) -> str:
    """Name of the environment's folder: what the lock installs, the Python and the platform."""
    content = _content(lock)
    text = f"{python_version} {sys.platform} {platform.machine()} {platform.libc_ver()[0]}\n".encode()
    return hashlib.sha256(text + content).hexdigest()[:16]


def _content(lock: Path) -> bytes:
    """The lock without its comments: an environment stays good when only what the lock says of itself changes."""
    try:
        lines = lock.read_bytes().splitlines(keepends=True)
    except OSError as error:
        raise MatrixError(f"The lock {lock} cannot be read: {error.strerror}", "fl images lock") from error
    return b"".join(line for line in lines if not line.startswith(b"#"))


def location(lock: Path, python_version: str) -> Path:
    """Where the environment of a lock stands, made or not."""
    return cache_home() / "environments" / key(lock, python_version)


def ready(lock: Path, python_version: str) -> Path | None:
    """The interpreter of an environment that is whole, or None. Takes a millisecond; asks nothing of the network."""
    folder = location(lock, python_version)
    return folder / "bin/python" if _whole(folder, lock) else None


def ensure(
    lock: Path, python_version: str, report: Report, build_constraints: Path | None = None, check: Callable[[], None] = lambda: None
) -> Path:
    """The interpreter of the lock's environment, made when it is missing or broken.

    `build_constraints`: hashed versions of what source distributions are built with. `check` is called a few times a second and ends
    the work by raising. Errors: EngineError (no such Python, no network,
    disk full, …), MatrixError when a package does not have the hash that the lock says.
    """
    if (interpreter := ready(lock, python_version)) is not None:
        return interpreter
    base = pythons().get(python_version)
    if base is None:
        have = ", ".join(f"{v} ({p})" for v, p in sorted(pythons().items()))
        raise EngineError(
            f"This stack needs Python {python_version} for --engine host; found: {have}.",
            f"uv python install {python_version}\nfl run --engine docker …\nfl matrix list shows the Python of each stack",
        )
    folder = location(lock, python_version)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.with_suffix(".lock"), report, check) as held:
            if not _whole(folder, lock):
                _make(folder, lock, base, Installer(folder, report, check, held), build_constraints)
    except OSError as error:
        raise EngineError(f"The environment {folder} cannot be made: {error.strerror or error}", room(folder)) from error
    return folder / "bin/python"


@contextmanager
def locked(path: Path, report: Report, check: Callable[[], None]) -> Iterator[int]:
    """Holds the lock file, of which the descriptor is given. The kernel lets go of it when the last process that has it open dies, so a
    killed install blocks nobody, and one whose installer still writes is waited for."""
    with path.open("w") as file:
        told = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not told:
                    report("another run is making this environment; waiting for it")
                told = True
                check()
                time.sleep(_TICK)
        yield file.fileno()


def _whole(folder: Path, lock: Path) -> bool:
    """True when the marker is there and what it says is still so."""
    try:
        marker = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        python = folder / "bin/python"
        return bool(
            marker["lock_sha256"] == hashlib.sha256(_content(lock)).hexdigest()
            and marker["python"] == os.path.realpath(python)
            and os.access(python, os.X_OK)
            and marker["packages"] == _packages(folder)
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _packages(folder: Path) -> int:
    """How many distributions are installed: cheap enough to be looked at before every run."""
    return sum(1 for site in folder.glob("lib/python3*/site-packages") for entry in os.scandir(site) if entry.name.endswith(".dist-info"))


def _make(folder: Path, lock: Path, base: Path, installer: Installer, build_constraints: Path | None) -> None:
    from fl.pip_config import uv_flags

    report = installer.report
    if folder.exists():
        report("the environment in the cache is broken or half made; making it again")
        _discard(folder)
    started = time.monotonic()
    report(f"making an environment with Python {base} in {folder}")
    try:
        installer.uv("venv", "--quiet", "--no-project", "--python", str(base), str(folder))
        # Not compiled here: 13 500 files take 35 s on two cores, the third of them that a run imports 10 s, and that run keeps them.
        arguments = ["pip", "sync", *uv_flags(os.environ), "--require-hashes"]
        arguments += ["--python", str(folder / "bin/python"), str(lock)]
        if build_constraints is not None:
            arguments[2:2] = ["--build-constraints", str(build_constraints)]
        installer.uv(*arguments)
        _mark(folder, lock)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    report(f"environment ready: {_packages(folder)} packages in {time.monotonic() - started:.0f} s")


def _discard(folder: Path) -> None:
    """Out of the way at once, so that an interrupted removal is never a folder that looks made."""
    old = folder.with_name(f"{folder.name}.old-{os.getpid()}")
    folder.rename(old)
    shutil.rmtree(old, ignore_errors=True)


def _mark(folder: Path, lock: Path) -> None:
    """Written last, and on the disk only when everything before it is."""
    marker = {
        "schema": 1,
        "lock_sha256": hashlib.sha256(_content(lock)).hexdigest(),
        "python": os.path.realpath(folder / "bin/python"),
        "packages": _packages(folder),
    }
    temporary = folder / f"{MARKER}.part"
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(marker, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / MARKER)
