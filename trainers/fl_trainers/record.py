"""record.json: what of the evidence only the trainer knows. The launcher adds the rest."""

from __future__ import annotations

import importlib.metadata
import platform
from pathlib import Path
from typing import Any

from fl_trainers import artefacts
from fl_trainers.config import Config
from fl_trainers.device import Device, memory_mib
from fl_trainers.progress import finite, rank, world_size

PACKAGES = ("torch", "torch_npu", "transformers", "peft", "trl", "accelerate", "datasets", "tokenizers", "safetensors",
            "deepspeed", "bitsandbytes", "liger-kernel", "flash-attn", "triton", "numpy")  # fmt: skip


def versions() -> dict[str, str]:
    """Installed versions by distribution; what is not installed is not named."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def model_facts(config: Config, model: Any, counts: tuple[int, int], digest: str) -> dict[str, Any]:
    """The model as it was loaded."""
    return {
        "name": config.model.name, "model_type": model.config.model_type,
        "architecture": (model.config.architectures or [type(model).__name__])[0],
        "parameters": counts[0], "trainable_parameters": counts[1],
        "revision": config.model.revision if config.model.kind == "hub" else None,
        "config_sha256": digest, "dtype": str(model.dtype).removeprefix("torch."),
    }  # fmt: skip


def write(
    config: Config,
    device: Device | None,
    *,
    outcome: str,
    model: dict[str, Any] | None,
    metrics: dict[str, Any],
    failure: dict[str, str] | None,
) -> None:
    """Written at the end of every run, passed, stopped or failed; a run that failed early has less to say."""
    if rank() and outcome != "failed":
        return
    accelerator = None
    if device is not None:
        accelerator = {"name": device.name, "arch": device.arch, "count": world_size(), "type": device.type, "reasons": device.reasons}
        metrics = {**metrics, "peak_memory_mib": memory_mib(device, peak=True)}
    content = {
        "schema": 1, "outcome": outcome, "lane": config.run.lane, "stack": config.run.stack, "model": model,
        "method": {"stage": config.method.stage, "finetuning_type": config.method.finetuning_type,
                   "quantization_bit": config.model.quantization.bits if config.model.quantization else None,
                   "dtype": str(device.dtype).removeprefix("torch.") if device else None, "processes": world_size()},
        "accelerator": accelerator, "versions": versions(), "metrics": metrics, "failure": failure,
    }  # fmt: skip
    artefacts.write_json(Path(config.run.events).parent / "record.json", finite(content))
