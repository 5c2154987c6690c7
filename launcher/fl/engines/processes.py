"""Processes by /proc: names that a recycled pid cannot fake, and what a run left behind."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from typing import Final

MARK: Final = "FL_RUN"
"""Environment variable that every process of a host run carries; the run's name. torchrun puts workers into sessions of their own,
so the process group alone does not hold them."""


def start_time(pid: int) -> int | None:
    """The kernel's start time of a living process, in ticks since boot; None when it is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if len(fields) < 20 or fields[0] in "ZX" else int(fields[19])


def identity(pid: int) -> str:
    """`pid:starttime`. A process that is gone already has start time 0."""
    return f"{pid}:{start_time(pid) or 0}"


def alive(ident: str) -> int | None:
    """The pid of a process that still is the one of `identity`; None when it ended, also when its number was given to another."""
    pid, _, started = ident.partition(":")
    if not pid.isdigit() or not started.isdigit() or int(pid) == 0:
        return None
    return int(pid) if start_time(int(pid)) == int(started) else None


def oom_kills() -> int:
    """How many processes the kernel has killed for want of memory since it started; 0 where it does not tell."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/vmstat").read_text(encoding="ascii").split("\noom_kill ")[1].split()[0])
    return 0


def marked(run: str) -> list[int]:
    """Pids of this user's processes that carry the run's mark, this process excepted."""
    wanted = f"{MARK}={run}".encode()
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if wanted in Path(entry.path, "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
    return found


def mark_of(pid: int) -> str | None:
    """The run whose mark a process carries."""
    with contextlib.suppress(OSError):
        for item in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            if item.startswith(f"{MARK}=".encode()):
                return item.partition(b"=")[2].decode("utf-8", "replace")
    return None


def signal_group(pid: int, number: signal.Signals) -> None:
    """Sends to the whole process group; nothing happens when it is gone."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def signal_process(pid: int, number: signal.Signals) -> None:
    """Sends to one process; nothing happens when it is gone."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def sweep(run: str) -> None:
    """Kills what is left of a run, until nothing is: a process may fork between the look and the kill."""
    for _ in range(5):
        left = marked(run)
        if not left:
            return
        for pid in left:
            signal_process(pid, signal.SIGKILL)
