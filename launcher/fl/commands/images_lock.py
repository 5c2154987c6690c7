"""`fl images lock`: resolve the locks of images, or prove that they belong to their rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from fl import ui
from fl.errors import MatrixError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from fl.matrix import Flavor, Matrix, Stack


UNRESOLVED = "fl matrix show STACK   its pins: some may not go together\nmirrors: {index: …} in the settings, where an index is far"
"""What to do about a lock that could not be made."""


@dataclass(slots=True)
class Locked:
    """One lock: what was found or made."""

    stack: Stack
    flavor: Flavor
    platform: str
    file: Path | None = None
    packages: int = 0
    state: str = "absent"
    """complete, partial, absent or failed."""
    unlocked: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    changed: bool = False

    @property
    def title(self) -> str:
        return f"{self.stack.id} {self.flavor} {self.platform}"

    def document(self) -> dict[str, Any]:
        return {
            "stack": self.stack.id, "flavor": self.flavor, "platform": self.platform, "file": self.file.name if self.file else None,
            "state": self.state, "packages": self.packages, "unlocked": self.unlocked, "problems": self.problems, "changed": self.changed,
        }  # fmt: skip


@click.command("lock")
@click.argument("stacks", nargs=-1, metavar="[STACK]...")
@click.option("--flavor", type=click.Choice(["train", "serve"]), help="Only this one.")
@click.option("--platform", "platforms", multiple=True, metavar="P", help="Only this one, e.g. linux/arm64.")
@click.option("--extras", is_flag=True, help="Optional packages beside the stacks' locks, instead of those.")
@click.option("--jit", is_flag=True, help="nvcc of the jit variants beside the stacks' locks, instead of those.")
@click.option("--digests", is_flag=True, help="First write what the registries say of the bases into the rows; --check only compares.")
@click.option("--check", is_flag=True, help="Prove offline that the locks belong to their rows and satisfy them; write nothing.")
@click.option("--json", "as_json", is_flag=True, help="What was found or made as one JSON document.")
def lock(
    stacks: tuple[str, ...], flavor: Flavor | None, platforms: tuple[str, ...], extras: bool, jit: bool, digests: bool, check: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Resolve the locks of stacks: all, or the named ones. The same again until the row or its exclude_newer changes."""
    from fl import matrix as rows
    from fl.commands import images_digests, images_extras, images_jit
    from fl.images.ending import interruptible

    if extras + jit + digests > 1 or (flavor and (extras or jit)):
        raise UsageError("--extras, --jit and --digests go one at a time; --extras and --jit take no --flavor", "fl images lock --help")
    matrix = rows.load()
    found = list(_wanted(matrix, stacks, flavor, platforms))
    if extras or jit:
        with interruptible("the locking"):
            (images_extras if extras else images_jit).run(matrix, stacks, platforms, only_check=check, as_json=as_json)
        return
    bases: list[dict[str, Any]] = []
    if digests:
        matrix, bases = images_digests.run(matrix, stacks, write=not check)
        found = list(_wanted(matrix, stacks, flavor, platforms))
    for one in found:
        if check:
            _check(matrix, one, named=bool(stacks))
        else:
            ui.step(one.title)
            with interruptible(f"the lock of {one.title}"):
                _resolve(matrix, one)
        ui.say(_line(one))
    problems = [f"{one.file.name if one.file else one.title}: {text}" for one in found for text in one.problems]
    if check and not (stacks or flavor or platforms):
        problems += [*images_extras.checked(matrix), *images_jit.checked(matrix)]
    if as_json and not problems:
        told = {"schema": 1, "locks": [one.document() for one in found]}
        ui.document({**told, "digests": bases} if digests else told)
    changed = dict.fromkeys(one.stack.id for one in found if one.changed and one.flavor == "train")
    if changed and not check:
        ui.say(f"what is locked beside a stack's lock is to be locked again: fl images lock --extras {' '.join(changed)}; and --jit")
    if problems:
        raise MatrixError("\n".join(problems), "fl images lock [--extras|--jit] STACK   makes it again" if check else UNRESOLVED)


def _wanted(matrix: Matrix, ids: tuple[str, ...], flavor: Flavor | None, platforms: tuple[str, ...]) -> Iterator[Locked]:
    """The locks that are meant. MatrixError for a platform or a flavor that no row has, or that no named row has."""
    from fl.images import render

    chosen = [matrix.stack(name) for name in ids] or [stack for stack in matrix.stacks if stack.status != "retired"]
    known = sorted({name for stack in chosen for name in stack.hosts.platforms})
    for platform in platforms:
        if platform not in known:
            raise MatrixError(f"no image for {platform}; known: {', '.join(known)}", "fl images list")
    if flavor and not any(flavor in render.flavors(stack) for stack in chosen):
        raise MatrixError(f"{', '.join(ids)} has no {flavor} image", "fl images list")
    for stack in chosen:
        for one in render.flavors(stack):
            if flavor in (None, one):
                yield from (Locked(stack, one, name) for name in stack.hosts.platforms if not platforms or name in platforms)


def _describe(one: Locked, text: str) -> None:
    from fl.images import lock as locks
    from fl.images import lock_header

    header = lock_header.parse(text)
    one.packages = len(locks.parse(text))
    one.unlocked = [f"{missing.name}=={missing.version}: {missing.reason}" for missing in header.unlocked] if header else []
    one.state = "partial" if one.unlocked else "complete"


def _check(matrix: Matrix, one: Locked, *, named: bool) -> None:
    """An absent lock is a problem only where its stack was named."""
    from fl.images import lock as locks

    one.file = locks.path(one.stack.id, one.flavor, one.platform, partial=True)
    if one.file is None:
        one.problems = ["no lock"] if named else []
        return
    text = one.file.read_text(encoding="utf-8")
    _describe(one, text)
    one.problems = _findings(matrix, one, text)


def _findings(matrix: Matrix, one: Locked, text: str) -> list[str]:
    from fl.images import lock_check

    return lock_check.findings(matrix, one.stack, one.flavor, one.platform, text)


def _resolve(matrix: Matrix, one: Locked) -> None:
    from fl.images import lock as locks

    before = locks.path(one.stack.id, one.flavor, one.platform, partial=True)
    old = before.read_text(encoding="utf-8") if before else None
    try:
        text = locks.resolve(matrix, one.stack, one.flavor, one.platform, None if one.stack.until(one.flavor) else old)
    except MatrixError as error:
        one.state, one.problems = "failed", [error.message]
        return
    _describe(one, text)
    if before and old and one.state == "partial" and not locks.is_partial(old) and not _findings(matrix, one, old):
        ui.warning(f"{before.name} is complete and its row's: it stays, since here {'; '.join(one.unlocked)}")
        _describe(one, old)
        one.file = before
        return
    one.changed = text != old
    one.file = locks.write(one.stack, one.flavor, one.platform, text)


def _line(one: Locked) -> str:
    if one.state in ("absent", "failed"):
        return f"  {one.title}: {'no lock' if one.state == 'absent' else 'could not be locked'}"
    extra = [one.state, *one.unlocked, *([f"{len(one.problems)} problems"] if one.problems else [])]
    return f"  {one.title}: {one.packages} packages, {', '.join(extra)}" + (", changed" if one.changed else "")
