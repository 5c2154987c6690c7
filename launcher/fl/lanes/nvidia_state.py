"""Whether an NVIDIA GPU can be used, and what is wrong where it cannot. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fl.hardware import Accelerator, Problem
from fl.lanes.nvidia_kernel import Kernel
from fl.lanes.pci import PciDevice

if TYPE_CHECKING:
    from fl.lanes.nvidia_report import GpuReport
    from fl.lanes.nvidia_tools import Answer


def usable_now(
    kernel: Kernel, answer: Answer, gpu: GpuReport, device: PciDevice | None, path: str | None
) -> tuple[bool | None, list[Problem]]:
    """Presence, access and answer are three facts: the nodes open, the driver answers or no source contradicts."""
    where = f"GPU {gpu.index}" + (f" ({gpu.pci or (device.bdf if device else '')})" if gpu.pci or device else "")
    if not kernel.loaded and not kernel.wsl and device is not None and not kernel.nodes:
        return False, []
    if answer.failure == "mismatch":
        return False, []
    if device is not None and device.driver not in (None, "nvidia"):
        return False, [
            problem(
                "no-driver",
                "warning",
                f"{where} belongs to the kernel driver {device.driver}, not to NVIDIA's",
                "With vfio-pci it is meant for a virtual machine; to use it here, bind it to the nvidia driver.",
            )
        ] if kernel.loaded else []
    if gpu.broken:
        return False, [
            problem(
                "device-unhealthy",
                "error",
                f"{where} answers with an error: {gpu.broken}",
                f"Reset it (`sudo nvidia-smi -r -i {gpu.index}`) or restart the machine; `dmesg | grep Xid` says what happened.",
            )
        ]
    if gpu.fabric in ("Not Started", "In Progress"):
        return False, [
            problem(
                "fabric-not-ready",
                "error",
                f"the NVLink fabric is not ready (state of {where}: {gpu.fabric})",
                "Start the fabric manager: `sudo systemctl start nvidia-fabricmanager`.",
            )
        ]
    if gpu.compute_mode == "Prohibited":
        return False, [
            problem("exclusive-mode", "error", f"{where} is in compute mode Prohibited", f"`sudo nvidia-smi -i {gpu.index} -c DEFAULT`")
        ]
    shared = [kernel.nodes[p] for p in ("/dev/nvidiactl", path or "") if p in kernel.nodes]
    closed = [node for node in shared if node.openable is False]
    if closed:
        return False, [
            problem(
                "no-permission",
                "error",
                f"{closed[0].path} cannot be opened ({closed[0].error or 'refused'})",
                f"`ls -l {closed[0].path}` shows who may; ask for that group, or inside a container start it with the device.",
            )
        ]
    cards = [p for p in kernel.nodes if re.fullmatch(r"/dev/(nvidia\d+|dxg)", p)]
    if (path not in kernel.nodes if path else not cards) and (kernel.loaded or kernel.nodes) and not kernel.tegra:
        return False, [
            problem(
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
        problem(
            "exclusive-mode",
            "warning",
            f"{where} is in compute mode Exclusive_Process: one process may use it",
            f"`sudo nvidia-smi -i {gpu.index} -c DEFAULT`",
        )
    ]


def unmapped(problems: Sequence[Problem], accelerators: Sequence[Accelerator]) -> list[Problem]:
    """One problem for all GPUs without a node: a container that was given some of the host's GPUs sees the others on the bus."""
    missing = [one for one in problems if one.code == "nodes-missing"]
    if not missing:
        return list(problems)
    some = any(a.usable is not False for a in accelerators)
    more = f", and so for {len(missing) - 1} more" if len(missing) > 1 else ""
    told = problem("nodes-missing", "warning" if some else "error", missing[0].message + more, missing[0].remedy)
    return [*(one for one in problems if one.code != "nodes-missing"), told]


def without_mig_devices(index: int, listed: bool) -> Problem:
    """MIG is on: CUDA sees the MIG devices and never the whole GPU. `listed`: the driver was asked for them, and has none."""
    found = "but it has no MIG device: CUDA finds nothing there" if listed else "its MIG devices are not known"
    return problem(
        "partition-mixed",
        "warning",
        f"MIG is on for GPU {index}, {found}",
        "Create one with `sudo nvidia-smi mig -cgi …`, or switch MIG off: `sudo nvidia-smi -mig 0`." if listed else "nvidia-smi -L",
    )


def mixed(accelerators: Sequence[Accelerator]) -> list[Problem]:
    """MIG devices that differ, or that lie beside whole GPUs."""
    kinds = {(a.partition.profile if a.partition else None, a.partition is not None) for a in accelerators}
    sizes = {round((a.memory_mib or 0) / 512) for a in accelerators if a.partition}
    if not any(a.partition for a in accelerators) or (len(kinds) == 1 and len(sizes) == 1):
        return []
    return [
        problem(
            "partition-mixed",
            "warning",
            "MIG devices of unequal size, or beside whole GPUs",
            "Choose equal ones with `--devices`; one process uses one MIG device.",
        )
    ]


def driver_problems(kernel: Kernel, answer: Answer) -> list[Problem]:
    """What is wrong with the driver as a whole."""
    found: list[Problem] = []
    if kernel.devices and not kernel.loaded and not kernel.nodes and not answer.report.gpus:
        other = next((device.driver for device in kernel.devices if device.driver), None)
        found.append(
            problem(
                "no-driver",
                "error",
                "an NVIDIA GPU is present, its kernel driver is not loaded" + (f" ({other} has it)" if other else ""),
                "Install NVIDIA's driver, or load it: `sudo modprobe nvidia`.",
            )
        )
    elif kernel.devices and answer.failure == "no-driver" and not kernel.loaded:
        found.append(problem("no-driver", "error", "an NVIDIA GPU is present, its kernel driver does not answer", "`sudo modprobe nvidia`"))
    elif answer.failure == "mismatch":
        found.append(
            problem(
                "driver-library-mismatch",
                "error",
                f"the loaded kernel module is {kernel.version or 'of another version'}, the driver's libraries are newer or older"
                + (f" ({answer.detail})" if answer.detail else ""),
                "Restart the machine: a driver update waits for it.",
            )
        )
    elif answer.failure == "slow":
        found.append(
            problem(
                "driver-slow",
                "warning",
                "the NVIDIA driver gave no answer in time",
                "Turn persistence on (`sudo nvidia-smi -pm 1`, or the nvidia-persistenced service) and try again.",
            )
        )
    elif answer.failure in ("failed", "no-driver", "no-library") and (kernel.devices or kernel.loaded):
        found.append(
            problem(
                "tool-failed",
                "warning",
                f"NVIDIA's driver could not be asked: {answer.detail or answer.failure}",
                "Run `nvidia-smi` by hand, and look at `sudo dmesg`.",
            )
        )
    if answer.report.malformed:
        found.append(
            problem(
                "redacted-or-malformed",
                "warning",
                f"{answer.report.source}: {answer.report.malformed}",
                "Run the tool by hand; a wrapper may cut or change its output.",
            )
        )
    return found


def problem(code: str, severity: str, message: str, remedy: str) -> Problem:
    """A problem of this lane."""
    return Problem(code=code, severity="error" if severity == "error" else "warning", lane="cuda", message=message, remedy=remedy)
