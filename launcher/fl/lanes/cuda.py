"""NVIDIA: what the kernel shows, what the driver says, and what a container needs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from fl.hardware import Accelerator, Detection, Evidence, Node, Partition, Problem
from fl.host import Host
from fl.lanes import pci
from fl.lanes.cuda_grants import grants, visibility
from fl.lanes.nvidia_chips import arch_of_capability, arch_of_device, arch_of_name
from fl.lanes.pci import PciDevice
from fl.lanes.values import bdf, known, version, whole

if TYPE_CHECKING:  # the tools' parsers are loaded where there is something to ask
    from fl.lanes.nvidia_report import GpuReport, MigReport
    from fl.lanes.nvidia_tools import Answer

__all__ = ["DRIVER", "EXCLUSIVE", "PARTITIONS_TOGETHER", "TITLE", "VARIABLES", "detect", "grants", "visibility"]

TITLE = "NVIDIA"
DRIVER = "nvidia"
EXCLUSIVE = False
PARTITIONS_TOGETHER = False
VARIABLES = ("CUDA_VISIBLE_DEVICES",)
_VENDOR: Final = 0x10DE
_MODULE_LINE: Final = re.compile(r"Kernel Module(?: for \S+)?\s+(\d{1,4}(?:\.\d{1,6}){1,2})\b")
_COMPANIONS: Final = re.compile(r"nvidia(ctl|-uvm|-uvm-tools|-modeset)")
_TEGRA: Final = (("tegra264", "sm_110"), ("tegra234", "sm_87"), ("tegra194", "sm_72"), ("tegra186", "sm_62"), ("tegra210", "sm_53"))
_HOST_PATHS: Final = ("/usr/lib/wsl",)


@dataclass(frozen=True, slots=True)
class Kernel:
    """What the kernel shows of NVIDIA without asking the driver."""

    devices: tuple[PciDevice, ...]
    loaded: bool
    version: str | None
    version_source: str
    tegra: bool
    minors: dict[str, int]
    """PCI address → number of its /dev/nvidiaN."""
    models: dict[str, str]
    nodes: dict[str, Node]

    @property
    def wsl(self) -> bool:
        """Windows' driver, seen through /dev/dxg: there are no /dev/nvidia nodes and no kernel module."""
        return "/dev/dxg" in self.nodes


def detect(host: Host) -> Detection:
    """GPUs and MIG devices, in the order of nvidia-smi."""
    kernel = _kernel(host)
    if host.live and not (kernel.devices or kernel.loaded or kernel.nodes):
        return Detection()
    from fl.lanes.nvidia_tools import ask

    answer = ask(host, kernel.loaded or kernel.wsl or bool(kernel.nodes))
    if not (kernel.devices or kernel.loaded or kernel.nodes or answer.report.gpus):
        return Detection()
    problems = _driver_problems(kernel, answer)
    accelerators: list[Accelerator] = []
    for gpu, device in _joined(kernel, answer):
        whole_gpu, more = _accelerator(kernel, answer, gpu, device, len(accelerators))
        problems += [problem for problem in more if problem not in problems]
        parts = _partitions(whole_gpu, gpu, len(accelerators))
        accelerators += parts or [whole_gpu]
        if gpu.mig and not parts:
            problems.append(
                _problem(
                    "partition-mixed",
                    "warning",
                    f"MIG is on for GPU {gpu.index}, but it has no MIG device",
                    "Create one with `sudo nvidia-smi mig -cgi …`, or switch MIG off: `sudo nvidia-smi -mig 0`.",
                )
            )
    if not accelerators and kernel.tegra:
        accelerators.append(_tegra(host))
    problems += _mixed(accelerators)
    max_cuda = None if answer.report.max_cuda is None else ".".join(answer.report.max_cuda.split(".")[:2])
    return Detection(
        accelerators=tuple(accelerators),
        driver={"version": kernel.version or answer.report.driver, "max_cuda": max_cuda},
        problems=tuple(problems),
        nodes=tuple(kernel.nodes.values()),
        host_paths=frozenset(path for path in _HOST_PATHS if kernel.wsl and host.exists(path)),
    )


