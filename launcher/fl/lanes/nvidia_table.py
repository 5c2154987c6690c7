"""The table that `nvidia-smi` prints without arguments: the last source, since names are cut and columns move.

Pure parser of untrusted text.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Final

from fl.lanes.nvidia_report import GpuReport, Report
from fl.lanes.values import MOST, bdf, known, mebibytes, rows, squeezed, version

_DRIVER: Final = re.compile(r"(?:Driver|KMD) Version:\s*(\S{1,40})")
_CUDA: Final = re.compile(r"CUDA (?:UMD )?Version:\s*(\S{1,40})")
_GPU: Final = re.compile(r"\|\s*(\d{1,4})\s+(\S.*?)\s+(On|Off|N/A|WDDM|TCC|MCDM)\s*\|\s*([0-9a-fA-F:.]{7,16})\s")
_MEMORY: Final = re.compile(r"/\s*(\d{1,9})MiB\s*\|")
_PROCESS: Final = re.compile(r"\|\s*(\d{1,4})\s+(?:(?:N/A|\d+)\s+(?:N/A|\d+)\s+)?(\d{1,10})\s+(C|G|C\+G|M\+C)\s")


def parse_table(text: str) -> Report:
    """Driver, CUDA, and GPUs with their memory and load."""
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
    if processes:
        busy = {int(row[1]) for line in rows(processes) if (row := _PROCESS.match(squeezed(line))) and "C" in row[3]}
        gpus = [gpu if gpu.model else replace(gpu, busy=gpu.index in busy) for gpu in gpus]
    return Report(
        source="nvidia-smi", driver=version(driver[1]) if driver else None, max_cuda=version(cuda[1]) if cuda else None, gpus=tuple(gpus)
    )
