"""Which images a change of the project touches: rows, locks, templates, our own code and fl's version against a revision."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Final

from fl import __version__
from fl import matrix as rows
from fl.images import lock, render
from fl.images.inventory import commit, git

if TYPE_CHECKING:
    from fl.matrix import Flavor, Matrix, Stack

_WORDS: Final = ("sources", "notes", "confidence", "status")
"""Fields of a row that say something about it and change nothing in an image."""
_NOT_BUILT: Final = (".toml", ".json", ".md")
"""Files of images/common that the resolver or the launcher reads, and no Dockerfile."""
_CODE: Final = ("launcher/fl", "trainers/fl_trainers")
"""What the wheel in the last layer of every image is packed from."""


def _row(table: Mapping[str, Any], stack: str, flavor: str) -> object:
    """What of a matrix (plain values, of whatever age) goes into one image; None where it has no such row."""
    found = next((row for row in table.get("stacks") or () if isinstance(row, Mapping) and row.get("id") == stack), None)
    if found is None:
        return None
    other = {"train": "serve", "serve": "train"}[flavor]
    own = ("serve_base", "serve_exclude_newer") if flavor == "train" else ()
    row = {key: value for key, value in found.items() if key not in (*_WORDS, *own, other)}
    layer = (table.get("layers") or {}).get(found.get("layer")) if flavor == "train" else None
    index = ((table.get("indexes") or {}).get(found.get("index")) or {}).get("url")
    return (row, layer, index)


def _templates(files: Iterable[str], lane: str, other: str) -> bool:
    """Whether one of the changed files is a template, or what a template copies, of this lane or of all. `other`: the template of the
    lane's other flavor, which does not count."""
    for name in files:
        path = PurePosixPath(name)
        if len(path.parts) > 2 and path.parts[0] == "images" and "locks" not in path.parts and name != f"images/{other}":
            common = path.parts[1] == "common" and path.suffix not in _NOT_BUILT
            if common or path.parts[1] == lane:
                return True
    return False


def reasons(
    stack: Stack, flavor: Flavor, platform: str, files: frozenset[str], before: Mapping[str, Any], now: Mapping[str, Any]
) -> list[str]:
    """Why an image is another one than it was: `row`, `lock`, `template`, `code`. Pure."""
    found = []
    if _row(before, stack.id, flavor) != _row(now, stack.id, flavor):
        found.append("row")
    if f"images/{stack.lane}/locks/{lock.filename(stack.id, flavor, platform)}" in files:
        found.append("lock")
    if _templates(files, stack.lane, render.template(stack, "serve" if flavor == "train" else "train")):
        found.append("template")
    if any(name.startswith(tuple(f"{folder}/" for folder in _CODE)) for name in files):
        found.append("code")
    return found


def since(revision: str, matrix: Matrix) -> tuple[frozenset[str], Mapping[str, Any], Mapping[str, Any]]:
    """(changed files, matrix then, matrix now) between a revision and the working tree, new files included."""
    commit(revision)
    changed = git("diff", "--name-only", "-z", revision, "--", "images", "matrix.yaml", *_CODE)
    new = git("ls-files", "-z", "--others", "--exclude-standard", "--", "images", *_CODE)
    before = rows.parse(git("show", f"{revision}:matrix.yaml"))
    now = rows.parse(matrix.text)
    files = frozenset(name for name in (changed + new).split("\0") if name)
    return files, before if isinstance(before, Mapping) else {}, now if isinstance(now, Mapping) else {}


def _version(revision: str) -> str | None:
    """fl's version at a revision; None where it cannot be told."""
    file = "launcher/fl/__init__.py"
    if not git("ls-tree", "--name-only", revision, "--", file).strip():
        return None
    found = re.search(r"^__version__.*=\s*[\"']([^\"']+)", git("show", f"{revision}:{file}"), re.M)
    return found[1] if found else None


def narrow(entries: list[dict[str, Any]], matrix: Matrix, revision: str) -> list[dict[str, Any]]:
    """The entries of the build matrix that differ from a revision, each with `changed`: why. A new version of fl is new names for all."""
    told = since(revision, matrix)
    renamed = ["version"] if _version(revision) not in (None, __version__) else []
    found = []
    for entry in entries:
        why = reasons(matrix.stack(entry["stack"]), entry["flavor"], entry["platform"], *told) + renamed
        found += [{**entry, "changed": why}] if why else []
    return found
