"""Rlimits that a container engine cannot grant: its own hard limits, where it may not raise them."""

from __future__ import annotations

from pathlib import Path
from typing import Final

_CAP_SYS_RESOURCE: Final = 24
_ROWS: Final = {"Max locked memory": "memlock", "Max open files": "nofile", "Max stack size": "stack"}


def hard_limits(pid: int | None, rootless: bool) -> dict[str, int]:
    """Limits by name (bytes, or a count for `nofile`) that a request may not exceed; empty when the engine may raise them all.

    `pid`: the daemon, or any process of the user for an engine without one. A rootless engine has the capability in its own user
    namespace only, where the kernel does not accept it for this.
    """
    if pid is None:
        return {}
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
        limits = Path(f"/proc/{pid}/limits").read_text(encoding="ascii", errors="replace")
    except OSError:
        return {}
    return {} if _may_raise(status) and not rootless else parse(limits)


def _may_raise(status: str) -> bool:
    line = next((text for text in status.splitlines() if text.startswith("CapEff:")), "CapEff: 0")
    return bool(int(line.split()[1], 16) >> _CAP_SYS_RESOURCE & 1)


def parse(text: str) -> dict[str, int]:
    """The hard limits of /proc/PID/limits; unlimited ones are left out."""
    found = {}
    for line in text.splitlines():
        name = next((key for key in _ROWS if line.startswith(key)), None)
        columns = line[26:].split()
        if name is not None and len(columns) >= 2 and columns[1].isdigit():
            found[_ROWS[name]] = int(columns[1])
    return found
