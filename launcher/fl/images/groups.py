"""A lock's packages by the layer that installs them: what is heavy and rarely new lies below what changes often. Pure."""

from __future__ import annotations

import re
from typing import Final

from fl.images import lock

_TORCH: Final = re.compile(r"torch|torch-npu|(pytorch-)?triton.*")
_RUNTIME: Final = re.compile(rf"{lock.CUDA.pattern}|(intel|onemkl|oneccl|dpcpp|impi)-.*|mkl|tbb|tcmlib|umf")
_FOLDER: Final = re.compile(r"--mount=type=bind,source=([a-z]+),")


def folders(dockerfile: str) -> list[str]:
    """The folders of the context that a Dockerfile binds, in its order, each once."""
    return list(dict.fromkeys(_FOLDER.findall(dockerfile)))


def split(text: str, names: list[str]) -> dict[str, str]:
    """Folder → its part of a lock, for those of `runtime` (the vendor's libraries) and `torch` that are asked for.

    Without a folder of its own, the runtime goes where torch goes.
    """
    found: dict[str, str] = {name: "" for name in ("runtime", "torch") if name in names}
    for name, entry in lock.entries(text).items():
        place = "torch" if _TORCH.fullmatch(name) else "runtime" if _RUNTIME.fullmatch(name) else None
        if place == "runtime" and place not in found:
            place = "torch"
        if place in found:
            found[place] += entry
    return found
