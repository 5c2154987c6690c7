"""ASCEND_RT_VISIBLE_DEVICES, and what a pod's runtime grants. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from fl.hardware import Accelerator
from fl.lanes.visible import Restriction, at, by_variable, in_pod, numbers_of

_OWN: Final = "ASCEND_RT_VISIBLE_DEVICES"
_RUNTIME: Final = "ASCEND_VISIBLE_DEVICES"


def restriction(devices: Sequence[Accelerator], environment: Mapping[str, str]) -> Restriction | None:
    """The runtime's variable counts the cards that are here from 0; the container runtime's has the numbers of their files.

    Slurm has no plugin for Ascend: sites set the runtime's variable themselves.
    """
    here = [a for a in devices if a.nodes]
    if _OWN in environment:
        return by_variable(_OWN, environment[_OWN], lambda word: at(here, word))
    granted = numbers_of(environment.get(_RUNTIME, "").replace("Ascend910-", "").replace("npu-", ""))
    if in_pod(environment) and granted is not None:
        return Restriction(frozenset(a.index for a in devices if a.index in granted), f"{_RUNTIME}={environment[_RUNTIME]}")
    return None
