"""Reads recipe text safely: YAML built from libyaml's events, so that a hostile file costs neither time nor memory, or JSON.

Scalars follow YAML 1.1 as OmegaConf reads it, with the traps taken out: `2e-5` is a number, `0123`, `1:30` and dates are text.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn

import yaml

from fl.errors import RecipeError

MAX_BYTES: Final = 256 * 1024
MAX_DEPTH: Final = 16
MAX_NODES: Final = 20_000

_INT = re.compile(r"[-+]?(?:0|[1-9][0-9_]{0,30})|0x[0-9a-fA-F_]{1,16}")
_FLOAT = re.compile(
    r"[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+|[-+]?\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
_WORDS: Final[dict[str, bool | None]] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE", "yes", "Yes", "YES", "on", "On", "ON"), True),
    **dict.fromkeys(("false", "False", "FALSE", "no", "No", "NO", "off", "Off", "OFF"), False),
}
_TAG = "tag:yaml.org,2002:"


@dataclass(frozen=True, slots=True)
class Place:
    """Where something stands; line and column count from 1."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


@dataclass(slots=True)
class Document:
    """The values of a recipe, and where each key stands (nested keys by dotted path)."""

    values: dict[str, Any] = field(default_factory=dict)
    places: dict[str, Place] = field(default_factory=dict)


def load(raw: bytes, name: str) -> Document:
    """Reads a recipe. `name` is shown in messages; `.json` at its end chooses JSON. An empty file is an empty mapping."""
    if len(raw) > MAX_BYTES:
        raise RecipeError(
            f"{name}: a recipe may have {MAX_BYTES // 1024} KiB, this file is larger.", "Give the path of a recipe, not of data."
        )
    text = _decode(raw, name)
    if name.endswith(".json"):
        from fl.recipe_json import load_json

        return load_json(text, name)
    return _Builder(text, name).document()


def scalar(text: str) -> Any:
    """The value of a plain scalar."""
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        return int(text.replace("_", ""), 16 if text.startswith("0x") else 10)
    if _FLOAT.fullmatch(text) and len(text) < 400:
        plain = text.replace("_", "").lower()
        return float(plain.replace(".inf", "inf").replace(".nan", "nan"))
    return text


def load_value(text: str, name: str) -> Any:
    """The value of one override, `[a, b]` and `{a: 1}` included; text that is no YAML is taken as it stands."""
    if not text.strip():
        return None
    if text.lstrip()[0] not in "[{\"'":
        return scalar(text.strip())
    return _Builder(text, name).value()


def check_depth(value: Any, place: str, depth: int = 1) -> None:
    """Refuses values nested deeper than a recipe ever is."""
    if depth > MAX_DEPTH:
        raise RecipeError(f"{place}: nested deeper than {MAX_DEPTH} levels; a recipe is flat.")
    for child in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        check_depth(child, place, depth + 1)


def place_at(text: str, index: int, name: str) -> Place:
    """The place of a character of the text."""
    return Place(name, text.count("\n", 0, index) + 1, index - text.rfind("\n", 0, index))


def _encoding(raw: bytes) -> str:
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    return "utf-8-sig" if raw.startswith(codecs.BOM_UTF8) else "utf-8"


def _decode(raw: bytes, name: str) -> str:
    encoding = _encoding(raw)
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError as error:
        before = raw[: error.start]
        column = len(before[before.rfind(b"\n") + 1 :].decode(encoding, "replace")) + 1
        place = Place(name, before.count(b"\n") + 1, column)
        found = f"0x{raw[error.start]:02x}" if error.start < len(raw) else "the end"
        raise RecipeError(f"{place}: not {encoding.upper().removesuffix('-SIG')} text (byte {found}).", "Save the file as UTF-8.") from None


