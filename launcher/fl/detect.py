"""All lanes together: a host → Hardware."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from threading import Thread
from typing import Final

from fl.hardware import Detection, Hardware, LaneName
from fl.host import PATIENCE, Host, LiveHost, Ran, environment_replay
from fl.lanes import LANES, pci
from fl.lanes.cpu import processor

_WINDOWS: Final = ("WDDM", "C:\\Windows")


def open_host(replay: Path | None = None, patience: float = PATIENCE, environment: Mapping[str, str] | None = None) -> Host:
    """This machine, or the record that `replay` or FL_REPLAY names. A missing or broken record is a UsageError."""
    folder = replay or environment_replay(os.environ if environment is None else environment)
    if folder is None:
        return LiveHost(patience)
    from fl.host_replay import ReplayHost

    return ReplayHost(folder)


def detect(host: Host) -> Hardware:
    """Every accelerator, the processor, the drivers and what is wrong. On a live host lanes ask their drivers at the same time."""
    begin = time.monotonic()
    found = _all(host)
    cpu = processor(host)
    return Hardware(
        os=host.os or _os(host),
        arch=host.arch or _arch(host),
        cpu=cpu,
        replayed=not host.live,
        accelerators=tuple(a for detection in found.values() for a in detection.accelerators),
        drivers={str(LANES[lane].DRIVER): dict(detection.driver) for lane, detection in found.items() if detection.driver is not None},
        problems=tuple(problem for detection in found.values() for problem in detection.problems),
        nodes={node.path: node for detection in found.values() for node in detection.nodes},
        host_paths=frozenset(path for detection in found.values() for path in detection.host_paths),
        elapsed_ms=round((time.monotonic() - begin) * 1000),
    )


def _all(host: Host) -> dict[LaneName, Detection]:
    if not host.live:
        return {lane: module.detect(host) for lane, module in LANES.items()}
    pci.scan(host)  # once, before the lanes ask for it side by side
    found: dict[LaneName, Detection] = {}

    def look(lane: LaneName) -> None:
        found[lane] = LANES[lane].detect(host)

    # Plain threads: importing an executor costs more than a whole detection. One that raises prints its traceback (a bug).
    threads = [Thread(target=look, args=(lane,), daemon=True) for lane in LANES]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {lane: found[lane] for lane in LANES}


def _os(host: Host) -> str:
    """A record that does not say: Linux, unless the only thing in it is a Windows driver's answer."""
    if host.exists("/proc/version") or host.names("/sys") or host.node_names("/dev"):
        return "linux"
    calls: list[Ran] = [host.run(["nvidia-smi", *options]) for options in ([], ["-q"], ["-q", "-x"])]
    return "windows" if any(sign in ran.stdout for ran in calls for sign in _WINDOWS) else "linux"


def _arch(host: Host) -> str:
    """A record that does not say: by the processor's or the kernel module's own words."""
    texts = (host.read(path).text or "" for path in ("/proc/cpuinfo", "/proc/version", "/proc/driver/nvidia/version"))
    return "aarch64" if any("aarch64" in text or "CPU implementer" in text for text in texts) else "x86_64"
