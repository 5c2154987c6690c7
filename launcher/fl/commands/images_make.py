"""`fl images build|verify`: making an image, and looking at it from inside."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fl import ui
from fl.errors import ImageError

if TYPE_CHECKING:
    from fl.matrix import Matrix, Stack


@click.command()
@click.argument("stack")
@click.option("--base", metavar="REF", help="Start from this image instead of the row's.")
@click.option("--find-links", "links", multiple=True, type=click.Path(exists=True, path_type=Path), help="Wheels that no index has.")
@click.option("--ca", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Certificates of the site; not kept in the image.")
@click.option("--allow-unlocked", is_flag=True, help="Also from a partial lock: what it lacks is installed without a hash.")
@click.option("--json", "as_json", is_flag=True, help="What was built as one JSON document.")
def build(stack: str, base: str | None, links: tuple[Path, ...], ca: Path | None, allow_unlocked: bool, as_json: bool) -> None:
    """Build the image of STACK for this machine's platform with docker buildx."""
    import time

    from fl import matrix as rows
    from fl import settings
    from fl.images import build as building
    from fl.images.context import Site

    matrix = rows.load()
    begin = time.monotonic()
    site = Site(base=base, links=links, ca=ca, allow_unlocked=allow_unlocked)
    built = building.build(matrix, matrix.stack(stack), site=site, registry=settings.load().registry)
    seconds = time.monotonic() - begin
    if as_json:
        ui.document({**asdict(built), "seconds": round(seconds, 1)})
    else:
        ui.out(f"{built.reference}  {built.id[7:19]}  {built.size / 1e9:.2f} GB  {seconds:.0f} s")


@click.command()
@click.argument("name", metavar="REF|STACK")
@click.option("--json", "as_json", is_flag=True, help="The findings as one JSON document.")
def verify(name: str, as_json: bool) -> None:
    """Check a built image from inside: versions, imports, user, labels, no caches, a tiny training run."""
    from fl import matrix as rows
    from fl import settings
    from fl.images import tags
    from fl.images import verify as verifying

    matrix = rows.load()
    stack, reference = _meant(matrix, name)
    reference = reference or tags.reference(stack.id, registry=settings.load().registry)
    found = verifying.verify(matrix, stack, reference)
    if as_json:
        ui.document({"reference": reference, "stack": stack.id, "problems": found})
    else:
        ui.out(f"{reference}: " + (f"{len(found)} problems" if found else "is what its lock and its row say"))
        for one in found:
            ui.out(f"  {one}")
    if found:
        raise click.exceptions.Exit(ImageError.exit_code)


def _meant(matrix: Matrix, name: str) -> tuple[Stack, str | None]:
    """The row behind a stack id or behind the label of an image; the reference where one was given."""
    import subprocess

    from fl.images.build import ask_daemon

    if name in {stack.id for stack in matrix.stacks}:
        return matrix.stack(name), None
    ask_daemon()
    done = subprocess.run(["docker", "image", "inspect", name], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ImageError(f"{name} is neither a stack nor an image on this machine", "fl images list")
    label = (json.loads(done.stdout)[0]["Config"].get("Labels") or {}).get("fl.stack")
    if label is None:
        raise ImageError(f"{name} is no image of fl: it has no label fl.stack", "fl images list")
    return matrix.stack(label), name


COMMANDS = (build, verify)
