"""Everything that is decided before anything starts. One Plan for a dry run and for the run; `argv` is what is executed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from fl.grants import EngineName, Mount
from fl.hardware import LaneName


@dataclass(frozen=True, slots=True, kw_only=True)
class Adaptation:
    """A key of the recipe that this stack cannot do as written, and what is done instead."""

    key: str
    before: object
    after: object
    reason: str
    effect: Literal["none", "speed", "numerics"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """The image of a plan; `source` is where it comes from."""

    reference: str | None
    digest: str | None
    source: Literal["local", "pull", "build", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """One stack's verdict."""

    stack: str
    chosen: bool
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """See design §4.5."""

    run: str
    lane: LaneName
    stack: str
    engine: EngineName
    flavor: str
    image: Image
    accelerators: tuple[int, ...]
    devices: tuple[str, ...]
    mounts: tuple[Mount, ...]
    groups: tuple[int, ...]
    environment: Mapping[str, str]
    options: Mapping[str, object]
    nodes: int
    per_node: int
    argv: tuple[str, ...]
    working_directory: str
    adaptations: tuple[Adaptation, ...] = ()
    reasons: tuple[Reason, ...] = ()
    warnings: tuple[str, ...] = ()
    recipe_sha256: str = ""
    matrix_sha256: str = ""
    lock_sha256: str | None = None
    secrets: Mapping[str, str] = field(default_factory=dict)
    """Name → where the value comes from, never the value."""
