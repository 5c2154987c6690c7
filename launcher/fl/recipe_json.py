"""Recipes written as JSON, with the same checks as YAML."""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

from fl.errors import RecipeError
from fl.recipe_yaml import MAX_DEPTH, Document, Place, check_depth, place_at


def load_json(text: str, name: str) -> Document:
    """Reads a JSON object. JSON's parser keeps no positions; a key's place is where its name first stands followed by a colon."""
    if not text.strip():
        return Document()

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key, value in items:
            if key in values:
                places = _places(text, key, name)
                raise RecipeError(
                    f"{places[-1]}: `{key}` stands here for the second time, first on line {places[0].line}.", "Delete one of the two."
                )
            values[key] = value
        return values

    try:
        top = json.loads(text, object_pairs_hook=pairs, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise RecipeError(f"{Place(name, error.lineno, error.colno)}: {error.msg}.", "Check commas, quotes and brackets there.") from None
    except RecursionError:
        raise RecipeError(f"{name}: nested deeper than {MAX_DEPTH} levels; a recipe is flat.") from None
    except ValueError as error:
        raise RecipeError(f"{name}: {error}.") from None
    if not isinstance(top, dict):
        raise RecipeError(f"{name}:1:1: a recipe is a mapping of keys to values, this file holds a JSON {type(top).__name__}.")
    check_depth(top, name)
    try:
        json.dumps(top, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise RecipeError(f"{name}: holds half of a surrogate pair (\\ud800 to \\udfff), which is no character.") from None
    places = {key: _places(text, key, name)[0] for key in top}
    launcher = top.get("fl")
    if isinstance(launcher, dict):
        places.update({f"fl.{key}": _places(text, key, name)[0] for key in launcher})
    return Document(top, places)


def _places(text: str, key: str, name: str) -> list[Place]:
    found = [place_at(text, match.start(), name) for match in re.finditer(re.escape(json.dumps(key, ensure_ascii=False)) + r"\s*:", text)]
    return found or [Place(name, 1, 1)]


def _no_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is not a JSON number")
