"""What a caller's environment leaves of a lane's devices: its runtime's own variable, a Slurm job's grant, a Kubernetes pod's.

Pure. Runtimes read a list up to the first name that is not there; so does this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from fl.hardware import Accelerator

Find = Callable[[str], Iterable[Accelerator]]
_SLURM: Final = ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS")
_NO_DEVICE: Final = ("", "-1", "NoDevFiles", "void", "none")


@dataclass(frozen=True, slots=True)
class Restriction:
    """`kept`: indices of the devices that are left; `why`: `CUDA_VISIBLE_DEVICES=2,5`; `note`: more to say about it."""

    kept: frozenset[int]
    why: str
    note: str = ""


def by_variable(name: str, value: str, find: Find) -> Restriction:
    """The devices that a list names."""
    why, kept = f"{name}={value}", set[int]()
    if value.strip() in _NO_DEVICE:
        return Restriction(frozenset(), why)
    for word in value.split(","):
        found = [device.index for device in find(word.strip())]
        if not found:
            return Restriction(frozenset(kept), why, f"{word.strip() or 'an empty name'} is not there, and what follows it does not count")
        kept.update(found)
    return Restriction(frozenset(kept), why)


def at(devices: Sequence[Accelerator], word: str) -> list[Accelerator]:
    """The device at a position."""
    number = int(word) if word.isascii() and word.isdigit() and len(word) < 6 else len(devices)
    return [devices[number]] if number < len(devices) else []


def with_uuid(devices: Sequence[Accelerator], word: str) -> list[Accelerator]:
    """The device whose UUID starts so; several only where they share it (AMD's partitions)."""
    found = [a for a in devices if word and a.uuid and a.uuid.lower().startswith(word.lower())]
    return found if len({a.uuid for a in found}) == 1 else []


def by_slurm(devices: Sequence[Accelerator], environment: Mapping[str, str]) -> Restriction | None:
    """A job's grant, in the numbers of the whole machine. Where its cgroup hides the others there is nothing left to restrict."""
    name = next((name for name in _SLURM if environment.get(name)), None)
    numbers = None if name is None else numbers_of(environment[name])
    if name is None or numbers is None:
        return None
    why, within_reach = f"{name}={environment[name]}", [a for a in devices if a.usable is not False]
    if len(within_reach) <= len(numbers):
        kept = frozenset(a.index for a in within_reach)
        return Restriction(kept, why, "the job's cgroup shows only its own devices, counted from 0")
    return Restriction(frozenset(a.index for a in devices if a.index in numbers), why)


def in_pod(environment: Mapping[str, str]) -> bool:
    """Whether this is a Kubernetes pod: there a variable of the device plugin is a grant, on a host it is only a wish for containers."""
    return "KUBERNETES_SERVICE_HOST" in environment


def numbers_of(text: str) -> frozenset[int] | None:
    """The indices that `0,2-3` names; None when it is not of that form."""
    found: set[int] = set()
    for word in text.split(","):
        low, _, high = word.strip().partition("-")
        first, last = low, high or low
        if not (first.isascii() and first.isdigit() and last.isascii() and last.isdigit() and len(first) < 5 and len(last) < 5):
            return None
        found.update(range(int(first), int(last) + 1))
    return frozenset(found)