def _kernel(host: Host) -> Kernel:
    line = (host.read("/proc/driver/nvidia/version").text or "").split("\n")[0]
    match = _MODULE_LINE.search(line)
    module = version(host.read("/sys/module/nvidia/version").text)
    tegra = host.exists("/etc/nv_tegra_release") or (match is not None and int(match[1].split(".")[0]) < 100)
    found = module or (match[1] if match and not tegra else None)
    names = [
        name for name in host.node_names("/dev") if re.fullmatch(r"nvidia\d{1,4}", name) or _COMPANIONS.fullmatch(name) or name == "dxg"
    ]
    paths = [f"/dev/{name}" for name in names] + [f"/dev/nvidia-caps/{name}" for name in host.node_names("/dev/nvidia-caps")]
    minors, models = {}, {}
    for name in host.names("/proc/driver/nvidia/gpus"):
        text = host.read(f"/proc/driver/nvidia/gpus/{name}/information").text or ""
        fields = {key.strip(): value.strip() for key, colon, value in (row.partition(":") for row in text.splitlines()) if colon}
        address, minor = bdf(name), whole(fields.get("Device Minor"), 4)
        if address and minor is not None:
            minors[address] = minor
        if address and (model := known(fields.get("Model"))):
            models[address] = model
    devices = pci.of_vendor(host, _VENDOR)
    numbers = sorted(int(name[6:]) for name in names if re.fullmatch(r"nvidia\d{1,4}", name))
    bound = [device for device in devices if device.driver == "nvidia"]
    if not minors and len(bound) == len(numbers):
        minors = {device.bdf: number for device, number in zip(bound, numbers, strict=True)}
    return Kernel(
        devices=devices,
        loaded=bool(line or module),
        version=found,
        tegra=tegra,
        minors=minors,
        models=models,
        version_source="/sys/module/nvidia/version" if module else "/proc/driver/nvidia/version",
        nodes={node.path: node for path in paths if (node := host.node(path)) is not None},
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
    name = gpu.name or kernel.models.get(address or "")
    arch = arch_of_capability(gpu.capability) or arch_of_device(device.device if device else gpu.device) or arch_of_name(name)
    minor = gpu.minor if gpu.minor is not None else kernel.minors.get(address or "")
    if minor is None and gpu in answer.report.gpus and not kernel.minors:
        minor = gpu.index
    path = "/dev/dxg" if kernel.wsl else None if minor is None else f"/dev/nvidia{minor}"
    usable, problems = _usable(kernel, answer, gpu, device, path)
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
        uuid=gpu.uuid,
        pci=address,
        numa_node=device.numa_node if device else None,
        nodes=(path,) if path and path in kernel.nodes else (),
        usable=usable,
        busy=None if kernel.wsl else gpu.busy,
        healthy=False if gpu.broken else None,
        evidence=tuple(evidence),
    )
    return accelerator, problems


def _usable(
    kernel: Kernel, answer: Answer, gpu: GpuReport, device: PciDevice | None, path: str | None
) -> tuple[bool | None, list[Problem]]:
    """Presence, access and answer are three facts: the nodes open, the driver answers or no source contradicts."""
    where = f"GPU {gpu.index}" + (f" ({gpu.pci or (device.bdf if device else '')})" if gpu.pci or device else "")
    if not kernel.loaded and not kernel.wsl and device is not None and not kernel.nodes:
        return False, []
    if answer.failure == "mismatch" or (device is not None and device.driver not in (None, "nvidia")):
        return False, []
    if gpu.broken:
        return False, [
            _problem(
                "device-unhealthy",
                "error",
                f"{where} answers with an error: {gpu.broken}",
                f"Reset it (`sudo nvidia-smi -r -i {gpu.index}`) or restart the machine; `dmesg | grep Xid` says what happened.",
            )
        ]
    if gpu.fabric in ("Not Started", "In Progress"):
        return False, [
            _problem(
                "fabric-not-ready",
                "error",
                f"the NVLink fabric is not ready (state of {where}: {gpu.fabric})",
                "Start the fabric manager: `sudo systemctl start nvidia-fabricmanager`.",
            )
        ]
    if gpu.compute_mode == "Prohibited":
        return False, [
            _problem("exclusive-mode", "error", f"{where} is in compute mode Prohibited", f"`sudo nvidia-smi -i {gpu.index} -c DEFAULT`")
        ]
    shared = [kernel.nodes[p] for p in ("/dev/nvidiactl", path or "") if p in kernel.nodes]
    closed = [node for node in shared if node.openable is False]
    if closed:
        return False, [
            _problem(
                "no-permission",
                "error",
                f"{closed[0].path} cannot be opened ({closed[0].error or 'refused'})",
                f"`ls -l {closed[0].path}` shows who may; ask for that group, or inside a container start it with the device.",
            )
        ]
    cards = [p for p in kernel.nodes if re.fullmatch(r"/dev/(nvidia\d+|dxg)", p)]
    if (path not in kernel.nodes if path else not cards) and (kernel.loaded or kernel.nodes) and not kernel.tegra:
        return False, [
            _problem(
                "nodes-missing",
                "error",
                f"the driver is loaded, but {path or '/dev/nvidia0'} of {where} is not here",
                "In a container: start it with the GPU (`--gpus`, or a CDI device). On the host: `sudo nvidia-modprobe -u -c=0`.",
            )
        ]
    if answer.failure == "slow" or answer.failure in ("failed", "no-library", "no-driver"):
        return None, []
    if path is None or not kernel.nodes:
        return None, []  # native Windows, or nothing tells which node is this GPU's
    return True, _exclusive(gpu, where)


