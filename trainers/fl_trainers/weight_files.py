"""What a model's safetensors files say of themselves in their headers, read without the library and without torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

LONGEST = 100 * 2**20
"""Bytes of a header; the library takes no longer one."""


def tensors(path: Path) -> dict[str, Any]:
    """The tensors by name, each with dtype, shape and data_offsets. Raises ValueError where the file is not of this form."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(size, LONGEST):
            raise ValueError("its header is longer than the file")
        header = json.loads(file.read(length))
    found = {name: entry for name, entry in header.items() if name != "__metadata__"}
    end = max((entry["data_offsets"][1] for entry in found.values()), default=0)
    if size < 8 + length + end:
        raise ValueError(f"it has {size} bytes of {8 + length + end}")
    return found


def fault(path: Path) -> str | None:
    """Why a file cannot be read, or None: one that was cut off, or that is something else."""
    try:
        with path.open("rb") as file:
            if file.read(40).startswith(b"version https://git-lfs"):
                return "it is a pointer of Git LFS, not the weights: `git lfs pull`"
        tensors(path)
    except OSError as error:
        return str(error.strerror)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        return f"it is cut off or broken: {error}" if isinstance(error, ValueError) else "it is no safetensors file"
    return None


def fault_of_adapter(folder: Path) -> str | None:
    """Why the adapter in a local folder cannot be loaded, or None."""
    if not (folder / "adapter_config.json").is_file() or (folder / "adapter_model.bin").is_file():
        return None
    weights = folder / "adapter_model.safetensors"
    why = fault(weights) if weights.is_file() else "it is missing"
    return f"{weights.name}: {why}" if why else None


def fault_of_folder(folder: Path) -> tuple[str, str] | None:
    """The file of a model's folder that is missing or broken, and why; None where all are whole or the folder has none."""
    index = folder / "model.safetensors.index.json"
    names = sorted(path.name for path in folder.glob("model*.safetensors"))
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            return index.name, f"it is no index of weights: {error}"
    for name in names:
        why = fault(folder / name) if (folder / name).is_file() else "it is missing"
        if why:
            return name, why
    return None
