"""NVIDIA: what the kernel shows, what the driver says, and what a container needs."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from fl.hardware import Accelerator, Detection, Evidence, Partition, Problem
from fl.host import Host
from fl.lanes.cuda_grants import grants, visibility
from fl.lanes.cuda_visible import restriction
from fl.lanes.nvidia_chips import arch_of_capability, arch_of_device, arch_of_name
from fl.lanes.nvidia_kernel import Kernel, look
from fl.lanes.nvidia_state import driver_problems, mixed, unmapped, usable_now, without_mig_devices
from fl.lanes.pci import PciDevice
from fl.lanes.values import known, product

if TYPE_CHECKING:  # the tools' parsers are loaded where there is something to ask
    from fl.lanes.nvidia_report import GpuReport, MigReport
    from fl.lanes.nvidia_tools import Answer

__all__ = ["DRIVER", "EXCLUSIVE", "PARTITIONS_TOGETHER", "TITLE", "detect", "grants", "restriction", "visibility"]

TITLE = "NVIDIA"
DRIVER = "nvidia"
EXCLUSIVE = False
PARTITIONS_TOGETHER = False
_HOST_PATHS: Final = ("/usr/lib/wsl",)
_NO_MIGS: Final = ("nvidia-smi --query-gpu",)
"""Sources that tell whether MIG is on, and never the MIG devices."""


def detect(host: Host) -> Detection:
    """GPUs and MIG devices, in the order of nvidia-smi."""
    kernel = look(host)
    if host.live and not (kernel.devices or kernel.loaded or kernel.nodes):
        return Detection()
    from fl.lanes.nvidia_tools import ask

    answer = ask(host, kernel.loaded or kernel.wsl or bool(kernel.nodes))
    if not (kernel.devices or kernel.loaded or kernel.nodes or answer.report.gpus):
        return Detection()
    problems = driver_problems(kernel, answer)
    accelerators: list[Accelerator] = []
    for gpu, device in _joined(kernel, answer):
        whole_gpu, more = _accelerator(kernel, answer, gpu, device, len(accelerators))
        problems += more
        parts = _partitions(whole_gpu, gpu, len(accelerators))
        accelerators += parts or [whole_gpu]
        if gpu.mig and not parts:
            listed = answer.report.source not in _NO_MIGS
            accelerators[-1] = replace(whole_gpu, usable=whole_gpu.usable and (False if listed else None))
            problems.append(without_mig_devices(gpu.index, listed))
    if not accelerators and kernel.tegra:
        accelerators.append(_tegra(host, kernel))
    problems = unmapped(list(dict.fromkeys(problems)), accelerators) + mixed(accelerators)
    max_cuda = None if answer.report.max_cuda is None else ".".join(answer.report.max_cuda.split(".")[:2])
    return Detection(
        accelerators=tuple(accelerators),
        driver={"version": kernel.version or answer.report.driver, "max_cuda": max_cuda},
        problems=tuple(problems),
        nodes=tuple(kernel.nodes.values()),
        host_paths=frozenset(path for path in _HOST_PATHS if kernel.wsl and host.exists(path)),
    )


def _joined(kernel: Kernel, answer: Answer) -> list[tuple[GpuReport, PciDevice | None]]:
    """The driver's GPUs in its order, then those that only the bus shows (no driver, not mapped into this container)."""
    from fl.lanes.nvidia_report import GpuReport

    by_address = {device.bdf: device for device in kernel.devices}
    reported = list(answer.report.gpus)
    count = sum(1 for path in kernel.nodes if re.fullmatch(r"/dev/nvidia\d+", path))
    if answer.report.notes and count:
        reported = reported[:count]
    if len(reported) == len(by_address) == 1 and reported[0].pci is None:
        return [(reported[0], kernel.devices[0])]
    joined = [(gpu, by_address.pop(gpu.pci, None) if gpu.pci else None) for gpu in reported]
    nameless = [place for place, (gpu, device) in enumerate(joined) if device is None and gpu.pci is None]
    if len(nameless) == len(by_address):
        for place, device in zip(nameless, list(by_address.values()), strict=True):
            joined[place] = (joined[place][0], by_address.pop(device.bdf))
    start = max((gpu.index for gpu, _ in joined), default=-1) + 1
    return joined + [(GpuReport(index=start + n, pci=device.bdf), device) for n, device in enumerate(by_address.values())]


def _accelerator(kernel: Kernel, answer: Answer, gpu: GpuReport, device: PciDevice | None, index: int) -> tuple[Accelerator, list[Problem]]:
    address = gpu.pci or (device.bdf if device else None)
    name = product(gpu.name) or product(kernel.models.get(address or ""))
    arch = arch_of_capability(gpu.capability) or arch_of_device(device.device if device else gpu.device)
    arch = arch or kernel.tegra_arch or arch_of_name(name)
    minor = gpu.minor if gpu.minor is not None else kernel.minors.get(address or "")
    if minor is None and gpu in answer.report.gpus and not kernel.minors:
        minor = gpu.index
    path = "/dev/dxg" if kernel.wsl else None if minor is None else f"/dev/nvidia{minor}"
    usable, problems = usable_now(kernel, answer, gpu, device, path)
    evidence = [Evidence(f"{device.path}", f"10de:{device.device:04x}, driver {device.driver or 'none'}")] if device else []
    if kernel.version:
        evidence.append(Evidence(kernel.version_source, kernel.version))
    if path and path in kernel.nodes:
        evidence.append(Evidence(path, "opens" if kernel.nodes[path].openable else f"does not open ({kernel.nodes[path].error})"))
    if gpu in answer.report.gpus:
        evidence.append(Evidence(answer.report.source, f"index {gpu.index}: {name}"))
    accelerator = Accelerator(
        lane="cuda",
        index=index,
        name=name,
        arch=arch,
        memory_mib=gpu.memory_mib,
        uuid=gpu.uuid or kernel.uuids.get(address or ""),
        pci=address,
        numa_node=device.numa_node if device else None,
        nodes=(path,) if path and path in kernel.nodes else (),
        usable=usable,
        busy=None if kernel.wsl else gpu.busy,
        healthy=False if gpu.broken else None,
        evidence=tuple(evidence),
    )
    return accelerator, problems


def _partitions(gpu: Accelerator, report: GpuReport, start: int) -> list[Accelerator]:
    return [
        replace(
            gpu,
            index=start + n,
            memory_mib=mig.memory_mib,
            uuid=mig.uuid,
            busy=_mig_busy(report, mig),
            partition=Partition(kind="mig", profile=mig.profile, parent=report.index),
        )
        for n, mig in enumerate(report.migs)
    ]


def _mig_busy(report: GpuReport, mig: MigReport) -> bool | None:
    if report.busy is None:
        return None
    if not report.busy or mig.instance is None or not report.busy_instances:
        return report.busy
    return any(gpu == mig.instance and (part is None or mig.compute is None or part == mig.compute) for gpu, part in report.busy_instances)


def _tegra(host: Host, kernel: Kernel) -> Accelerator:
    return Accelerator(
        lane="cuda",
        index=0,
        name=known((host.read("/proc/device-tree/model").text or "").strip("\x00")),
        arch=kernel.tegra_arch,
        usable=None,
        evidence=(Evidence("/etc/nv_tegra_release", known((host.read("/etc/nv_tegra_release").text or "").split("\n")[0]) or "a Tegra"),),
    )