def _exclusive(gpu: GpuReport, where: str) -> list[Problem]:
    if gpu.compute_mode != "Exclusive_Process":
        return []
    return [
        _problem(
            "exclusive-mode",
            "warning",
            f"{where} is in compute mode Exclusive_Process: one process may use it",
            f"`sudo nvidia-smi -i {gpu.index} -c DEFAULT`",
        )
    ]


def _partitions(gpu: Accelerator, report: GpuReport, start: int) -> list[Accelerator]:
    from dataclasses import replace

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
    return (mig.instance in report.busy_instances) if report.busy and mig.instance is not None else report.busy


def _mixed(accelerators: Sequence[Accelerator]) -> list[Problem]:
    kinds = {(a.partition.profile if a.partition else None, a.partition is not None) for a in accelerators}
    sizes = {round((a.memory_mib or 0) / 512) for a in accelerators if a.partition}
    if not any(a.partition for a in accelerators) or (len(kinds) == 1 and len(sizes) == 1):
        return []
    return [
        _problem(
            "partition-mixed",
            "warning",
            "MIG devices of unequal size, or beside whole GPUs",
            "Choose equal ones with `--devices`; one process uses one MIG device.",
        )
    ]


def _driver_problems(kernel: Kernel, answer: Answer) -> list[Problem]:
    found: list[Problem] = []
    if kernel.devices and not kernel.loaded and not kernel.nodes and not answer.report.gpus:
        other = next((device.driver for device in kernel.devices if device.driver), None)
        found.append(
            _problem(
                "no-driver",
                "error",
                "an NVIDIA GPU is present, its kernel driver is not loaded" + (f" ({other} has it)" if other else ""),
                "Install NVIDIA's driver, or load it: `sudo modprobe nvidia`.",
            )
        )
    elif kernel.devices and answer.failure == "no-driver" and not kernel.loaded:
        found.append(
            _problem("no-driver", "error", "an NVIDIA GPU is present, its kernel driver does not answer", "`sudo modprobe nvidia`")
        )
    elif answer.failure == "mismatch":
        found.append(
            _problem(
                "driver-library-mismatch",
                "error",
                f"the loaded kernel module is {kernel.version or 'of another version'}, the driver's libraries are newer or older"
                + (f" ({answer.detail})" if answer.detail else ""),
                "Restart the machine: a driver update waits for it.",
            )
        )
    elif answer.failure == "slow":
        found.append(
            _problem(
                "driver-slow",
                "warning",
                "the NVIDIA driver gave no answer in time",
                "Turn persistence on (`sudo nvidia-smi -pm 1`, or the nvidia-persistenced service) and try again.",
            )
        )
    elif answer.failure in ("failed", "no-driver", "no-library") and (kernel.devices or kernel.loaded):
        found.append(
            _problem(
                "tool-failed",
                "warning",
                f"NVIDIA's driver could not be asked: {answer.detail or answer.failure}",
                "Run `nvidia-smi` by hand, and look at `sudo dmesg`.",
            )
        )
    if answer.report.malformed:
        found.append(
            _problem(
                "redacted-or-malformed",
                "warning",
                f"{answer.report.source}: {answer.report.malformed}",
                "Run the tool by hand; a wrapper may cut or change its output.",
            )
        )
    return found


def _tegra(host: Host) -> Accelerator:
    compatible = host.read("/proc/device-tree/compatible").text or ""
    return Accelerator(
        lane="cuda",
        index=0,
        name=known((host.read("/proc/device-tree/model").text or "").strip("\x00")),
        arch=next((arch for chip, arch in _TEGRA if chip in compatible), None),
        usable=None,
        evidence=(Evidence("/etc/nv_tegra_release", known((host.read("/etc/nv_tegra_release").text or "").split("\n")[0]) or "a Tegra"),),
    )


def _problem(code: str, severity: str, message: str, remedy: str) -> Problem:
    return Problem(code=code, severity="error" if severity == "error" else "warning", lane="cuda", message=message, remedy=remedy)
