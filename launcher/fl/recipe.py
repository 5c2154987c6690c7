"""A recipe: YAML in LLaMA-Factory's language → typed values, and what became of every key. Pure; files are opened in resolve.py."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fl.errors import RecipeError, UsageError
from fl.recipe_keys import Key, Verdict, all_keys, nearest
from fl.recipe_launcher import LAUNCHER_KEYS, Launcher, read_one, wanted
from fl.recipe_reward import SAMPLING
from fl.recipe_rules import RULES
from fl.recipe_values import WrongValueError, coerce
from fl.recipe_yaml import Document, load, load_value
from fl.training_arguments import RENAMED

COMMAND_LINE = "command line"
_UNSET = "not set: the default holds"
_MANY = 20
"""Choices that nobody reads through."""


@dataclass(frozen=True, slots=True)
class KeyNote:
    """One key as it was written, and what became of it."""

    key: str
    value: Any
    verdict: Verdict
    note: str = ""
    place: str = ""
    """`FILE:LINE:COLUMN` or `command line`; the file alone for a key that is missing."""

    @property
    def problem(self) -> str:
        """The line of an error message."""
        return f"{self.place}: {self.key}: {self.note}" + ("" if self.note.endswith("?") else ".")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A recipe as it was read. `get` gives the value that counts, the default where a key is not set or ignored."""

    name: str
    """Its file's name without suffix."""
    path: str
    """Absolute path of its file."""
    shipped: bool
    """True for a recipe that came with fl: its data lie beside it."""
    sha256: str
    """Of its bytes and the overrides."""
    text: bytes = b""
    overrides: tuple[str, ...] = ()
    values: Mapping[str, Any] = field(default_factory=dict)
    """Typed values of the keys that count."""
    launcher: Launcher = field(default_factory=Launcher)
    keys: tuple[KeyNote, ...] = ()

    def get(self, key: str) -> Any:
        """The value, or the default."""
        return self.values[key] if key in self.values else all_keys()[key].default

    @property
    def refused(self) -> tuple[KeyNote, ...]:
        """What stands in the way of a run."""
        return tuple(note for note in self.keys if note.verdict == "refused")

    @property
    def check_command(self) -> str:
        """What shows every key with its verdict: the overrides are part of it, quoted for a shell."""
        return shlex.join(["fl", "recipe", "check", self.name if self.shipped else self.path, *self.overrides])

    def require(self) -> Recipe:
        """Itself, or RecipeError with every refused key."""
        if self.refused:
            lines = [note.problem for note in self.refused]
            head = "" if len(lines) == 1 else f"{len(lines)} keys of this recipe cannot be used:\n"
            raise RecipeError(head + "\n".join(lines), self.check_command)
        return self


def parse(raw: bytes, *, file: str, path: str = "", overrides: Sequence[str] = (), shipped: bool = False) -> Recipe:
    """Reads a recipe's bytes. `file` is shown in messages. RecipeError where it cannot be read at all; refused keys are in `keys`."""
    document = load(raw, file)
    places = {key: str(place) for key, place in document.places.items()}
    for text in overrides:
        _override(document, places, text)
    launcher, launcher_notes = _launcher(document.values.pop("fl", None), places, file)
    notes, values = _keys(document.values, places)
    values, notes = _depending(values, notes)
    if values.get("use_cpu") and launcher.hw in (None, "auto"):
        launcher = replace(launcher, hw="cpu")
    notes = _rules(values, notes, file)
    digest = hashlib.sha256(b"\0".join([raw, *(text.encode("utf-8", "surrogateescape") for text in overrides)])).hexdigest()
    stem = file.rsplit("/", 1)[-1].rsplit(".", 1)[0]
    return Recipe(
        name=stem,
        path=path or file,
        shipped=shipped,
        sha256=digest,
        text=raw,
        overrides=tuple(overrides),
        values=values,
        launcher=launcher,
        keys=(*notes.values(), *launcher_notes),
    )


def _override(document: Document, places: dict[str, str], text: str) -> None:
    name, equals, value = text.partition("=")
    name = name.strip()
    if not equals or not name or not text.isprintable():
        raise UsageError(f"{text!r} is not an override: wanted KEY=VALUE.", "fl run RECIPE learning_rate=1e-4 fl.hw=cpu")
    target = document.values
    *parents, last = name.split(".")
    for parent in parents:
        child = target.get(parent)
        target[parent] = dict(child) if isinstance(child, dict) else {}
        target = target[parent]
    target[last] = load_value(value, f"{COMMAND_LINE}, {name}")
    places[name] = COMMAND_LINE
    places.setdefault(name.split(".", 1)[0], COMMAND_LINE)


def _keys(written: Mapping[str, Any], places: Mapping[str, str]) -> tuple[dict[str, KeyNote], dict[str, Any]]:
    notes: dict[str, KeyNote] = {}
    values: dict[str, Any] = {}
    for name, value in written.items():
        key = all_keys().get(name)
        place = places.get(name, "")
        if key is None:
            notes[name] = KeyNote(name, value, "refused", _unknown(name), place)
            continue
        typed, notes[name] = _one(key, value, place)
        if notes[name].verdict in ("handled", "translated") and notes[name].note != _UNSET:
            values[name] = typed
    return notes, values


