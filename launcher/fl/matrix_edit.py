"""Values of matrix.yaml replaced in its text, so that comments, order and line breaks stay. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from fl.errors import MatrixError
from fl.matrix import parse
from fl.matrix_form import Location, Places


def replace(text: str, values: Mapping[Location, str]) -> str:
    """The text with scalars replaced; a location is the path of one that is there. What comes out is read again and compared.

    MatrixError: a location that is no scalar, or a text in which nothing can be replaced safely (anchors, folded scalars).
    """
    root = Places(text).root
    lines = [0]
    for line in text.splitlines(keepends=True):
        lines.append(lines[-1] + len(line))
    spans = []
    for location, value in values.items():
        node = scalar(root, location)
        if node is None or node.style in ("|", ">"):
            raise MatrixError(f"{'.'.join(map(str, location))} cannot be replaced: it is no plain text in the matrix", "fl matrix check")
        start, end = (lines[mark.line] + mark.column for mark in (node.start_mark, node.end_mark))
        spans.append((start, end, _written(value, node.style)))
    changed = text
    for start, end, new in sorted(spans, reverse=True):
        changed = changed[:start] + new + changed[end:]
    if parse(changed) != _expected(parse(text), values):
        raise MatrixError("the matrix cannot be edited by itself: what comes out says something else", "edit matrix.yaml by hand")
    return changed


def scalar(root: Any, location: Location) -> Any:
    """The scalar node at a path, or None."""
    node = root
    for step in location:
        if isinstance(node, yaml.MappingNode):
            node = next((value for key, value in node.value if key.value == str(step)), None)
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
            node = node.value[step]
        else:
            return None
    return node if isinstance(node, yaml.ScalarNode) else None


def _written(value: str, style: str | None) -> str:
    """The value in the quotes that the old one had."""
    if style == "'":
        return "'" + value.replace("'", "''") + "'"
    if style == '"':
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return value


def _expected(values: Any, changes: Mapping[Location, str]) -> Any:
    wanted = _unshared(values)
    for location, value in changes.items():
        holder = wanted
        for step in location[:-1]:
            holder = holder[step]
        holder[location[-1]] = value
    return wanted


def _unshared(value: Any) -> Any:
    """A copy in which what an anchor shared is separate, so that an edit that reaches further than its place is seen."""
    if isinstance(value, dict):
        return {key: _unshared(one) for key, one in value.items()}
    return [_unshared(one) for one in value] if isinstance(value, list) else value