class _Builder:
    """Turns parser events into values. Limits hold while reading, so nothing is expanded before it is refused."""

    def __init__(self, text: str, name: str) -> None:
        self.text, self.name = text, name
        self.nodes = 0
        self.places: dict[str, Place] = {}
        self.anchors: dict[str, tuple[Any, int]] = {}
        self.events = self._parse()

    def document(self) -> Document:
        """The whole file, which must hold one mapping."""
        top = self.value()
        if top is None:
            return Document()
        if not isinstance(top, dict):
            found = "a list" if isinstance(top, list) else f"the {type(top).__name__} {top!r:.40}"
            raise RecipeError(f"{self.name}:1:1: a recipe is a mapping of keys to values (`stage: sft`), this file holds {found}.")
        return Document(top, self.places)

    def value(self) -> Any:
        """The single document's value; None when there is none."""
        found: Any = None
        documents = 0
        for event in self.events:
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    self._fail("a second document starts here (`---`); a recipe is one document", event, "Keep one recipe in a file.")
            elif not isinstance(event, yaml.StreamStartEvent | yaml.StreamEndEvent | yaml.DocumentEndEvent):
                found = self._node(event, (), 0)
        return found

    def _parse(self) -> Iterator[yaml.Event]:
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        try:
            yield from yaml.parse(self.text, Loader=loader)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            raise self._broken(error.problem or "cannot be read as YAML", mark.line if mark else 0, mark.column if mark else 0) from None
        except yaml.reader.ReaderError as error:
            character = error.character if isinstance(error.character, int) else ord(str(error.character)[:1] or "\0")
            place = place_at(self.text, self._unprintable(), self.name)
            raise RecipeError(f"{place}: the control character U+{character:04X} is not allowed in YAML.") from None

    def _unprintable(self) -> int:
        found = yaml.reader.Reader.NON_PRINTABLE.search(self.text)
        return found.start() if found else 0

    def _broken(self, problem: str, line: int, column: int) -> RecipeError:
        lines = self.text.split("\n")
        shown = lines[line] if line < len(lines) else ""
        tabs = next((n for n in (line, line - 1) if 0 <= n < len(lines) and "\t" in re.match(r"\s*", lines[n])[0]), None)  # type: ignore[index]
        if tabs is not None:
            place = Place(self.name, tabs + 1, lines[tabs].index("\t") + 1)
            return RecipeError(f"{place}: a tab is used for indentation; YAML wants spaces.", "Replace the tab with spaces.")
        return RecipeError(
            f"{Place(self.name, line + 1, column + 1)}: {problem}: {shown.strip()[:80]!r}",
            "Check the indentation, colons and quotes there.",
        )

    def _fail(self, problem: str, event: yaml.Event, remedy: str = "") -> NoReturn:
        raise RecipeError(f"{self._place(event)}: {problem}.", remedy)

    def _place(self, event: yaml.Event) -> Place:
        mark = event.start_mark
        return Place(self.name, mark.line + 1, mark.column + 1) if mark else Place(self.name, 1, 1)

    def _count(self, event: yaml.Event, nodes: int = 1) -> None:
        self.nodes += nodes
        if self.nodes > MAX_NODES:
            self._fail(f"more than {MAX_NODES} values, aliases counted as often as they are used; no recipe is that large", event)

    def _node(self, event: yaml.Event, path: tuple[str, ...], depth: int) -> Any:
        if depth > MAX_DEPTH:
            self._fail(f"nested deeper than {MAX_DEPTH} levels; a recipe is flat", event)
        if isinstance(event, yaml.AliasEvent):
            anchor = str(event.anchor)
            if anchor not in self.anchors:
                self._fail(f"the alias *{anchor} has no anchor before it", event)
            shared, size = self.anchors[anchor]
            self._count(event, size)
            return shared
        self._count(event)
        before = self.nodes
        if isinstance(event, yaml.ScalarEvent):
            value: Any = self._scalar(event)
        elif isinstance(event, yaml.SequenceStartEvent):
            self._check_tag(event, event.tag, "seq")
            value = [self._node(item, (*path, str(n)), depth + 1) for n, item in enumerate(self._until(yaml.SequenceEndEvent))]
        else:
            self._check_tag(event, getattr(event, "tag", None), "map")
            value = self._mapping(path, depth)
        named = getattr(event, "anchor", None)
        if named:
            self.anchors[str(named)] = (value, self.nodes - before + 1)
        return value

    def _until(self, end: type[yaml.Event]) -> Iterator[yaml.Event]:
        for event in self.events:
            if isinstance(event, end):
                return
            yield event

    def _mapping(self, path: tuple[str, ...], depth: int) -> dict[str, Any]:
        values: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        seen: dict[Hashable, Place] = {}
        for event in self._until(yaml.MappingEndEvent):
            key = self._key(event)
            place = self._place(event)
            if key in seen:
                first = f"line {seen[key].line}"
                raise RecipeError(f"{place}: `{key}` stands here for the second time, first on {first}.", "Delete one of the two lines.")
            seen[key] = place
            value = self._node(next(self.events), (*path, key), depth + 1)
            if key == "<<":
                merged.update(self._merge(value, event))
            else:
                values[key] = value
                self.places[".".join((*path, key))] = place
        return {**merged, **values}

    def _merge(self, value: Any, event: yaml.Event) -> Mapping[str, Any]:
        parts = value if isinstance(value, list) else [value]
        if not all(isinstance(part, dict) for part in parts):
            self._fail("`<<` merges mappings only", event)
        return {key: item for part in reversed(parts) for key, item in part.items()}

    def _key(self, event: yaml.Event) -> str:
        if not isinstance(event, yaml.ScalarEvent):
            self._fail("a key must be a name, not a list, mapping or alias", event)
        key = self._scalar(event)
        if not isinstance(key, str):
            self._fail(f"a key must be a name, found {event.value!r}", event, f'Quote it if it is meant: "{event.value}".')
        self._count(event)
        return str(key)

    def _scalar(self, event: yaml.ScalarEvent) -> Any:
        tag = event.tag
        if tag is None or tag == "!":
            return scalar(event.value) if event.implicit[0] else event.value
        kind = tag.removeprefix(_TAG)
        value = scalar(event.value)
        types = {"null": ("NoneType",), "bool": ("bool",), "int": ("int",), "float": ("int", "float")}
        if kind == "str":
            return event.value
        if type(value).__name__ not in types.get(kind, ()):
            self._fail(f"the tag {tag!r} is not accepted here", event, "Remove the tag; recipes are plain values.")
        return float(value) if kind == "float" else value

    def _check_tag(self, event: yaml.Event, tag: object, kind: str) -> None:
        if tag not in (None, "!", _TAG + kind):
            self._fail(f"the tag {tag!r} is not accepted here", event, "Remove the tag; recipes are plain values.")
