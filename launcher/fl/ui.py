"""The one door to the screen. Results go to stdout, everything else to stderr; colours only on a terminal."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Sequence
from io import TextIOWrapper
from typing import Any, TextIO

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
"""C0 and C1, and what reverses or breaks lines in Unicode."""
_CODES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}


def clean(text: str) -> str:
    """Text from outside without control characters, so that it cannot drive the terminal."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def any_encoding() -> None:
    """From here on what the terminal's encoding lacks is shown as `?`: no text ends the program."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")


def coloured(stream: TextIO) -> bool:
    """True when the stream is a terminal that wants colours."""
    return stream.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


def paint(text: str, style: str, stream: TextIO | None = None) -> str:
    """The text in a style, or as it is where colours are off."""
    return f"\x1b[{_CODES[style]}m{text}\x1b[0m" if coloured(stream or sys.stdout) else text


def out(text: str = "") -> None:
    """A line of the result."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def say(text: str = "") -> None:
    """A line about what is going on."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def step(text: str) -> None:
    """A new stage of the work."""
    say(paint("→ ", "cyan", sys.stderr) + text)


def warning(text: str) -> None:
    """Something the user should know; the work goes on."""
    say(paint("warning: ", "yellow", sys.stderr) + clean(text))


def error(message: str, remedy: str = "") -> None:
    """Why the work stopped, and what to type."""
    say(paint("error: ", "red", sys.stderr) + "\n".join(clean(line) for line in message.split("\n")))
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
    """Aligned columns on stdout; the last column is cut to the terminal's width, never wrapped into the others."""
    cells = [[clean(c) for c in row] for row in rows]
    widths = [max(len(row[i]) for row in [list(header), *cells]) for i in range(len(header))]
    limit = os.get_terminal_size().columns if sys.stdout.isatty() else None
    for number, row in enumerate([list(header), *cells]):
        line = indent + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        if limit is not None and len(line) > limit:
            line = line[: limit - 1] + "…"
        out(paint(line, "dim") if number == 0 else line)
