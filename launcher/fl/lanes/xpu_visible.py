"""ZE_AFFINITY_MASK, in the two ways that Level Zero counts. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from fl.hardware import Accelerator
from fl.lanes.visible import Restriction, at, by_slurm, by_variable

_OWN: Final = "ZE_AFFINITY_MASK"
HIERARCHY: Final = "ZE_FLAT_DEVICE_HIERARCHY"
_TILES: Final = {"Max 1550": 2}
"""Cards of more than one tile: Level Zero shows each tile as a device, unless the hierarchy is COMPOSITE."""


def restriction(devices: Sequence[Accelerator], environment: Mapping[str, str]) -> Restriction | None:
    """`0,1` or, with tiles, `0.1`: of a card the mask names any tile of, the whole card is kept."""
    if _OWN not in environment:
        return by_slurm(devices, environment)
    flat = environment.get(HIERARCHY, "FLAT").upper() != "COMPOSITE"
    places = [a for a in devices for _ in range(_tiles(a) if flat else 1)]
    return by_variable(_OWN, environment[_OWN], lambda word: at(places, word.partition(".")[0]))


def _tiles(device: Accelerator) -> int:
    return next((tiles for name, tiles in _TILES.items() if name in (device.name or "")), 1)
