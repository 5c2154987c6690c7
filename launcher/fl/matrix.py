"""matrix.yaml as values: which versions belong together, for which machines, and how we know."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from fl.hardware import LaneName

Flavor = Literal["train", "serve"]
Status = Literal["stable", "lts", "edge", "retired"]
Confidence = Literal["verified", "documented", "inferred", "unknown"]


class Row(BaseModel):
    """Base of every part of the matrix: frozen, unknown fields refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Hosts(Row):
    """Which machines a stack runs on."""

    platforms: tuple[str, ...]
    """OCI platforms, e.g. `linux/amd64`."""
    arches: tuple[str, ...] = ()
    """Chips that the wheels hold code for; empty for the cpu lane."""
    driver: dict[str, str] = Field(default_factory=dict)
    """Driver name → PEP 440 specifier, e.g. `{nvidia: ">=580.65.06"}`."""


class Base(Row):
    """The image that a stack's Dockerfile starts from."""

    image: str
    digest: str | None = None


class Stack(Row):
    """One row."""

    id: str
    lane: LaneName
    status: Status
    runtime: dict[str, str] = Field(default_factory=dict)
    hosts: Hosts
    python: str
    base: Base
    layer: str
    torch_from: Literal["index", "base"] = "index"
    """`base`: the vendor's image brings torch, which must survive untouched and is not in the lock."""
    index: str | None = None
    """Key of `indexes`: where the lane's own wheels come from; None: the ordinary package index."""
    train: dict[str, str | None] = Field(default_factory=dict)
    """Distribution → exact version, beside those of the layer; null: known to be absent."""
    serve: dict[str, str | None] = Field(default_factory=dict)
    features: dict[str, bool | str | None] = Field(default_factory=dict)
    sources: dict[str, str] = Field(default_factory=dict)
    confidence: Confidence
    notes: tuple[str, ...] = ()


class Matrix(Row):
    """The whole file."""

    schema_version: Literal[1] = Field(alias="schema")
    layers: dict[str, dict[str, str]]
    stacks: tuple[Stack, ...]
