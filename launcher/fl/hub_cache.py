"""What the hub's cache holds whole. A download that was interrupted leaves a snapshot too, and a run offline would stumble over it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

_WEIGHTS: Final = (".safetensors", ".bin", ".gguf", ".pt", ".pth")


def whole(cache: Path, name: str) -> bool:
    """True when a model or data set of that name can be opened without the hub."""
    folder = name.replace("/", "--")
    return _model(cache / f"models--{folder}") or _dataset(cache / f"datasets--{folder}")


def prepared(cache: Path, name: str, subset: str | None, folder: str | None) -> bool:
    """Whether `datasets` keeps the rows of that part of a data set in `cache`, its own folder: without the hub it reads nothing else."""
    place = next((found for found in _folders(cache) if _plain(found.name) == _plain(name)), None)
    parts = {part.name for part in _folders(place) if any(part.glob("*/*/dataset_info.json"))} if place is not None else set()
    if folder is not None:
        return any("data_dir=" in part and part.startswith(subset or "default") for part in parts)
    if subset is not None:
        return any(part == subset or part.startswith(f"{subset}-") for part in parts)
    return "default" in parts or len(parts) == 1


def _folders(place: Path) -> list[Path]:
    return [found for found in place.iterdir() if found.is_dir()] if place.is_dir() else []


def _plain(name: str) -> str:
    """`datasets` writes slashes and capitals otherwise."""
    return "".join(letter for letter in name.lower() if letter.isalnum())


def _dataset(folder: Path) -> bool:
    return not _interrupted(folder) and any(any(_files(snapshot)) for snapshot in folder.glob("snapshots/*"))


def _model(folder: Path) -> bool:
    return not _interrupted(folder) and any(_loads(snapshot) for snapshot in folder.glob("snapshots/*"))


def _interrupted(folder: Path) -> bool:
    """A file that was being fetched when the download ended."""
    return any(folder.glob("blobs/*.incomplete"))


def _loads(snapshot: Path) -> bool:
    """There are weights, and every shard that an index names."""
    files = _files(snapshot)
    if not any(name.endswith(_WEIGHTS) for name in files):
        return False
    indexes = [snapshot / name for name in files if name.endswith(".index.json")]
    return all((index.parent / shard).exists() for index in indexes for shard in _shards(index))


def _files(snapshot: Path) -> list[str]:
    """Files whose content is there: the snapshot's are links to blobs."""
    return [str(file.relative_to(snapshot)) for file in snapshot.rglob("*") if file.is_file()]


def _shards(index: Path) -> set[str]:
    try:
        return {str(shard) for shard in json.loads(index.read_bytes())["weight_map"].values()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {"an index that cannot be read"}
