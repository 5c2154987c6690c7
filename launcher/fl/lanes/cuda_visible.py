"""CUDA_VISIBLE_DEVICES, and what Slurm and Kubernetes grant of NVIDIA's devices. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from fl.hardware import Accelerator
from fl.lanes.visible import Restriction, by_slurm, by_variable, in_pod, with_uuid

_OWN: Final = "CUDA_VISIBLE_DEVICES"
_PLUGIN: Final = "NVIDIA_VISIBLE_DEVICES"


def restriction(devices: Sequence[Accelerator], environment: Mapping[str, str]) -> Restriction | None:
    """The variable first (Slurm sets it too), then a pod's UUIDs, then a job's numbers. None: nothing is asked for."""
    if _OWN in environment:
        found = by_variable(_OWN, environment[_OWN], lambda word: _named(devices, word))
        ordered = environment.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID" or len({a.arch for a in devices}) == 1
        if found.note or ordered or "-" in environment[_OWN]:
            return found
        return Restriction(found.kept, found.why, "counted in PCI order; CUDA by itself counts the fastest GPU first")
    words = [word.strip() for word in environment.get(_PLUGIN, "").split(",")]
    if in_pod(environment) and all(word.startswith(("GPU-", "MIG-")) for word in words):
        return by_variable(_PLUGIN, environment[_PLUGIN], lambda word: with_uuid(devices, word))
    return by_slurm(devices, environment)


def _named(devices: Sequence[Accelerator], word: str) -> list[Accelerator]:
    """By index (of a GPU that is cut by MIG: its first device, as CUDA does), by a UUID or the start of one."""
    if not (word.isascii() and word.isdigit() and len(word) < 6):
        return with_uuid(devices, word)
    if not any(a.partition for a in devices):
        return [a for a in devices if a.index == int(word)]
    return [a for a in devices if _gpu(devices, a) == int(word)][:1]


def _gpu(devices: Sequence[Accelerator], device: Accelerator) -> int:
    """The index of a device's GPU: MIG devices count on where GPUs stand."""
    if device.partition:
        return device.partition.parent if device.partition.parent is not None else device.index
    parents = {a.partition.parent for a in devices if a.partition}
    whole = [a for a in devices if a.partition is None]
    free = [n for n in range(len(whole) + len(parents)) if n not in parents]
    return free[whole.index(device)]
