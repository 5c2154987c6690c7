"""The one door to the screen. Results go to stdout, everything else to stderr; colours only on a terminal."""

from __future__ import annotations

import codecs
import json
import os
import re
import shutil
import sys
from collections.abc import Sequence
from io import TextIOWrapper
from itertools import zip_longest
from typing import Any, Final, TextIO

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
"""C0 and C1, and what reverses or breaks lines in Unicode."""
_ASCII: Final = {
    "✓": "+", "✗": "x", "→": "->", "…": "...", "⟦": "[[", "⟧": "]]", "–": "-", "·": "*", "‘": "'", "’": "'", "“": '"', "”": '"',
}  # fmt: skip
_PAINT = re.compile(r"\x1b\[\d*m")
_GAP: Final = 2
_PROSE: Final = 24
"""A column of sentences is not made narrower than this: it goes below the others instead."""
_BELOW: Final = 4
_CODES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}


def clean(text: str) -> str:
    """Text from outside without control characters, so that it cannot drive the terminal."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def any_encoding() -> None:
    """From here on our signs that the terminal's encoding lacks are told in ASCII, other characters as `?`: no text ends the program."""
    codecs.register_error("fl", _plain)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="fl")


def _plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_ASCII.get(c, "?") for c in error.object[error.start : error.end]), error.end


def coloured(stream: TextIO) -> bool:
    """True when the stream is a terminal that wants colours."""
    return stream.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


def paint(text: str, style: str, stream: TextIO | None = None) -> str:
    """The text in a style, or as it is where colours are off."""
    return f"\x1b[{_CODES[style]}m{text}\x1b[0m" if coloured(stream or sys.stdout) else text


def columns(stream: TextIO | None = None) -> int | None:
    """How wide the terminal is; None: it is none, and nothing is broken into lines."""
    return shutil.get_terminal_size().columns if (stream or sys.stdout).isatty() else None


def out(text: str = "", hang: int | None = None) -> None:
    """A line of the result; with `hang` broken between words to the terminal's width, further lines that far to the right."""
    _write(sys.stdout, text, hang)


def say(text: str = "", hang: int | None = None) -> None:
    """A line about what is going on."""
    _write(sys.stderr, text, hang)


def _write(stream: TextIO, text: str, hang: int | None) -> None:
    width = None if hang is None else columns(stream)
    if width is not None:
        text = "\n".join(part for line in text.split("\n") for part in _broken(line, width, hang or 0))
    stream.write(text + "\n")
    stream.flush()


def _broken(text: str, width: int, hang: int = 0) -> list[str]:
    """Lines of whole words. What is longer than a line stays whole: names and paths can be copied."""
    lines, line = [], ""
    for piece in re.findall(r"\s*\S+", text):
        if line.strip() and _size(line + piece) > width:
            lines.append(line)
            line = " " * hang + piece.lstrip()
        else:
            line += piece
    return [*lines, line]


def _size(text: str) -> int:
    """Cells of the terminal that a text takes."""
    if text.isascii() and "\x1b" not in text:
        return len(text)
    from unicodedata import east_asian_width

    return sum(2 if east_asian_width(c) in "WF" else 1 for c in _PAINT.sub("", text))


def step(text: str) -> None:
    """A new stage of the work."""
    say(paint("→ ", "cyan", sys.stderr) + text, hang=2)


def warning(text: str) -> None:
    """Something the user should know; the work goes on."""
    say(paint("warning: ", "yellow", sys.stderr) + clean(text), hang=9)


def error(message: str, remedy: str = "") -> None:
    """Why the work stopped, and what to type."""
    first, *rest = map(clean, message.split("\n"))
    say(paint("error: ", "red", sys.stderr) + first, hang=7)
    for line in rest:
        say(line, hang=None if line.startswith(" ") else 0)
    for line in remedy.splitlines():
        say(paint("  try: ", "green", sys.stderr) + clean(line))


def document(value: Any) -> None:
    """The one JSON document of `--json`."""
    out(_json(value, 1))


def listing(value: dict[str, Any], key: str) -> None:
    """The same with an item of the list `key` a line: of ten thousand items, a fifth of the time."""
    items = ",\n".join(_json(item, None) for item in value[key])
    out(_json({**value, key: []}, None).removesuffix("[]}") + f"[\n{items}\n]}}")


def _json(value: Any, indent: int | None) -> str:
    return json.dumps(value, indent=indent, ensure_ascii=True, allow_nan=False).replace("\x7f", "\\u007f")


def table(header: Sequence[str], rows: Sequence[Sequence[str]], indent: str = "") -> None:
    """Aligned columns on stdout. On a terminal that is too narrow cells are broken between words, and the columns that still have no room
    go below, to the right: nothing is cut."""
    cells = [list(header), *([clean(c) for c in row] for row in rows)]
    limit = columns()
    groups = _layout(cells, None if limit is None else limit - len(indent))
    for number, row in enumerate(cells):
        for place, group in enumerate(groups):
            if place and not any(row[i] for i in group):
                continue
            parts = [_broken(row[i], width) if limit is not None else [row[i]] for i, width in group.items()]
            for line in zip_longest(*parts, fillvalue=""):
                text = (" " * _GAP).join(part + " " * (width - _size(part)) for part, width in zip(line, group.values(), strict=True))
                shown = indent + " " * (_BELOW if place else 0) + text.rstrip()
                out(paint(shown, "dim") if number == 0 else shown)


def _layout(cells: Sequence[Sequence[str]], limit: int | None) -> list[dict[int, int]]:
    """Groups of columns, one below the other: column → width."""
    natural = [max(map(_size, column)) for column in zip(*cells, strict=True)]
    if limit is None or sum(natural) + _GAP * (len(natural) - 1) <= limit:
        return [dict(enumerate(natural))]
    words = [max((_size(word) for cell in column for word in cell.split()), default=0) for column in zip(*cells, strict=True)]
    least = [max(longest, min(whole, _PROSE)) for longest, whole in zip(words, natural, strict=True)]
    groups: list[dict[int, int]] = [{}]
    for i, width in enumerate(least):
        room = limit - (_BELOW if len(groups) > 1 else 0)
        if groups[-1] and sum(groups[-1].values()) + _GAP * len(groups[-1]) + width > room:
            groups.append({})
        groups[-1][i] = width
    for place, group in enumerate(groups):
        rest = limit - (_BELOW if place else 0) - sum(group.values()) - _GAP * (len(group) - 1)
        for i in sorted(group, key=lambda i: natural[i] - least[i]):  # those that lack least have all of it first
            more = max(0, min(rest, natural[i] - least[i]))
            group[i] += more
            rest -= more
    return groups
