"""`fl images lock --jit`: resolve nvcc for the stacks that have a jit variant, or prove that it belongs to the stacks' locks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from fl import ui
from fl.errors import MatrixError

if TYPE_CHECKING:
    from fl.matrix import Matrix, Stack


def _stacks(matrix: Matrix, ids: Sequence[str], platforms: Sequence[str]) -> Iterator[tuple[Stack, str]]:
    """Those whose lock has the toolkit. Raises `jit.refusal` where a named one's has not."""
    from fl.images import jit

    for stack in [matrix.stack(name) for name in ids] or [one for one in matrix.stacks if one.status != "retired"]:
        for platform in stack.hosts.platforms:
            if platforms and platform not in platforms:
                continue
            if jit.toolkit(stack, platform) is not None:
                yield stack, platform
            elif ids:
                raise jit.refusal(stack)


def run(matrix: Matrix, ids: Sequence[str], platforms: Sequence[str], *, only_check: bool, as_json: bool) -> None:
    """The command. MatrixError with all problems."""
    from fl.commands import images_lock
    from fl.images import jit

    told: list[dict[str, Any]] = []
    problems: list[str] = []
    for stack, platform in _stacks(matrix, ids, platforms):
        place, title = jit.place(stack, platform), f"{stack.id} {jit.VARIANT} {platform}"
        before = place.read_text(encoding="utf-8") if place.is_file() else None
        if not only_check:
            ui.step(title)
            try:
                jit.write(stack, platform, jit.resolve(stack, platform))
            except MatrixError as error:
                problems.append(f"{title}: {error.message}")
                continue
        problems += [f"{title}: {text}" for text in jit.findings(stack, platform)]
        packages = jit.packages(stack, platform)
        changed = before is not None and jit.text(stack, platform) != before
        ui.say(f"  {title}: {', '.join(f'{name} {version}' for name, version in packages.items())}" + (", changed" if changed else ""))
        told.append({"stack": stack.id, "platform": platform, "packages": packages, "changed": changed})
    if problems:
        raise MatrixError("\n".join(problems), "fl images lock --jit STACK   makes it again" if only_check else images_lock.UNRESOLVED)
    if as_json:
        ui.document({"schema": 1, "jit": told})


def checked(matrix: Matrix) -> list[str]:
    """What is wrong with the nvcc of any stack."""
    from fl.images import jit

    pairs = [(stack, platform) for stack in matrix.stacks if stack.status != "retired" for platform in stack.hosts.platforms]
    return [f"{stack.id} {jit.VARIANT} {platform}: {text}" for stack, platform in pairs for text in jit.findings(stack, platform)]
