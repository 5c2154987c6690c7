"""`npu-smi info`: a table made for eyes, there is no JSON. two rows a chip, and columns move.

Pure parser of untrusted text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Final

from fl.lanes.values import MOST, bdf, known, rows, version, whole

_VERSION: Final = re.compile(r"Version:\s*(\S{1,40})")
_PAIR: Final = re.compile(r"(\d{1,9})\s*/\s*(\d{1,9})")
_IDLE: Final = re.compile(r"No running processes found in NPU\s+(\d{1,6})")


@dataclass(frozen=True, slots=True, kw_only=True)
class NpuReport:
    """One chip (die) of the table. `index` is the number of its device file."""

    npu: int
    chip: int
    index: int
    name: str | None = None
    masked: bool = False
    """The table has a name, but not one that says anything (masked or empty)."""
    health: str | None = None
    pci: str | None = None
    memory_mib: int | None = None
    busy: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NpuTable:
    """The whole answer. `phy_ids`: it has the column Phy-ID, which only two-die devices (A3) have."""

    version: str | None = None
    npus: tuple[NpuReport, ...] = ()
    phy_ids: bool = False
    malformed: str | None = None


def parse(text: str) -> NpuTable:
    """The devices and, where the process table is there, which of them are busy."""
    lines = rows(text)
    head = next((match for line in lines[:20] if (match := _VERSION.search(line))), None)
    start = next((n for n, line in enumerate(lines) if "Process id" in line), len(lines))
    columns = next((line for line in lines[:start] if re.match(r"\|\s*Chip\b", line)), "")
    table = [line for line in lines[:start] if re.match(r"\|\s*\d", line)]
    npus: list[NpuReport] = []
    bad = 0
    position = 0
    while position < len(table) and len(npus) < MOST:
        pair = _chip(table[position], table[position + 1], columns) if position + 1 < len(table) else None
        position += 2 if pair else 1
        bad += pair is None
        if pair and all(pair.index != npu.index for npu in npus):
            npus.append(pair)
    busy = _processes(lines[start:])
    return NpuTable(
        version=version(head[1]) if head else None,
        npus=tuple(replace(npu, busy=busy.get((npu.npu, npu.chip), busy.get((npu.npu, None)))) for npu in npus),
        phy_ids="Phy-ID" in columns,
        malformed=f"{bad} rows are not in the expected form" if bad else None,
    )


def parse_mapping(text: str) -> NpuTable:
    """`npu-smi info -m`: NPU ID, Chip ID, Chip Logic ID, Chip Name. The rows of the management chip (Mcu) have no logic id."""
    npus: list[NpuReport] = []
    for line in rows(text)[:2000]:
        words = line.split(None, 3)
        ids = [whole(word, 6) for word in words[:3]]
        if (
            len(words) == 4
            and None not in ids
            and "mcu" not in words[3].lower()
            and all(npu.npu != ids[0] or npu.chip != ids[1] for npu in npus)
        ):
            npu, chip, logic = (number or 0 for number in ids)
            npus.append(NpuReport(npu=npu, chip=chip, index=logic if chip else npu, name=known(words[3])))
    return NpuTable(npus=tuple(npus))


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def _chip(first: str, second: str, columns: str) -> NpuReport | None:
    one, two = _cells(first), _cells(second)
    if len(one) < 3 or len(two) < 3:
        return None
    npu_text, _, name = one[0].partition(" ")
    ids = two[0].split()
    npu, chip = whole(npu_text, 6), whole(ids[0], 4) if ids else None
    # The second row of a chip has a bus id or NA where the first has its health.
    if npu is None or chip is None or (bdf(two[1]) is None and two[1].upper() not in ("NA", "N/A", "")) or bdf(one[1]) is not None:
        return None
    device = whole(ids[1], 6) if len(ids) > 1 else None
    pairs = _PAIR.findall(two[2])
    memory = int(pairs[-1][1]) if pairs else 0
    if "HBM-Usage" in columns and not memory and len(pairs) > 1:
        memory = int(pairs[-2][1])
    return NpuReport(
        npu=npu,
        chip=chip,
        index=npu if device is None else device,
        name=known(name),
        masked=bool(name.strip()) and known(name) is None,
        health=known(one[1]) or ("UNKNOWN" if one[1].upper() == "UNKNOWN" else None),
        pci=bdf(two[1]),
        memory_mib=memory or None,
    )


def _processes(lines: list[str]) -> dict[tuple[int, int | None], bool]:
    """(NPU, chip) → busy; (NPU, None) for NPUs without any process, and for the other chips of one that has some."""
    found: dict[tuple[int, int | None], bool] = {}
    for line in lines:
        if idle := _IDLE.search(line):
            found[int(idle[1]), None] = False
            continue
        cells = _cells(line)
        ids = cells[0].split() if cells else []
        if len(cells) >= 4 and len(ids) >= 2 and whole(cells[1]) is not None:
            npu, chip = whole(ids[0], 6), whole(ids[1], 4)
            if npu is not None and chip is not None:
                found[npu, chip] = True
                found.setdefault((npu, None), False)
    return found
