"""Milliseconds of detection: on a generated host record with 64 devices (AMD partitions, the host with the most files a device), and live
on this machine where it has an accelerator, with the vendor's own tool beside it.

    python bench/detection.py
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

from figures import FL, figure, median, run, skip

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "tests" / "unit")]

from hosts import kfd_partitions, make, seen  # noqa: E402

RECORDED, LIVE = 50, 150
TOOLS = {"cuda": ("nvidia-smi", "-q", "-x"), "rocm": ("amd-smi", "static", "--json"), "ascend": ("npu-smi", "info")}


def recorded() -> bool:
    """The best of five: what is asked for is the cost, not the load of the machine."""
    with tempfile.TemporaryDirectory() as folder:
        files, nodes = kfd_partitions(8, 8)
        record = make(Path(folder) / "host", files, nodes)
        found = [seen(record) for _ in range(5)]
    if any(len(hardware.accelerators) != 64 for hardware in found):
        sys.exit(f"found {len(found[0].accelerators)} devices, not 64")
    return figure("detection of a recorded host, 64 devices", min(hardware.elapsed_ms for hardware in found), "ms", RECORDED)


def live() -> bool:
    """The median of five detections of this machine."""
    command = (*FL, "hw", "--json")
    lanes = {a["lane"] for a in json.loads(run(command).output)["accelerators"]}
    if not lanes:
        skip("detection, live", "this machine has no accelerator")
        return True
    tool = next((TOOLS[lane] for lane in TOOLS if lane in lanes and shutil.which(TOOLS[lane][0])), None)
    peer = None if tool is None else (" ".join(tool), median(lambda: run(tool).wall * 1000, 5))
    good = figure("detection, live", median(lambda: float(json.loads(run(command).output)["elapsed_ms"]), 5), "ms", LIVE, peer)
    figure("fl hw --json, live, whole process", median(lambda: run(command).wall * 1000, 5), "ms", None, peer)
    return good


if __name__ == "__main__":
    results = [recorded(), live()]
    sys.exit(0 if all(results) else 1)
