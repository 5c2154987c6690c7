"""What differs between two images, or two locks: packages, system packages, layers, sizes. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fl.images.inventory import Inventory


@dataclass(frozen=True, slots=True)
class Change:
    """One name with what it was and what it is; None: not there."""

    name: str
    before: str | None
    after: str | None


def changes(before: Mapping[str, str], after: Mapping[str, str]) -> list[Change]:
    """The names whose values differ, sorted."""
    names = sorted(before.keys() | after.keys())
    return [Change(name, before.get(name), after.get(name)) for name in names if before.get(name) != after.get(name)]


def labels(before: Inventory, after: Inventory) -> list[Change]:
    """Labels that differ, where both sides are images."""
    return changes(before.labels, after.labels) if before.kind == after.kind == "image" else []


def layer_changes(before: Inventory, after: Inventory) -> list[tuple[str, int | None, int | None]]:
    """(step, bytes before, bytes after) of steps that differ in size or stand on one side only."""
    old, new = _by_step(before), _by_step(after)
    names = [*old, *(name for name in new if name not in old)]
    return [(name, old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)]


def _by_step(one: Inventory) -> dict[str, int]:
    """Bytes by step; those of the same words are one entry."""
    found: dict[str, int] = {}
    for step, size in one.layers:
        found[step] = found.get(step, 0) + size
    return found


def document(before: Inventory, after: Inventory) -> dict[str, object]:
    """The whole comparison as JSON."""
    system = changes(before.system, after.system) if before.system is not None and after.system is not None else None
    both = before.kind == after.kind == "image"
    return {
        "schema": 1,
        "from": _side(before),
        "to": _side(after),
        "packages": [_change(one) for one in changes(before.packages, after.packages)],
        "system_packages": None if system is None else [_change(one) for one in system],
        "labels": [_change(one) for one in labels(before, after)],
        "layers": [{"step": step, "from": old, "to": new} for step, old, new in layer_changes(before, after)] if both else None,
    }


def _side(one: Inventory) -> dict[str, object]:
    return {
        "name": one.name, "kind": one.kind, "packages_from": one.source, "packages": len(one.packages), "platform": one.platform,
        "id": one.id, "digest": one.digest, "size": one.size, "unlocked": list(one.unlocked),
    }  # fmt: skip


def _change(one: Change) -> dict[str, str | None]:
    return {"name": one.name, "from": one.before, "to": one.after}
