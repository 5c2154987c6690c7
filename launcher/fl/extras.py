"""Which optional packages a recipe asks for, and whether the stack has them locked: they are put beside its own, which stay untouched."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from fl import paths
from fl.errors import RecipeError
from fl.images import extras as locks
from fl.images import lock

if TYPE_CHECKING:
    from fl.matrix import Extra, Matrix, Stack
    from fl_trainers.config import Config


KEYS: Final = ("use_galore", "use_apollo", "use_badam", "use_adam_mini", "optim", "report_to")
"""Keys of a recipe that can ask for an extra."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """An extra that a run uses."""

    name: str
    packages: tuple[str, ...]
    """`name==version` of what was asked for; what that needs is in the lock too."""
    requirements: str
    """Lines for an installer."""
    lock_sha256: str
    """Hash of the file that they are in."""
    python: str
    platform: str

    @property
    def folder(self) -> Path:
        """Where it is put, and mounted from: known before it is made, since it is named by its content."""
        text = f"{self.python} {self.platform}\n{self.requirements}"
        return paths.cache_home() / "extras" / f"{self.name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"

    def to_json(self) -> dict[str, Any]:
        """One entry of a plan's `extras`, and of a run's evidence."""
        return {"name": self.name, "packages": list(self.packages), "folder": str(self.folder), "lock_sha256": self.lock_sha256}


def wanted(matrix: Matrix, config: Config) -> dict[str, str]:
    """Extra → `key: value` of the recipe that asks for it, in the matrix's order. `report_to: all` asks for what is there, so for none."""
    said = list(_said(config))
    found = {}
    for name, extra in matrix.extras.items():
        by = next((f"{key}: {value}" for key, value in said if key in extra.asked_by and fnmatchcase(value, extra.asked_by[key])), None)
        if by is not None:
            found[name] = by
    return found


def _said(config: Config) -> Iterator[tuple[str, str]]:
    """Key and value, as a recipe says them, of what could need an extra."""
    method, arguments = config.method, config.training.arguments
    if method.low_rank is not None:
        yield f"use_{method.low_rank.kind}", "true"
    if method.badam is not None:
        yield "use_badam", "true"
    if method.use_adam_mini:
        yield "use_adam_mini", "true"
    yield "optim", str(arguments.get("optim") or "")
    reported = arguments.get("report_to") or ()
    yield from (("report_to", str(name)) for name in ([reported] if isinstance(reported, str) else reported))


def choose(matrix: Matrix, stack: Stack, platform: str | None, config: Config) -> tuple[Chosen, ...]:
    """What is to be put beside the stack's own packages. RecipeError where the stack has no lock of it, with the reason."""
    asked = wanted(matrix, config)
    if not asked:
        return ()
    platform = platform or stack.hosts.platforms[0]
    made = locks.read(stack, platform)
    found = []
    for name, by in asked.items():
        if made is None or name not in made.needs:
            raise _refusal(matrix, stack, platform, name, by, made)
        if made.needs[name]:
            found.append(_chosen(stack, platform, name, matrix.extras[name], made))
    return tuple(found)


def locked(matrix: Matrix, stack: Stack, platform: str) -> tuple[Chosen, ...]:
    """All that a stack has on a platform."""
    made = locks.read(stack, platform)
    if made is None:
        return ()
    return tuple(_chosen(stack, platform, name, extra, made) for name, extra in matrix.extras.items() if made.needs.get(name))


def _chosen(stack: Stack, platform: str, name: str, extra: Extra, made: locks.ExtrasLock) -> Chosen:
    return Chosen(
        name=name, packages=tuple(f"{package}=={version}" for package, version in extra.packages.items()),
        requirements=made.requirements(name), lock_sha256=lock.sha256(locks.place(stack, platform)), python=stack.python, platform=platform,
    )  # fmt: skip


def _refusal(matrix: Matrix, stack: Stack, platform: str, name: str, by: str, made: locks.ExtrasLock | None) -> RecipeError:
    packages = ", ".join(matrix.extras[name].packages)
    why = "its own lock is not complete, and extras are locked beside that"
    if lock.path(stack.id, "train", platform) is not None:
        why = "its extras are not locked yet" if made is None else made.absent.get(name, "its extras were locked before this one was known")
    having = [one.id for one in matrix.stacks if one.lane == stack.lane and one.status != "retired" and _has(one, name)]
    remedy = [f"--stack {other}, which has it" for other in having[:2] if other != stack.id]
    remedy += ["report_to=none" if by.startswith("report_to") else f"the recipe without {by}"]
    remedy += [f"--engine host --python PATH, an interpreter that has {packages}"]
    return RecipeError(f"{by} needs the package {packages}, which is not locked for {stack.id} on {platform}: {why}", "\n".join(remedy))


def _has(stack: Stack, name: str) -> bool:
    return any((made := locks.read(stack, platform)) is not None and name in made.needs for platform in stack.hosts.platforms)


def check(matrix: Matrix, stack: Stack, config: Config) -> tuple[Chosen, ...]:
    """The same before a machine is known: on the first platform of the row that has it."""
    refused = None
    for platform in stack.hosts.platforms:
        try:
            return choose(matrix, stack, platform, config)
        except RecipeError as error:
            refused = refused or error
    if refused is None:
        return ()
    raise refused
