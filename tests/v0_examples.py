"""LLaMA-Factory's examples as recipes, from the table of their keys."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import yaml

TABLE: Final[dict[str, Any]] = yaml.safe_load((Path(__file__).parent / "data" / "v0_examples.yaml").read_text(encoding="utf-8"))
MEDIA: Final = tuple(TABLE["media"])
TEXT: Final = tuple(TABLE["text"])
BOARD: Final = tuple(TABLE["board"])


def keys(name: str, **changed: Any) -> dict[str, Any]:
    """Its keys: those in common, those of its kind, its own, and `changed`; null leaves a key out."""
    group = next(kind for kind in ("media", "text", "board") if name in TABLE[kind])
    parts = [TABLE["switches" if group == "board" else "common"], *TABLE[group][name], changed]
    made: dict[str, Any] = {}
    for part in parts:
        made.update(TABLE[part] if isinstance(part, str) else part)
    return made if group == "board" and not changed else {key: value for key, value in made.items() if value is not None}


def recipe_of(name: str, **changed: Any) -> bytes:
    """Its YAML (JSON is YAML)."""
    return json.dumps(keys(name, **changed), indent=1).encode()
