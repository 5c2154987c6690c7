"""What an image is made from as one hash, which the image carries: a build of the same inputs is the image that stands.

The builder would find the same in its cache, later and with another id: it may keep two records of one step, whose times differ.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from fl import wheel
from fl.engines import daemon
from fl.images.build_log import Step

LABEL: Final = "fl.inputs.sha256"
_STAGE: Final = re.compile(r"^FROM (\S+) AS (\S+)$", re.M)
_MAKES: Final = re.compile(r"^(RUN|COPY|ADD|WORKDIR)\b", re.M)


def files(context: Path, folders: Mapping[str, Path]) -> dict[str, str]:
    """Name → hash of what the steps see. Wheels count by name and size: the lock, which is among the files, has their hashes.

    What the site says of its package index is left out: where files come from is no input, their hashes are.
    """
    found = {str(file.relative_to(context)): _sha256(file) for file in context.rglob("*") if file.is_file()}
    wheels = folders["wheels"].glob("*.whl")
    return found | {f"wheels/{file.name}": str(file.stat().st_size) for file in wheels}


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def digest(files: Mapping[str, str], *words: object) -> str:
    """One hash of the files, our own code, and everything else that the build is told, in `words`. Pure but for our own code."""
    lines = [f"{name}\0{value}" for name, value in sorted(files.items())]
    return hashlib.sha256("\n".join([*lines, wheel.sha256(), *map(repr, words)]).encode()).hexdigest()


def base(reference: str, platform: str) -> str | None:
    """What stands for a base: its digest, or the id of the image of that name and platform on this machine. None: only the builder
    can tell, by asking a registry what the name means now."""
    if "@sha256:" in reference:
        return reference
    found = daemon.image(daemon.endpoint(os.environ), reference) or {}
    return str(found["Id"]) if f"{found.get('Os')}/{found.get('Architecture')}" == platform else None


def standing(name: str, inputs: str) -> str | None:
    """The id of the image of that name, if it was made from these inputs."""
    found = daemon.image(daemon.endpoint(os.environ), name) or {}
    labels: Mapping[str, Any] = (found.get("Config") or {}).get("Labels") or {}
    return str(found["Id"]) if labels.get(LABEL) == inputs else None


def steps(dockerfile: str, arguments: Mapping[str, str], target: str) -> list[Step]:
    """What made the layers of a stage above its base, oldest first, as the builder tells it of steps that it need not run. Pure."""
    before, *parts = _STAGE.split(dockerfile)
    stages = {name: (parent, text) for parent, name, text in zip(parts[::3], parts[1::3], parts[2::3], strict=True)}
    told = {**dict(re.findall(r"^ARG (\w+)=(\S+)$", before, re.M)), **arguments}
    made: list[str] = []
    while target in stages:
        parent, text = stages[target]
        made = _MAKES.findall(text) + made
        target = re.sub(r"\$\{(\w+)\}", lambda name: told.get(name[1], ""), parent)
    return [Step(one, seconds=0.0, cached=True) for one in made]
