"""ROCR_VISIBLE_DEVICES, and on what it leaves HIP_VISIBLE_DEVICES (or CUDA_VISIBLE_DEVICES, which HIP reads too). Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from fl.hardware import Accelerator
from fl.lanes.visible import Restriction, at, by_slurm, by_variable, with_uuid

_RUNTIME: Final = "ROCR_VISIBLE_DEVICES"
_HIP: Final = ("HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")


def restriction(devices: Sequence[Accelerator], environment: Mapping[str, str]) -> Restriction | None:
    """Two levels, each with its own numbering from 0. Nodes that the kernel refuses are not counted."""
    within = [a for a in devices if a.usable is not False or a.pci is not None]
    found: Restriction | None = None
    for name in (_RUNTIME, next((name for name in _HIP if name in environment), _HIP[0])):
        if name not in environment:
            continue
        one = by_variable(name, environment[name], lambda word, left=within: at(left, word) or with_uuid(left, word))  # type: ignore[misc]
        within = [a for a in within if a.index in one.kept]
        found = one if found is None else Restriction(one.kept, f"{found.why} and {one.why}", found.note or one.note)
    return found or by_slurm(devices, environment)
