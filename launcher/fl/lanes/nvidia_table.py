"""The table that `nvidia-smi` prints without arguments: the last source, since names are cut and columns move.

Pure parser of untrusted text.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Final

from fl.lanes.nvidia_report import GpuReport, MigReport, Report
from fl.lanes.values import MOST, bdf, known, mebibytes, rows, squeezed, version, whole

_DRIVER: Final = re.compile(r"(?:Driver|KMD) Version:\s*(\S{1,40})")
_CUDA: Final = re.compile(r"CUDA (?:UMD )?Version:\s*(\S{1,40})")
_GPU: Final = re.compile(r"\|\s*(\d{1,4})\s+(\S.*?)\s+(On|Off|N/A|WDDM|TCC|MCDM)\s*\|\s*([0-9a-fA-F:.]{7,16})\s")
_MEMORY: Final = re.compile(r"/\s*(\d{1,9})MiB\s*\|")
_MIG_ON: Final = re.compile(r"\|[^|]*\|[^|]*\| (Enabled\*?|Disabled\*?) \|")
_MIG: Final = re.compile(r"\| (\d{1,4}) (\d{1,4}) (\d{1,4}) (\d{1,3}) \| \d{1,9}MiB ?/ (\d{1,9})MiB ?\|")
_PROCESS: Final = re.compile(r"\|\s*(\d{1,4})\s+(?:(N/A|\d{1,4})\s+(N/A|\d{1,4})\s+)?(\d{1,10})\s+(C|G|C\+G|M\+C)\s")


def parse_table(text: str) -> Report:
    """Driver, CUDA, GPUs with their memory and load, and their MIG devices (whose profiles it does not name)."""
    driver, cuda = _DRIVER.search(text), _CUDA.search(text)
    head, _, processes = text.partition("Processes:")
    gpus: list[GpuReport] = []
    for line in map(squeezed, rows(head)):
        if len(gpus) >= MOST:
            break
        if match := _GPU.match(line):
            model = match[3] if match[3] in ("WDDM", "TCC", "MCDM") else None
            name = known(match[2].removesuffix("...").strip())
            gpus.append(GpuReport(index=int(match[1]), name=name, pci=bdf(match[4]), model=model))
        elif gpus and gpus[-1].memory_mib is None and (memory := _MEMORY.search(line)):
            gpus[-1] = replace(gpus[-1], memory_mib=mebibytes(memory[1]))
        elif gpus and gpus[-1].mig is None and (mode := _MIG_ON.match(line)):
            gpus[-1] = replace(gpus[-1], mig=mode[1].startswith("Enabled"))
    parts = _migs(head.partition("MIG devices:")[2])
    gpus = [replace(gpu, migs=tuple(part for owner, part in parts if owner == gpu.index)) if gpu.mig else gpu for gpu in gpus]
    if processes:
        table = [row for line in rows(processes) if (row := _PROCESS.match(squeezed(line))) and "C" in row[5]]
        busy = {int(row[1]) for row in table}
        instances = {(int(row[1]), int(row[2]), whole(row[3])) for row in table if whole(row[2]) is not None}
        gpus = [
            gpu
            if gpu.model
            else replace(
                gpu, busy=gpu.index in busy, busy_instances=frozenset((gi, ci) for owner, gi, ci in instances if owner == gpu.index)
            )
            for gpu in gpus
        ]
    return Report(
        source="nvidia-smi", driver=version(driver[1]) if driver else None, max_cuda=version(cuda[1]) if cuda else None, gpus=tuple(gpus)
    )


def _migs(text: str) -> list[tuple[int, MigReport]]:
    """(GPU, MIG device): each has a row with its ids and memory, and a second one without ids."""
    matches = [match for line in map(squeezed, rows(text)) if (match := _MIG.match(line))][:MOST]
    return [
        (int(m[1]), MigReport(number=int(m[4]), instance=int(m[2]), compute=int(m[3]), memory_mib=mebibytes(m[5]))) for m in matches
    ]
