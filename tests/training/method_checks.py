"""What tests of stages and methods ask inside the training environment (trainer_server.py)."""

from __future__ import annotations


def dtypes_of(path: str) -> list[str]:
    """Of all tensors of a file."""
    from safetensors.torch import load_file

    return sorted({str(tensor.dtype) for tensor in load_file(path).values()})
