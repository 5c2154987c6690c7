"""`fl images lock --extras`: resolve what optional packages need on each stack, or prove that it belongs to the stacks' locks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fl import ui
from fl.errors import MatrixError

if TYPE_CHECKING:
    from fl.matrix import Matrix, Stack


@dataclass(slots=True)
class LockedExtras:
    """The extras of one stack on one platform: what was found or made."""

    stack: Stack
    platform: str
    locked: tuple[str, ...] = ()
    absent: dict[str, str] = field(default_factory=dict)
    packages: int = 0
    problems: list[str] = field(default_factory=list)
    changed: bool = False

    @property
    def title(self) -> str:
        return f"{self.stack.id} extras {self.platform}"

    def document(self) -> dict[str, Any]:
        return {
            "stack": self.stack.id, "platform": self.platform, "extras": list(self.locked), "absent": self.absent,
            "packages": self.packages, "problems": self.problems, "changed": self.changed,
        }  # fmt: skip

    def line(self) -> str:
        """For the screen."""
        told = ", ".join(self.locked) or "none"
        lines = [f"  {self.title}: {told} ({self.packages} packages)" + (", changed" if self.changed else "")]
        return "\n".join([*lines, *(f"    without {name}: {why}" for name, why in self.absent.items())])


def of_stacks(matrix: Matrix, ids: Sequence[str], platforms: Sequence[str]) -> Iterator[LockedExtras]:
    """Those that can be: of the stacks whose own lock is complete. MatrixError where a named one's is not."""
    from fl.images import lock

    for stack in [matrix.stack(name) for name in ids] or [one for one in matrix.stacks if one.status != "retired"]:
        for platform in stack.hosts.platforms:
            if platforms and platform not in platforms:
                continue
            if lock.path(stack.id, "train", platform) is not None:
                yield LockedExtras(stack, platform)
            elif ids:
                raise MatrixError(
                    f"{stack.id} has no complete lock for {platform}: extras are locked beside that", f"fl images lock {stack.id}"
                )


def check(matrix: Matrix, one: LockedExtras) -> None:
    """Fills in what is there and what is wrong with it."""
    from fl.images import extras

    one.problems = extras.findings(matrix, one.stack, one.platform)
    _describe(one)


def resolve(matrix: Matrix, one: LockedExtras) -> None:
    """Makes the file; a reason that none can be made becomes a problem."""
    from fl.images import extras, extras_resolve

    place = extras.place(one.stack, one.platform)
    before = place.read_text(encoding="utf-8") if place.is_file() else None
    try:
        text = extras_resolve.resolve(matrix, one.stack, one.platform)
    except MatrixError as error:
        one.problems = [error.message]
        return
    extras_resolve.write(one.stack, one.platform, text)
    one.changed = text != before
    _describe(one)


def _describe(one: LockedExtras) -> None:
    from fl.images import extras

    place = extras.place(one.stack, one.platform)
    made = extras.parse(place.read_text(encoding="utf-8")) if place.is_file() else None
    if made is not None:
        one.locked, one.absent, one.packages = tuple(made.needs), dict(made.absent), len(made.entries)


def run(matrix: Matrix, ids: Sequence[str], platforms: Sequence[str], *, only_check: bool, as_json: bool) -> None:
    """The command. MatrixError with all problems."""
    from fl.commands import images_lock

    found = list(of_stacks(matrix, ids, platforms))
    for one in found:
        if only_check:
            check(matrix, one)
        else:
            ui.step(one.title)
            resolve(matrix, one)
        ui.say(one.line())
    if wrong := _problems(found):
        raise MatrixError("\n".join(wrong), "fl images lock --extras STACK   makes it again" if only_check else images_lock.UNRESOLVED)
    if as_json:
        ui.document({"schema": 1, "extras": [one.document() for one in found]})


def _problems(found: Sequence[LockedExtras]) -> list[str]:
    return [f"{one.title}: {text}" for one in found for text in one.problems]


def checked(matrix: Matrix) -> list[str]:
    """What is wrong with the extras of any stack."""
    found = list(of_stacks(matrix, (), ()))
    for one in found:
        check(matrix, one)
    return _problems(found)
