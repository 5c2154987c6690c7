"""Every key that a recipe may hold: name, type, default, range, and what becomes of it. The tables are data; recipe.py reads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from typing import Final, Literal

Kind = Literal["bool", "int", "float", "str", "names", "floats", "mapping", "any"]
Verdict = Literal["handled", "translated", "ignored", "refused"]
Owner = Literal["llamafactory", "transformers", "gone"]

KIND_WORDS: Final[Mapping[Kind, str]] = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "names": "names, separated by commas or as a list",
    "floats": "numbers, separated by commas or as a list",
    "mapping": "a mapping, or the path of a JSON file",
    "any": "a value",
}


def words(text: str) -> tuple[str, ...]:
    """The words of a text, for the tables."""
    return tuple(text.split())


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One key. `verdict` is what happens to a value that asks for something; see recipe.py for `refused` ones that ask for nothing."""

    name: str
    kind: Kind
    default: object = None
    about: str = ""
    choices: tuple[str | int, ...] = ()
    low: float | None = None
    """Smallest value."""
    high: float | None = None
    """Largest value."""
    above: float | None = None
    """Value must be larger than this."""
    below: float | None = None
    """Value must be smaller than this."""
    null: bool = False
    """`null` is a value of its own (not: unset)."""
    verdict: Verdict = "handled"
    note: str = ""
    needs: tuple[str, tuple[object, ...], str] | None = None
    """(key, its values, words): where that key has another value, this one is ignored, since it belongs to `words`."""
    secret: bool = False
    owner: Owner = "llamafactory"

    @property
    def wanted(self) -> str:
        """The words for "wanted …" in messages."""
        if self.choices:
            return "one of " + ", ".join(str(choice) for choice in self.choices)
        parts = [KIND_WORDS[self.kind]]
        parts += [f"{word} {limit:g}" for word, limit in (("at least", self.low), ("above", self.above)) if limit is not None]
        parts += [f"{word} {limit:g}" for word, limit in (("at most", self.high), ("below", self.below)) if limit is not None]
        return " ".join(parts)


@cache
def all_keys() -> Mapping[str, Key]:
    """Every known key by name, `fl` and its subkeys left out."""
    from fl.recipe_table import HANDLED
    from fl.recipe_unsupported import UNSUPPORTED
    from fl.training_arguments import GONE, TRAINING_ARGUMENTS

    return {key.name: key for table in (TRAINING_ARGUMENTS, GONE, UNSUPPORTED, HANDLED) for key in table}


def nearest(name: str, known: list[str], likeness: float = 0.6) -> str | None:
    """The known name that is most like a wrong one; None when nothing is."""
    plain = {k.lower().replace("-", "_"): k for k in reversed(known)}
    found = get_close_matches(name.lower().replace("-", "_"), list(plain), 1, likeness)
    return plain[found[0]] if found else None
