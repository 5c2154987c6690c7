"""uv at work: with pip's own configuration, its lines as progress, its failures as our errors."""

from __future__ import annotations

import os
import queue
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fl.engines import processes
from fl.engines.pythons import clean_environment
from fl.errors import EngineError, FlError, MatrixError

Report = Callable[[str], None]
_NETWORK: Final = r"dns error|failed to fetch|error sending request|connection (refused|reset)|timed out|tunnel|certificate|unexpected eof"
_ABSENT: Final = r"no (matching )?distribution|not found in the package registry|there (is|are) no versions?|no wheels with|unsatisfiable"
_NEWS: Final = re.compile(r"\s*(Resolved|Downloading|Downloaded|Building|Built|Prepared|Installed)\b")
_TICK: Final = 0.2
_QUIET: Final = 10.0
"""Seconds without a line from the installer after which the waiting is reported."""


@dataclass(frozen=True, slots=True)
class Installer:
    """uv at work on one folder."""

    folder: Path
    report: Report
    check: Callable[[], None]
    held: int | None = None
    """Descriptor of the folder's lock: uv has it open too, so that the lock outlives a launcher that is killed in the middle."""

    def uv(self, *arguments: str) -> None:
        """Runs uv to its end, its lines reported as they come; its errors as ours."""
        process = subprocess.Popen(
            [uv_binary(), *arguments],
            env=uv_settings(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
            pass_fds=() if self.held is None else (self.held,),
        )
        try:
            said = self._listen(process)
        except BaseException:
            processes.signal_group(process.pid, signal.SIGKILL)
            process.wait()
            raise
        if process.wait() != 0:
            raise explain("\n".join(said), self.folder)

    def _listen(self, process: subprocess.Popen[str]) -> list[str]:
        """Lines of the process; a sign of life for every ten seconds of silence."""
        lines: queue.Queue[str | None] = queue.Queue()

        def read() -> None:
            for line in process.stderr or ():
                lines.put(line.rstrip())
            lines.put(None)

        threading.Thread(target=read, daemon=True).start()
        said: list[str] = []
        started = heard = time.monotonic()
        while True:
            self.check()
            try:
                line = lines.get(timeout=_TICK)
            except queue.Empty:
                if time.monotonic() - heard >= _QUIET:
                    heard = time.monotonic()
                    self.report(f"still installing, {heard - started:.0f} s")
                continue
            if line is None:
                return said
            heard = time.monotonic()
            said.append(line)
            if _NEWS.match(line):
                self.report(line.strip())


def uv_settings() -> dict[str, str]:
    """The environment of uv: pip's own index, find-links and certificates; no other configuration; no Python downloads."""
    from fl.pip_config import uv_environment

    environment = clean_environment(dict(os.environ))
    environment.update(uv_environment(os.environ))
    environment.update(UV_NO_CONFIG="1", UV_PYTHON_DOWNLOADS="never", UV_NO_PROGRESS="1", NO_COLOR="1")
    return environment


def uv_binary() -> str:
    """The uv that fl depends on; EngineError when the installation lost it."""
    try:
        from uv import find_uv_bin

        return os.fsdecode(find_uv_bin())
    except ImportError as error:
        raise EngineError("uv, which installs packages for fl, is not in this Python", "python -m pip install uv") from error
    except FileNotFoundError as error:
        raise EngineError(f"uv is not where its package puts it: {error}", "python -m pip install --force-reinstall uv") from error


def room(folder: Path) -> str:
    """What to type when a disk is full or a folder cannot be written."""
    return f"df -h {folder.parent} shows the room there; XDG_CACHE_HOME=/other/disk moves fl's cache"


def explain(said: str, folder: Path) -> FlError:
    """uv's words as one of our errors."""
    text = re.sub(r"\s+", " ", said).strip()
    shown = _tail(said)
    if re.search(r"hash mismatch", text, re.I):
        return MatrixError(
            f"A package does not have the hash that the lock says:\n{shown}",
            "uv cache clean, and again; if it stays, the index serves another file than was locked: fl images lock",
        )
    if re.search(r"no space left|os error 28\b|disk quota|os error 122\b", text, re.I):
        return EngineError(f"The disk is full: the environment {folder} cannot be made.", room(folder))
    if re.search(r"permission denied|os error 13\b|read-only file system", text, re.I):
        return EngineError(f"The environment cannot be written:\n{shown}", room(folder))
    if re.search(_NETWORK, text, re.I):
        return EngineError(
            f"The package index cannot be reached:\n{shown}",
            "pip config list shows index, proxy and certificates that are used; HTTPS_PROXY and PIP_CERT set them\n"
            "fl run --python PATH uses an environment that you have",
        )
    if re.search(_ABSENT, text, re.I):
        return EngineError(
            f"The package index does not have what the lock names:\n{shown}",
            "pip config list shows the index and find-links that are used\nfl run --engine docker … takes the image instead",
        )
    return EngineError(f"The environment {folder} cannot be made:\n{shown}", "fl run --engine docker …\nfl run --python PATH …")


def _tail(said: str, lines: int = 12) -> str:
    kept = [line for line in said.splitlines() if line.strip() and not re.match(r"\s*(Resolved|Download|Using|Prepared|Building)", line)]
    return "\n".join(kept[-lines:]) or "uv said nothing"
