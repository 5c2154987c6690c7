"""`rocminfo`: AMD's list of agents, the last source where neither KFD's files nor the tools' JSON tell. Pure parser."""

from __future__ import annotations

import re
from typing import Final

from fl.lanes.rocm_smi import AmdReport
from fl.lanes.values import MOST, hexadecimal, known, rows

_AGENT: Final = re.compile(r"^Agent \d{1,4}\s*$", re.M)
_CHIP: Final = re.compile(r"\d{1,9}\((0x[0-9a-fA-F]{1,8})\)")
_SIZE: Final = re.compile(r"(\d{1,15})(?:\(0x[0-9a-fA-F]+\))? KB")
_ARCH: Final = re.compile(r"gfx[0-9a-f]{3,5}")


def parse_rocminfo(text: str) -> tuple[AmdReport, ...]:
    """The agents of type GPU, in order."""
    found: list[AmdReport] = []
    for block in _AGENT.split(text)[1 : MOST + 1]:
        fields: dict[str, str] = {}
        for line in rows(block):
            key, colon, value = line.partition(":")
            if colon:
                fields.setdefault(key.strip(), value.strip())
        if fields.get("Device Type") == "GPU":
            found.append(_agent(len(found), fields))
    return tuple(found)


def _agent(index: int, fields: dict[str, str]) -> AmdReport:
    arch, chip = _ARCH.fullmatch(fields.get("Name", "")), _CHIP.match(fields.get("Chip ID", ""))
    size = _SIZE.match(fields.get("Size", ""))
    place = fields.get("BDFID", "")
    number = int(place) if place.isascii() and place.isdigit() and len(place) <= 5 else None
    unique = fields.get("Uuid", "").removeprefix("GPU-")
    return AmdReport(
        index=index,
        name=known(fields.get("Marketing Name")),
        arch=arch[0] if arch else None,
        device=hexadecimal(chip[1]) if chip else None,
        memory_mib=int(size[1]) >> 10 if size else None,
        pci=None if number is None else f"0000:{number >> 8:02x}:{number >> 3 & 31:02x}.{number & 7}",
        unique_id=unique if re.fullmatch(r"[0-9a-f]{8,16}", unique) else None,
    )
