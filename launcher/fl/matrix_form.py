"""Whether matrix.yaml has the right form: YAML, keys given once, known fields, types. Every finding has its line."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Final

import yaml
from pydantic import ValidationError

from fl.matrix import (
    Base,
    Chip,
    Claim,
    Drivers,
    Extra,
    Family,
    FeatureClaim,
    Forward,
    Hosts,
    Incompatibility,
    Index,
    Matrix,
    ModelType,
    Row,
    Stack,
    System,
    parse,
)

_MODEL_OF: Final[dict[str, type[Row]]] = {
    "stacks": Stack, "hosts": Hosts, "base": Base, "serve_base": Base, "indexes": Index, "drivers": Drivers, "models": Family,
    "types": ModelType, "incompatibilities": Incompatibility, "chips": Chip, "forward": Forward, "systems": System, "extras": Extra,
    "claims": Claim, "features": FeatureClaim,
}
"""Key in the file → what stands below it; the nearest one above a field says which fields are known there."""

Location = tuple[int | str, ...]
_MOST: Final = 1_000_000
"""Values of a matrix, aliases written out."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong with a matrix."""

    where: str
    """Line and path, e.g. `line 41, stacks.cuda130-torch214.python`."""
    message: str
    remedy: str = ""


class Places:
    """The lines of a YAML text, found again by path."""

    def __init__(self, text: str) -> None:
        self.root = yaml.compose(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))

    def line(self, location: Location) -> int:
        """The line of a path, or of the nearest thing above it that is there; from 1."""
        node: Any = self.root
        line = 1
        for step in location:
            if isinstance(node, yaml.MappingNode):
                pair = next(((key, value) for key, value in node.value if key.value == str(step)), None)
                if pair is None:
                    break
                line, node = pair[0].start_mark.line + 1, pair[1]
            elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
                node = node.value[step]
                line = node.start_mark.line + 1
            else:
                break
        return line

    def where(self, location: Location) -> str:
        """Line and path for a finding; a row is called by its id."""
        words: list[str] = []
        node: Any = self.root
        for step in location:
            words.append(str(step))
            if isinstance(node, yaml.MappingNode):
                node = next((value for key, value in node.value if key.value == str(step)), None)
            elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
                node = node.value[step]
                if isinstance(node, yaml.MappingNode):
                    words[-1] = next((str(value.value) for key, value in node.value if key.value == "id"), words[-1])
        return f"line {self.line(location)}{', ' if words else ''}{'.'.join(words)}"


def nearest(name: str, known: list[str]) -> str:
    """` Did you mean X?`, or nothing."""
    near = get_close_matches(name, known, 1)
    return f" Did you mean {near[0]}?" if near else ""


def _duplicates(node: Any, path: str = "") -> Iterator[Finding]:
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            here = f"{path}.{key.value}".lstrip(".")
            if key.value in seen:
                yield Finding(f"line {line}, {here}", f"'{key.value}' is given twice, first on line {seen[key.value]}", "keep one of them")
            seen[key.value] = line
            yield from _duplicates(value, here)
    elif isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            yield from _duplicates(value, f"{path}.{number}")


def _aliases(node: Any, above: tuple[int, ...], sizes: dict[int, int]) -> Finding | None:
    """The first alias that stands inside what it names, or that makes a text of no use for people out of a short one. `sizes`: of the
    nodes that were looked at, written out."""
    if id(node) in above:
        return Finding(f"line {node.start_mark.line + 1}", "an anchor holds an alias of itself", "write out what is meant")
    if id(node) in sizes:
        return None
    inner = [one for pair in node.value for one in pair] if isinstance(node, yaml.MappingNode) else node.value
    children = inner if isinstance(node, yaml.CollectionNode) else []
    for child in children:
        if found := _aliases(child, (*above, id(node)), sizes):
            return found
    sizes[id(node)] = 1 + sum(sizes[id(child)] for child in children)
    if sizes[id(node)] > _MOST:
        return Finding(f"line {node.start_mark.line + 1}", f"aliases make more than {_MOST} values of it", "write out what is meant")
    return None


def _known_fields(location: Location) -> list[str]:
    model: type[Row] = Matrix
    for step in location[:-1]:
        model = _MODEL_OF.get(str(step), model)
    return [field.alias or name for name, field in model.model_fields.items()]


def _form_finding(places: Places, error: Any) -> Finding:
    location: Location = error["loc"]
    where, kind, value = places.where(location), error["type"], error["input"]
    name = str(location[-1]) if location else ""
    if kind == "extra_forbidden":
        return Finding(where, f"unknown field '{name}'.{nearest(name, _known_fields(location))}", "see the first lines of matrix.yaml")
    if kind == "missing":
        return Finding(where, f"the field '{name}' is missing")
    if kind == "literal_error":
        known = [word.strip("'") for word in error["ctx"]["expected"].replace(" or ", ", ").split(", ")]
        return Finding(where, f"'{value}' is not one of {', '.join(known)}.{nearest(str(value), known)}")
    if kind == "string_type" and isinstance(value, int | float) and not isinstance(value, bool):
        return Finding(where, f"{value} is a number here, and YAML drops its last zeros", f'write "{value}" in quotes')
    return Finding(where, f"{error['msg'][:1].lower()}{error['msg'][1:]}, found {value!r:.80}")


def form_findings(text: str) -> list[Finding]:
    """What is wrong with the form of a matrix; empty when `Matrix` takes it."""
    return read_form(text)[0]


def read_form(text: str) -> tuple[list[Finding], Matrix | None]:
    """What is wrong with the form of a text, or the matrix that it is."""
    try:
        places = Places(text)
        value = parse(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}" if mark else "line 1"
        return [Finding(where, f"not YAML: {error.problem or error.context}")], None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        return [Finding("line 1", f"not YAML: {str(error).splitlines()[0]}")], None
    if places.root is not None and (alias := _aliases(places.root, (), {})):
        return [alias], None
    found = list(_duplicates(places.root))
    try:
        matrix = Matrix.model_validate(value)
    except ValidationError as error:
        return [*found, *(_form_finding(places, one) for one in error.errors(include_url=False))], None
    return found, None if found else matrix
