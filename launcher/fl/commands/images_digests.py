"""`fl images lock --digests`: the digests of base images, from their registries into the rows."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from fl import ui
from fl.errors import ImageError, MatrixError

if TYPE_CHECKING:
    from fl.matrix import Matrix


def run(matrix: Matrix, ids: tuple[str, ...], *, write: bool) -> tuple[Matrix, list[dict[str, Any]]]:
    """The matrix with the digests of its bases, written, and what was found; its locks are of other rows then. MatrixError where they
    only were compared and one moved, ImageError where none could be had."""
    from fl import matrix as rows
    from fl.images import bases
    from fl.matrix_update import write_matrix

    chosen = [matrix.stack(name) for name in ids] or [stack for stack in matrix.stacks if stack.status != "retired"]
    found = bases.look(matrix, chosen)
    for one in found:
        told = f"{one.digest}{', changed' if one.moved else ''}" if one.digest else f"no digest: {one.reason}"
        ui.say(f"  {one.stack} {one.image}: {ui.clean(told)}")
    if not any(one.digest for one in found):
        raise ImageError(
            f"no base could be asked for: {found[0].reason}", "mirrors: {registry: …} in the settings, where a registry cannot be reached"
        )
    moved = [one for one in found if one.moved]
    if moved and not write:
        told = "\n".join(f"{one.stack}: {one.image} is {one.digest}, the row says {one.before}" for one in moved)
        raise MatrixError(told, "fl images lock --digests STACK   writes it and locks again")
    if moved:
        ui.say(f"written: {write_matrix(bases.edited(matrix, moved))[0]}")
    return rows.load(), [{**asdict(one), "place": one.place[-1], "moved": one.moved} for one in found]
