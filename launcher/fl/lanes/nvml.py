"""Asks NVML and prints one JSON object. Run as a child process (`python -m fl.lanes.nvml`), because the driver may hang.

Then it is killed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

_MODES = {0: "Default", 2: "Prohibited", 3: "Exclusive_Process"}
_FABRIC = {1: "Not Started", 2: "In Progress", 3: "Completed"}


def main() -> int:
    """0 with the JSON on stdout; NVML's error number (1..100), or 127 where the library is missing, with the reason on stderr."""
    try:
        import pynvml
    except ImportError as error:
        sys.stderr.write(f"{error}\n")
        return 127
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        sys.stderr.write(f"{error}\n")
        return 127 if error.value == pynvml.NVML_ERROR_LIBRARY_NOT_FOUND else min(int(error.value), 100)
    value = ask(pynvml)
    sys.stdout.write(json.dumps(value) + "\n")
    return 0


def ask(nvml: Any) -> dict[str, Any]:
    """Driver, highest CUDA, and every GPU with its MIG devices. What NVML refuses is null."""
    cuda = _try(nvml, nvml.nvmlSystemGetCudaDriverVersion)
    return {
        "driver": _try(nvml, nvml.nvmlSystemGetDriverVersion),
        "max_cuda": f"{cuda // 1000}.{cuda % 1000 // 10}" if isinstance(cuda, int) and cuda > 0 else None,
        "gpus": [_gpu(nvml, index) for index in range(_try(nvml, nvml.nvmlDeviceGetCount) or 0)],
    }


def _try(nvml: Any, function: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except nvml.NVMLError:
        return None


def _gpu(nvml: Any, index: int) -> dict[str, Any]:
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
    except nvml.NVMLError as error:
        return {"index": index, "broken": str(error)}
    memory, pci = _try(nvml, nvml.nvmlDeviceGetMemoryInfo, handle), _try(nvml, nvml.nvmlDeviceGetPciInfo, handle)
    capability, mig = _try(nvml, nvml.nvmlDeviceGetCudaComputeCapability, handle), _try(nvml, nvml.nvmlDeviceGetMigMode, handle)
    processes = _try(nvml, nvml.nvmlDeviceGetComputeRunningProcesses, handle)
    enabled = bool(mig and mig[0])
    return {
        "index": index,
        "name": _try(nvml, nvml.nvmlDeviceGetName, handle),
        "uuid": _try(nvml, nvml.nvmlDeviceGetUUID, handle),
        "pci": pci.busId if pci else None,
        "device": pci.pciDeviceId >> 16 if pci else None,
        "minor": _try(nvml, nvml.nvmlDeviceGetMinorNumber, handle),
        "memory_mib": memory.total >> 20 if memory else None,
        "capability": f"{capability[0]}.{capability[1]}" if capability else None,
        "compute_mode": _MODES.get(_try(nvml, nvml.nvmlDeviceGetComputeMode, handle)),
        "fabric": _fabric(nvml, handle),
        "mig": enabled if mig else None,
        "migs": _migs(nvml, handle) if enabled else [],
        "processes": None if processes is None else [{"instance": _instance(process)} for process in processes],
    }


def _instance(process: Any) -> int | None:
    number = getattr(process, "gpuInstanceId", None)
    return number if isinstance(number, int) and number < 0xFFFFFFFF else None


def _fabric(nvml: Any, handle: Any) -> str | None:
    if not hasattr(nvml, "c_nvmlGpuFabricInfo_t"):
        return None
    info = nvml.c_nvmlGpuFabricInfo_t()
    _try(nvml, nvml.nvmlDeviceGetGpuFabricInfo, handle, info)
    return _FABRIC.get(int(info.state))


def _migs(nvml: Any, handle: Any) -> list[dict[str, Any]]:
    found = []
    for number in range(_try(nvml, nvml.nvmlDeviceGetMaxMigDeviceCount, handle) or 0):
        mig = _try(nvml, nvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, number)
        if mig is None:
            continue
        memory, name = _try(nvml, nvml.nvmlDeviceGetMemoryInfo, mig), _try(nvml, nvml.nvmlDeviceGetName, mig)
        found.append(
            {
                "number": number,
                "uuid": _try(nvml, nvml.nvmlDeviceGetUUID, mig),
                "instance": _try(nvml, nvml.nvmlDeviceGetGpuInstanceId, mig),
                "profile": name.split("MIG ", 1)[1] if name and "MIG " in name else None,
                "memory_mib": memory.total >> 20 if memory else None,
            }
        )
    return found


if __name__ == "__main__":
    sys.exit(main())
