"""Locks: which packages an image holds, each with its hashes. Written by a resolver, never by hand; no lock names an index or a host."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from fl import paths, whole
from fl.errors import MatrixError

if TYPE_CHECKING:
    from fl.matrix import Flavor, Matrix, Stack

BUILD_CONSTRAINTS: Final = paths.IMAGES / "common" / "build-constraints.txt"
"""Hashed build dependencies of the packages that are source only (DeepSpeed)."""
SOURCE_ONLY: Final = ("deepspeed", "flash-attn")
"""Packages without wheels on the index, whose metadata stand in `common/dependency-metadata.toml`. All others come as wheels."""
VENDOR: Final = frozenset({"torch", "triton"})
"""What a base image with the vendor's torch brings, and no lock may replace."""
CUDA: Final = re.compile(r"nvidia-(?!ml-py).*|cuda-.*")
_ENTRY: Final = re.compile(r"^(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)==(?P<version>[^\s;\\]+)[^\n]*(?:\n[ \t]+[^\n]*)*", re.M)
_PARTIAL: Final = ("# unlocked:", "# state: partial")
_HASH: Final = re.compile(r"--hash=sha256:[0-9a-f]{64}\b")


def normalize(name: str) -> str:
    """A distribution's name as indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def filename(stack: str, flavor: str, platform: str) -> str:
    """Name of a lock's file; `platform` is an OCI platform."""
    return f"{stack}.{flavor}.{platform.replace('/', '-')}.txt"


def path(stack: str, flavor: str, platform: str, *, partial: bool = False) -> Path | None:
    """The lock of an image, or None: it has not been made (`fl images lock` says why it cannot be).

    `partial`: also one that lacks packages whose index could not be reached. Such a lock makes no image and no environment by itself.
    """
    found = sorted(paths.IMAGES.glob(f"*/locks/{filename(stack, flavor, platform)}"))
    return found[0] if found and (partial or not is_partial(found[0].read_text(encoding="utf-8"))) else None


def state(stack: str, flavor: str, platform: str) -> str:
    """`complete`, `partial` or `absent`."""
    return "complete" if path(stack, flavor, platform) else "partial" if path(stack, flavor, platform, partial=True) else "absent"


def is_partial(text: str) -> bool:
    """Whether the header lists packages that are not locked, however little else is left of it."""
    return text.startswith(_PARTIAL) or any(f"\n{line}" in text for line in _PARTIAL)  # by a pattern it takes a hundred times as long


def sha256(file: Path) -> str:
    """Hash of the file, as it stands in plans, labels and evidence."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def entries(text: str) -> dict[str, str]:
    """Normalized name → the lines of that package, hashes and all."""
    return {normalize(match["name"]): match[0] + "\n" for match in _ENTRY.finditer(text)}


def parse(text: str) -> dict[str, str]:
    """Normalized name → version."""
    return {normalize(match["name"]): match["version"] for match in _ENTRY.finditer(text)}


def problems(text: str, pins: Mapping[str, str], stack: Stack) -> list[str]:
    """What is wrong with a lock, told offline: a pin of the row that it does not hold, another build of torch, a line without a
    hash, a URL. `pins` is distribution → exact version; what the base brings must be absent.
    """
    found = []
    versions = parse(text)
    vendor = VENDOR if stack.torch_from == "base" else frozenset()
    for name, wanted in pins.items():
        have = versions.get(normalize(name), "")
        local = stack.index is not None and have.startswith(f"{wanted}+")
        if normalize(name) not in vendor and have != wanted and not local:
            found.append(f"{name}: the row says {wanted}, the lock {have or 'nothing'}")
    found += [f"{name}: comes with the base image, and the lock would replace it" for name in sorted(vendor & versions.keys())]
    if (vendor or stack.index) and "cuda" not in stack.runtime and any(CUDA.fullmatch(name) for name in versions):
        found.append(f"it holds the ordinary index's torch, which is a CUDA build; the row wants that of {stack.index or 'the base'}")
    found += [f"{name}: no hash" for name, entry in entries(text).items() if not _HASH.search(entry)]
    rest = [line for line in _ENTRY.sub("", text).splitlines() if line.strip() and not line.startswith("#")]
    found += [f"not a pinned package: {line.strip()}" for line in rest]
    if "://" in text or "file:" in text:
        found.append("it names a URL")
    return found


def inputs(pins: Mapping[str, str], own: list[str]) -> str:
    """The resolver's input: the row's exact pins and what fl itself needs inside the image."""
    return "".join(f"{line}\n" for line in sorted([f"{name}=={version}" for name, version in pins.items()]) + own)


def resolve(matrix: Matrix, stack: Stack, flavor: Flavor, platform: str, previous: str | None = None) -> str:
    """The whole text of a lock, header and all; see `lock_resolve`. Raises MatrixError with the resolver's reason.

    `previous`: a lock whose versions are kept where they still fit.
    """
    from fl.images import lock_resolve

    return lock_resolve.resolve(matrix, stack, flavor, platform, previous)


def _compile(stack: Stack, pins: Mapping[str, str], platform: str, previous: str | None, index: str | None) -> str:
    """The packages alone, of whatever day. MatrixError with the resolver's reason."""
    from fl.images import lock_resolve

    return lock_resolve.ask(lock_resolve.Question(stack=stack, pins=pins, platform=platform, previous=previous), index)


def place(stack: Stack, flavor: str, platform: str) -> Path:
    """Where the lock of an image stands, or will."""
    return paths.IMAGES / stack.lane / "locks" / filename(stack.id, flavor, platform)


def of_project() -> None:
    """MatrixError in an installed fl: its matrix and locks are not the project's."""
    if not (paths.IMAGES.parent / "pyproject.toml").is_file():
        raise MatrixError("locks are part of the project: this fl is an installed one", "the same command in a checkout of the project")


def write(stack: Stack, flavor: str, platform: str, text: str) -> Path:
    """Puts a lock where `path` finds it. Raises MatrixError in an installed fl, whose data is not the project's, and
    where it cannot be written."""
    target = place(stack, flavor, platform)
    of_project()
    whole.write({target: text}, MatrixError, f"fl images lock {stack.id}")
    return target
