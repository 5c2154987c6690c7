"""Digests of the base images that rows name, asked of their registries, or of what stands in for those on this site."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fl import matrix_edit, settings
from fl.errors import ImageError
from fl.images import registry

if TYPE_CHECKING:
    from fl.matrix import Matrix, Stack
    from fl.matrix_form import Location


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """A base of a row: where it stands in the matrix, its digest there, and what the registry says."""

    stack: str
    place: Location
    image: str
    before: str | None
    digest: str | None = None
    reason: str | None = None
    """Why there is no digest."""

    @property
    def moved(self) -> bool:
        """Whether the registry has another one than the row says."""
        return self.digest is not None and self.digest != self.before


def look(matrix: Matrix, stacks: Iterable[Stack]) -> list[Base]:
    """What the registries have now, each image asked for once. A digest is that of the bytes that came: an index's where there is one."""
    answers: dict[str, tuple[str | None, str | None]] = {}
    found = []
    for stack, place, image, before in _named(matrix, stacks):
        if image not in answers:
            answers[image] = _ask(image)
        digest, reason = answers[image]
        found.append(Base(stack=stack.id, place=place, image=image, before=before, digest=digest, reason=reason))
    return found


def edited(matrix: Matrix, found: Iterable[Base]) -> str:
    """The matrix's text with the digests that moved; comments and order stay."""
    return matrix_edit.replace(matrix.text, {(*one.place, "digest"): str(one.digest) for one in found if one.moved})


def _named(matrix: Matrix, stacks: Iterable[Stack]) -> Iterator[tuple[Stack, Location, str, str | None]]:
    for stack in stacks:
        here: Location = ("stacks", matrix.stacks.index(stack))
        yield stack, (*here, "base"), stack.base.image, stack.base.digest
        if stack.serve_base is not None:
            yield stack, (*here, "serve_base"), stack.serve_base.image, stack.serve_base.digest


def _ask(image: str) -> tuple[str | None, str | None]:
    """(digest, None) or (None, why there is none)."""
    place = settings.load().mirrors.image(image)
    try:
        name = registry.parse(place)
        manifest = registry.Registry(name.host).manifest(name)
    except ImageError as error:
        return None, error.message
    return (manifest.digest, None) if manifest else (None, f"{name.host} has no {place}")
