"""Locks: which packages an image holds, each with its hashes. Written by a resolver, never by hand; no lock names an index or a host."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from fl import paths
from fl.errors import MatrixError

if TYPE_CHECKING:
    from fl.matrix import Stack

BUILD_CONSTRAINTS: Final = paths.IMAGES / "common" / "build-constraints.txt"
"""Hashed build dependencies of the packages that are source only (DeepSpeed)."""
SOURCE_ONLY: Final = ("deepspeed",)
"""Everything else is installed from wheels."""
_PYTHON_PLATFORM: Final = {"linux/amd64": "x86_64-manylinux_2_28", "linux/arm64": "aarch64-manylinux_2_28"}
_VENDOR: Final = frozenset({"torch", "triton"})
"""What a base image with the vendor's torch brings, and no lock may replace."""
_ENTRY: Final = re.compile(r"^(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)==(?P<version>[^\s;\\]+)[^\n]*(?:\n[ \t]+[^\n]*)*", re.M)
_HASH: Final = re.compile(r"--hash=sha256:[0-9a-f]{64}\b")


def normalize(name: str) -> str:
    """A distribution's name as indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def filename(stack: str, flavor: str, platform: str) -> str:
    """Name of a lock's file; `platform` is an OCI platform."""
    return f"{stack}.{flavor}.{platform.replace('/', '-')}.txt"


def path(stack: str, flavor: str, platform: str) -> Path | None:
    """The lock of an image, or None: it has not been made (`fl images lock` says why it cannot be)."""
    found = sorted(paths.IMAGES.glob(f"*/locks/{filename(stack, flavor, platform)}"))
    return found[0] if found else None


def sha256(file: Path) -> str:
    """Hash of the file, as it stands in plans, labels and evidence."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def entries(text: str) -> dict[str, str]:
    """Normalized name → the lines of that package, hashes and all."""
    return {normalize(match["name"]): match[0] + "\n" for match in _ENTRY.finditer(text)}


def parse(text: str) -> dict[str, str]:
    """Normalized name → version."""
    return {normalize(match["name"]): match["version"] for match in _ENTRY.finditer(text)}


def problems(text: str, pins: Mapping[str, str], torch_from: str = "index") -> list[str]:
    """What is wrong with a lock, told offline: a pin of the row that it does not hold, a line without a hash, a URL.

    `pins` is distribution → exact version; what the base brings must be absent.
    """
    found = []
    versions = parse(text)
    vendor = _VENDOR if torch_from == "base" else frozenset()
    for name, wanted in pins.items():
        have = versions.get(normalize(name))
        if normalize(name) in vendor:
            continue
        if have != wanted:
            found.append(f"{name}: the row says {wanted}, the lock {have or 'nothing'}")
    found += [f"{name}: comes with the base image, and the lock would replace it" for name in sorted(vendor & versions.keys())]
    found += [f"{name}: no hash" for name, entry in entries(text).items() if not _HASH.search(entry)]
    rest = [line for line in _ENTRY.sub("", text).splitlines() if line.strip() and not line.startswith("#")]
    found += [f"not a pinned package: {line.strip()}" for line in rest]
    if "://" in text or "file:" in text:
        found.append("it names a URL")
    return found


def split(text: str) -> tuple[str, str]:
    """(torch and its runtime, everything else): two layers of an image, so that a new library does not move gigabytes."""
    heavy = re.compile(r"torch|torch-npu|pytorch-triton.*|triton.*|nvidia-.*|cuda-.*|intel-.*|onemkl-.*|oneccl.*|dpcpp-.*|tcmlib|umf|mkl|tbb|impi-rt")
    all_ = entries(text)
    first = [entry for name, entry in all_.items() if heavy.fullmatch(name)]
    return "".join(first), "".join(entry for name, entry in all_.items() if not heavy.fullmatch(name))


def inputs(pins: Mapping[str, str], own: list[str]) -> str:
    """The resolver's input: the row's exact pins and what fl itself needs inside the image."""
    return "".join(f"{line}\n" for line in sorted([f"{name}=={version}" for name, version in pins.items()]) + own)


def _metadata(torch_from: str) -> str:
    common = paths.IMAGES / "common"
    text = (common / "dependency-metadata.toml").read_text(encoding="utf-8")
    return text + ((common / "vendor-torch.toml").read_text(encoding="utf-8") if torch_from == "base" else "")


def resolve(stack: Stack, pins: Mapping[str, str], platform: str, previous: str | None = None) -> str:
    """The text of a lock, resolved against the indexes that pip uses on this machine. Metadata only, nothing is installed.

    `previous`: a lock whose versions are kept where they still fit. Raises MatrixError with the resolver's reason.
    """
    from uv import find_uv_bin

    from fl import pip_config, wheel

    with tempfile.TemporaryDirectory(prefix="fl-lock-") as name:
        folder = Path(name)
        (folder / "in.txt").write_text(inputs(pins, wheel.requirements()), encoding="utf-8")
        (folder / "uv.toml").write_text(_metadata(stack.torch_from), encoding="utf-8")
        if previous is not None:
            (folder / "lock.txt").write_text(previous, encoding="utf-8")
        command = [find_uv_bin(), "pip", "compile", "--quiet", "--config-file", "uv.toml", "--generate-hashes", "--no-header", "--no-annotate"]
        command += ["--python-version", stack.python, "--python-platform", _PYTHON_PLATFORM[platform], *pip_config.uv_flags(os.environ)]
        if stack.torch_from == "base":
            command += [word for package in sorted(_VENDOR) for word in ("--no-emit-package", package)]
        environment = {**os.environ, **pip_config.uv_environment(os.environ), "UV_PYTHON_DOWNLOADS": "never"}
        done = subprocess.run([*command, "in.txt", "-o", "lock.txt"], cwd=folder, env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise MatrixError(f"no lock for {stack.id} on {platform}: {_reason(done.stderr)}", "fl images lock --help")
        text = (folder / "lock.txt").read_text(encoding="utf-8")
    wrong = problems(text, pins, stack.torch_from)
    if wrong:
        raise MatrixError(f"no lock for {stack.id} on {platform}: " + "; ".join(wrong))
    return text


def _reason(stderr: str) -> str:
    """The resolver's last words on one line."""
    words = " ".join(stderr.split())
    return words[-600:] if words else "the resolver said nothing"


def write(stack: Stack, flavor: str, platform: str, text: str) -> Path:
    """Puts a lock where `path` finds it. Raises MatrixError in an installed fl, whose data is not the project's."""
    folder = paths.IMAGES / stack.lane / "locks"
    if not (paths.IMAGES.parent / "pyproject.toml").is_file():
        raise MatrixError("locks are part of the project: this fl is an installed one", "fl images lock   in a checkout of the project")
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / filename(stack.id, flavor, platform)
    part = target.with_suffix(".part")
    part.write_text(text, encoding="utf-8")
    part.replace(target)
    return target