def _one(key: Key, value: Any, place: str) -> tuple[Any, KeyNote]:
    shown = "(not shown)" if key.secret and value is not None else value
    if value is None and not key.null:
        return None, KeyNote(key.name, value, "ignored" if key.verdict in ("ignored", "refused") else "handled", _UNSET, place)
    try:
        typed, note = (None, "") if value is None else coerce(key, value)
    except WrongValueError as wrong:
        found = "a value that is not shown" if key.secret else str(wrong)
        near = nearest(value, [str(choice) for choice in key.choices]) if isinstance(value, str) and key.choices else None
        wanted = f"; did you mean `{near}`?" if near and len(key.choices) > _MANY else f", wanted {key.wanted}"
        return None, KeyNote(key.name, shown, "refused", f"found {found}{wanted}", place)
    if key.verdict == "refused" and (typed == key.default or not (typed or key.default)):
        return typed, KeyNote(key.name, shown, "ignored", "as always in this version", place)
    if key.verdict != "handled":
        return typed, KeyNote(key.name, shown, key.verdict, f"→ {key.note}" if key.verdict == "translated" else key.note, place)
    return typed, KeyNote(key.name, shown, "translated" if note else "handled", note, place)


def _unknown(name: str) -> str:
    """A key that is used in this version is named rather than another one that is a little closer; one of every stage (`epochs` →
    `num_train_epochs`) rather than one of a single stage."""
    used = [key.name for key in all_keys().values() if key.verdict in ("handled", "translated")]
    holding = [key for key in used if len(name) > 3 and name.lower() in key]
    common = [key for key in holding if key.endswith("_" + name.lower()) and all_keys()[key].needs is None]
    close = nearest(name, [*all_keys(), "fl"], 0.85) or min(common, key=len, default=None)
    return _hint(close or nearest(name, used) or min(holding, key=len, default=None))


def _hint(near: str | None) -> str:
    return "unknown key" + (f"; did you mean `{near}`?" if near else "")


def _depending(values: dict[str, Any], notes: dict[str, KeyNote]) -> tuple[dict[str, Any], dict[str, KeyNote]]:
    """Leaves out values that mean something only beside another one."""
    kept, told = dict(values), dict(notes)

    def drop(name: str, reason: str) -> None:
        kept.pop(name)
        told[name] = replace(told[name], verdict="ignored", note=reason)

    for name in values:
        needs = all_keys()[name].needs
        if name == "freeze_trainable_layers" and kept.get("use_llama_pro"):
            continue  # with an adapter too it says how many layers were added
        if name in SAMPLING and values.get("stage") == "ppo":
            continue  # its answers are generated
        if needs is not None and values.get(needs[0], all_keys()[needs[0]].default) not in needs[1]:
            drop(name, f"only with {needs[2]}")
    if "warmup_ratio" in kept and kept.get("warmup_steps", 0) > 0:
        drop("warmup_ratio", "warmup_steps is set as well, and wins")
    for name in ("quantization_method", "quantization_type", "double_quantization"):
        if name in kept and not kept.get("quantization_bit"):
            drop(name, "only with quantization_bit")
    for old, new in RENAMED.items():
        if old in kept and new in kept:
            drop(old, f"{new} is set as well, and wins")
        elif old in kept:
            kept[new] = kept.pop(old)
    if isinstance(kept.get("fsdp"), list):
        told["fsdp"] = replace(told["fsdp"], verdict="translated", note="→ one text")
    return kept, told | _packing(kept, told)


def _packing(kept: Mapping[str, Any], told: Mapping[str, KeyNote]) -> dict[str, KeyNote]:
    if kept.get("neat_packing"):
        return {} if "packing" in kept else {"neat_packing": replace(told["neat_packing"], note="turns packing on")}
    if kept.get("packing") and kept.get("stage", "sft") == "sft":
        note = "rows of a pack do not see each other; in LLaMA-Factory only with neat_packing"
        return {"packing": replace(told["packing"], note=note)}
    return {}


def _rules(values: Mapping[str, Any], notes: Mapping[str, KeyNote], file: str) -> dict[str, KeyNote]:
    told = dict(notes)

    def get(name: str) -> Any:
        return values[name] if name in values else all_keys()[name].default

    for rule in RULES:
        for name, problem in rule(get):
            before = told.get(name)
            if before is None or before.verdict != "refused":
                told[name] = KeyNote(name, before.value if before else None, "refused", problem, before.place if before else file)
    return told


def _launcher(written: Any, places: Mapping[str, str], file: str) -> tuple[Launcher, list[KeyNote]]:
    if written is None:
        return Launcher(), []
    if not isinstance(written, dict):
        return Launcher(), [KeyNote("fl", written, "refused", "wanted a mapping (`fl: {hw: cpu}`)", places.get("fl", file))]
    notes: list[KeyNote] = []
    values: dict[str, Any] = {}
    for name, value in written.items():
        place = places.get(f"fl.{name}", places.get("fl", file))
        if name not in LAUNCHER_KEYS:
            notes.append(KeyNote(f"fl.{name}", value, "refused", _hint(nearest(name, list(LAUNCHER_KEYS))), place))
        elif value is None:
            notes.append(KeyNote(f"fl.{name}", value, "handled", _UNSET, place))
        else:
            try:
                values[name], note = read_one(name, value)
                shown = dict.fromkeys(value, "(not shown)") if name == "env" else value
                notes.append(KeyNote(f"fl.{name}", shown, "translated" if note else "handled", note, place))
            except WrongValueError as wrong:
                notes.append(KeyNote(f"fl.{name}", value, "refused", f"found {wrong}, wanted {wanted(name)}", place))
    return Launcher(**values), notes
