"""The JSON Schema of recipes, for editors that complete and check YAML."""

from __future__ import annotations

from typing import Any, Final

from fl.recipe_keys import Key, Kind, all_keys
from fl.recipe_launcher import LAUNCHER_KEYS

_TYPES: Final[dict[Kind, dict[str, Any]]] = {
    "bool": {"type": ["boolean", "null"]},
    "int": {"type": ["integer", "null"]},
    "float": {"type": ["number", "null"]},
    "str": {"type": ["string", "null"]},
    "names": {"type": ["string", "array", "null"], "items": {"type": "string"}},
    "floats": {"type": ["string", "array", "number", "null"], "items": {"type": "number"}},
    "mapping": {"type": ["object", "string", "null"]},
    "any": {},
}
_LAUNCHER_TYPES: Final[dict[str, dict[str, Any]]] = {
    "devices": {"type": ["string", "integer", "array", "null"], "items": {"type": ["string", "integer"]}},
    "mounts": {"type": ["array", "null"], "items": {"type": "string", "pattern": "^[^:]+(:r[ow])?$"}},
    "env": {"type": ["object", "null"], "additionalProperties": {"type": ["string", "number", "boolean"]}},
    "prompts": {"type": ["array", "null"], "items": {"type": "string", "minLength": 1}},
}


def schema() -> dict[str, Any]:
    """The schema, JSON Schema 2020-12. Keys that are refused or ignored are `deprecated`, which editors show struck through."""
    launcher = {name: {**_one(key), **_LAUNCHER_TYPES.get(name, {})} for name, key in LAUNCHER_KEYS.items()}
    about = "What the recipe asks of the launcher."
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "fl recipe",
        "description": "What to train: LLaMA-Factory's keys, transformers' TrainingArguments, and `fl` for the launcher.",
        "type": "object",
        "additionalProperties": False,
        "properties": {
            **{name: _one(key) for name, key in sorted(all_keys().items())},
            "fl": {"type": ["object", "null"], "description": about, "additionalProperties": False, "properties": launcher},
        },
    }


def _one(key: Key) -> dict[str, Any]:
    result: dict[str, Any] = {**_TYPES[key.kind], "description": key.about}
    if key.choices and key.kind != "names":
        words = [*key.choices, *([False] if "no" in key.choices else []), *([True] if "all" in key.choices else [])]
        result = {"enum": [*words, None], "description": key.about}
    if key.default is not None:
        result["default"] = list(key.default) if isinstance(key.default, tuple) else key.default
    for word, limit in (("minimum", key.low), ("maximum", key.high), ("exclusiveMinimum", key.above), ("exclusiveMaximum", key.below)):
        if limit is not None:
            result[word] = limit
    if key.verdict in ("ignored", "refused") or key.owner == "gone":
        result["deprecated"] = True
    return result
