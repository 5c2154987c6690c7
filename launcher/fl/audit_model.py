"""Which models `fl audit --model` asks about: those of a name, or the one in a folder, judged by its config.json (design §4.8)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

from packaging.version import InvalidVersion, Version

from fl.audit import Cell
from fl.errors import EvidenceError, RecipeError
from fl.ledger_index import Entry
from fl.matrix import Matrix, Stack
from fl.portability import CHECKPOINTS

LARGEST: Final = 2**24
"""Bytes of a config.json; what is cut is no JSON."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Folder:
    """What the config.json of a model says."""

    name: str
    model_type: str
    quantized: str | None = None
    """quant_method of a checkpoint that is quantized already."""
    written_by: str | None = None
    """The transformers that wrote it."""
    own_code: bool = False


def named(word: str, entries: Sequence[Entry], matrix: Matrix) -> dict[str, list[str]]:
    """Models of the ledger and families of the matrix whose name or model type it is: name → model types."""
    low = word.lower()
    found: dict[str, list[str]] = {}
    for entry in entries:
        if low in entry.model.lower() or low == entry.model_type.lower():
            types = found.setdefault(entry.model, [])
            types += [entry.model_type] if entry.model_type and entry.model_type not in types else []
    for name, family in matrix.models.items():
        if low in name.lower() or low in family.types:
            found[name] = list(family.types)
    if not found:
        near = get_close_matches(word, [*matrix.models, *{entry.model for entry in entries}], 1, 0.3)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise EvidenceError(f"nothing is known of a model {word!r}", f"{hint}a model folder with its config.json: --model DIR")
    return found


def of_folder(path: Path) -> Folder:
    """Reads a folder's config.json, or that file. RecipeError where it names no model type."""
    file = path / "config.json" if path.is_dir() else path
    try:
        with file.open("rb") as stream:
            config = json.loads(stream.read(LARGEST))
        name = config["model_type"]
        if not isinstance(name, str) or not name:
            raise ValueError("model_type is no text")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise RecipeError(
            f"{path}: no config.json that names a model_type ({_short(error)})", "a model folder as the hub has it"
        ) from error
    quantization: Any = config.get("quantization_config")
    method = str(quantization.get("quant_method") or "an unknown way")[:40] if isinstance(quantization, dict) else None
    writer = config.get("transformers_version")
    return Folder(
        name=file.resolve().parent.name, model_type=name[:100], quantized=method, own_code=isinstance(config.get("auto_map"), dict),
        written_by=writer[:40] if isinstance(writer, str) else None,
    )  # fmt: skip


def _short(error: Exception) -> str:
    if isinstance(error, KeyError):
        return "it has no model_type"
    return error.strerror or type(error).__name__ if isinstance(error, OSError) else type(error).__name__


def records(folder: Folder, entries: Sequence[Entry]) -> list[Entry]:
    """The runs of a folder of that name and model type; none where several models had that name: nobody can tell which it is."""
    same = [entry for entry in entries if entry.model == folder.name and entry.model_type == folder.model_type]
    return same if len({entry.config_sha256 for entry in same}) <= 1 else []


def judged(cells: Sequence[Cell], folder: Folder, matrix: Matrix) -> list[Cell]:
    """The cells with what the folder itself says: a quantized checkpoint, a newer transformers, code of its own."""
    rows = {stack.id: stack for stack in matrix.stacks}
    return [_judged(cell, folder, matrix, rows[cell.stack]) if cell.stack in rows else cell for cell in cells]


def _judged(cell: Cell, folder: Folder, matrix: Matrix, stack: Stack) -> Cell:
    if cell.evidence:
        return cell
    packages = matrix.packages(stack)
    lacking = CHECKPOINTS.get(folder.quantized or "")
    if cell.state == "declared" and lacking is not None and lacking not in packages:
        why = f"it is an {str(folder.quantized).upper()} checkpoint, which needs the package {lacking}, which this stack does not have"
        return replace(cell, state="impossible", why=why)
    if cell.state == "declared" and folder.quantized == "bitsandbytes" and stack.features.get("bnb_4bit") is False:
        return replace(cell, state="impossible", why="it is a bitsandbytes checkpoint, and bitsandbytes does not work on this stack")
    more = []
    if folder.quantized and cell.state == "declared":
        more.append(f"its weights are quantized ({folder.quantized})")
    if cell.state == "unknown":
        more += ["it comes with code of its own"] if folder.own_code else []
        more += _newer(folder.written_by, packages.get("transformers"))
    return replace(cell, why="; ".join((cell.why, *more)))


def _newer(writer: str | None, has: str | None) -> list[str]:
    try:
        late = writer is not None and has is not None and Version(writer) > Version(has)
    except InvalidVersion:
        return []
    return [f"it was written by transformers {writer}, this stack has {has}"] if late else []
