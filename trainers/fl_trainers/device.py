"""Device, dtype and collective backend: chosen here and nowhere else, each with its reason."""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass, field
from typing import Any

from fl_trainers.config import Config
from fl_trainers.errors import DeviceError, InputError
from fl_trainers.progress import world_size

TYPES = {"cuda": "cuda", "rocm": "cuda", "ascend": "npu", "xpu": "xpu", "cpu": "cpu"}
BACKENDS = {"cuda": "nccl", "npu": "hccl", "xpu": "xccl", "cpu": "gloo"}
PEAKS: tuple[tuple[str, float], ...] = (
    ("H200", 989.0), ("H100 PCIe", 756.0), ("H100 NVL", 835.0), ("H100", 989.0), ("A100", 312.0), ("L40S", 362.0),
    ("B200", 2250.0), ("MI300X", 1307.4), ("MI325X", 1307.4), ("MI250", 362.1), ("MI210", 181.0),
)  # fmt: skip
"""Dense bf16 TFLOP/s by a part of the device's name, from the vendors' data sheets; the first match counts."""


@dataclass(frozen=True)
class Device:
    """What this process computes on."""

    type: str
    name: str
    arch: str | None
    count: int
    dtype: Any
    """Of the frozen weights and, under autocast, of the arithmetic; trained weights are float32 unless pure_bf16 is set."""
    backend: str | None
    """Collective backend; None: one process, nothing to collect."""
    reasons: dict[str, str] = field(default_factory=dict)

    @property
    def peak_flops(self) -> float | None:
        """Dense bf16 FLOP/s of one device where the data sheet is known."""
        return next((tflops * 1e12 for part, tflops in PEAKS if part in self.name), None)


def choose(config: Config) -> Device:
    """Opens the lane's device; torch is imported here for the first time.

    Raises DeviceError when the lane's device does not answer: training on the CPU instead would surprise.
    """
    import torch

    kind = TYPES[config.run.lane]
    if kind == "npu":
        _import_npu()
    if config.run.threads or config.model.kind == "tiny":
        torch.set_num_threads(config.run.threads or 1)  # layers of width 64: threads would wait longer than they compute
    module = None if kind == "cpu" else getattr(torch, kind)
    if module is not None and not module.is_available():
        raise DeviceError(
            f"lane {config.run.lane}: torch {torch.__version__} finds no {kind} device in this environment",
            "`fl doctor` checks drivers and device nodes; `--hw cpu` trains on the processor",
        )
    dtype, why = _dtype(config, kind, torch)
    backend = BACKENDS[kind] if world_size() > 1 else None
    reasons = {
        "device": f"lane {config.run.lane}" + (f" is torch.{kind}" if module is not None else ""),
        "dtype": why,
        "backend": f"{world_size()} processes on {kind}" if backend else "one process",
    }
    if module is None:
        return Device("cpu", _processor(), None, 1, dtype, backend, reasons)
    index = int(os.environ.get("LOCAL_RANK", "0"))
    module.set_device(index)
    if kind == "cuda" and not (config.data.packing or config.data.neat_packing) and torch.version.hip is None:
        torch.backends.cuda.enable_cudnn_sdp(False)
        reasons["attention"] = "cuDNN attention off: it plans anew for every sequence length, and unpacked batches have many"
    return Device(kind, module.get_device_name(index), _arch(kind, module, index, torch), module.device_count(), dtype, backend, reasons)


def _import_npu() -> None:
    try:
        importlib.import_module("torch_npu")
    except ImportError as error:
        raise DeviceError(f"lane ascend: torch_npu cannot be imported: {error}", "`fl doctor` checks CANN and its environment") from error


def _arch(kind: str, module: Any, index: int, torch: Any) -> str | None:
    """`sm_90`, `gfx942`, or None where torch does not tell."""
    if kind != "cuda":
        return None
    properties = module.get_device_properties(index)
    if torch.version.hip is not None:  # elsewhere gcnArchName holds the device's name
        return str(properties.gcnArchName).split(":")[0]
    return f"sm_{properties.major}{properties.minor}"


def _processor() -> str:
    import platform

    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()


def _dtype(config: Config, kind: str, torch: Any) -> tuple[Any, str]:
    """What the recipe says; float32 where it says nothing. (LLaMA-Factory keeps frozen weights in the format they were saved in then.)"""
    arguments = config.training.arguments
    if config.method.pure_bf16 or arguments.get("bf16"):
        if kind not in ("cpu", "npu") and not getattr(torch, kind).is_bf16_supported():
            raise InputError(f"bf16: true, but this {kind} device does not compute in bfloat16", "use fp16: true or leave both out")
        return torch.bfloat16, "pure_bf16: true" if config.method.pure_bf16 else "bf16: true"
    if arguments.get("fp16"):
        if kind == "cpu":
            raise InputError("fp16: true, but the CPU has no float16 training", "use bf16: true or leave both out")
        return torch.float16, "fp16: true"
    return torch.float32, "neither bf16 nor fp16 is set"


def memory_mib(device: Device, *, peak: bool = False) -> float:
    """Device memory held by this process; on the CPU the resident (or, asked for, the largest resident) size. In MiB."""
    import torch

    if device.type != "cpu":
        module = getattr(torch, device.type)
        return float(round((module.max_memory_allocated() if peak else module.memory_allocated()) / 2**20, 1))
    if peak:
        import resource

        return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10, 1)
    try:
        with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123
            return round(int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20, 1)
    except OSError:
        return 0.0
