"""Which folders a container sees. A path inside is the path outside; inputs are read-only; nothing hides the image's own files. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePosixPath

from fl.errors import RecipeError
from fl.grants import Mount

# Mounting over these would hide what the image itself needs; /root and the homes only as a whole.
_WHOLE = ("/", "/root", "/home", "/opt", "/mnt", "/media", "/srv", "/tmp", "/run", "/var")
_BELOW = ("/bin", "/boot", "/dev", "/etc", "/lib", "/lib32", "/lib64", "/opt/fl", "/opt/venv", "/proc", "/sbin", "/sys", "/usr")


def refuse(path: str) -> None:
    """RecipeError where a mount of this path would hide the image's own files."""
    place = PurePosixPath(path)
    inside = [p for p in _BELOW if place == PurePosixPath(p) or PurePosixPath(p) in place.parents]
    if path in _WHOLE or inside:
        raise RecipeError(
            f"{path} cannot be mounted into a container: the image has its own {inside[0] if inside else path}",
            "move or copy what the recipe needs to another folder, or use `--engine host`",
        )


def repository(path: str) -> str:
    """For a file or folder inside a hub snapshot the repository's folder (its links lead to ../../blobs), else the path itself."""
    parts = PurePosixPath(path).parts
    for position, part in enumerate(parts[:-1]):
        if part == "snapshots" and position and parts[position - 1].startswith(("models--", "datasets--")):
            return str(PurePosixPath(*parts[:position]))
    return path


def merge(mounts: Iterable[Mount]) -> tuple[Mount, ...]:
    """Equal and nested mounts become one, where a writable one wins; parents come before what is nested in them."""
    by_target: dict[str, Mount] = {}
    for mount in mounts:
        known = by_target.get(mount.target)
        if known is not None and known.source != mount.source:
            raise RecipeError(
                f"{mount.target} is wanted twice in the container: from {known.source} and from {mount.source}",
                "remove one of the two mounts",
            )
        if known is None or known.read_only:
            by_target[mount.target] = mount
    kept: list[Mount] = []
    for mount in sorted(by_target.values(), key=lambda m: PurePosixPath(m.target).parts):
        above = [k for k in kept if PurePosixPath(k.target) in PurePosixPath(mount.target).parents]
        parent = above[-1] if above else None
        covered = parent is not None and _same_tree(parent, mount) and (mount.read_only or not parent.read_only)
        if not covered:
            kept.append(mount)
    return tuple(kept)


def _same_tree(parent: Mount, child: Mount) -> bool:
    """True when the child's source is where the parent's mount shows it anyway."""
    below = PurePosixPath(child.target).relative_to(parent.target)
    return str(PurePosixPath(parent.source) / below) == child.source
