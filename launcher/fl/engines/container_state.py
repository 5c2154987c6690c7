"""A container's recorded state as the end of a run. Docker and podman write the same fields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fl.engines import UNKNOWN_EXIT, Ended

_KILLED = 137


def read_state(state: Mapping[str, Any] | None) -> Ended | None:
    """`State` of an inspected container: None while it runs; a missing one means that somebody removed the container. Pure."""
    if state is None:
        return Ended(UNKNOWN_EXIT, reason="the container was removed by somebody else")
    if str(state.get("Status")).lower() not in ("exited", "dead", "stopped"):
        return None
    code = int(state.get("ExitCode", UNKNOWN_EXIT))
    oom = bool(state.get("OOMKilled"))
    said = state.get("Error") or None
    if said is None and oom:
        said = "the kernel killed it: the container's memory limit was reached"
    elif said is None and code == _KILLED:
        said = "killed by SIGKILL"
    return Ended(code, oom, said)
