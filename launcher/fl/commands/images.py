"""`fl images`: what CI types."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fl import ui
from fl.commands import images_make, images_ship
from fl.commands.groups import Group
from fl.commands.images_lock import lock as lock_command
from fl.errors import ImageError

if TYPE_CHECKING:
    from fl.matrix import Matrix, Stack


@click.group(cls=Group)
def images() -> None:
    """List, render, lock, build, verify and ship images."""


for _command in (*images_make.COMMANDS, *images_ship.COMMANDS):
    images.add_command(_command)
images.add_command(lock_command)


def _chosen(matrix: Matrix, ids: tuple[str, ...]) -> list[Stack]:
    """The named rows, or all that are built."""
    if ids:
        return [matrix.stack(name) for name in ids]
    return [stack for stack in matrix.stacks if stack.status != "retired"]


def _listed(matrix: Matrix) -> list[dict[str, Any]]:
    """One entry for each image, the host's platform first."""
    from fl import settings
    from fl.images import lock, render, tags
    from fl.images.context import host_platform

    registry = settings.load().registry
    entries = []
    for stack in _chosen(matrix, ()):
        for flavor in render.flavors(stack):
            for platform in stack.hosts.platforms:
                found = lock.path(stack.id, flavor, platform)
                entries.append({
                    "stack": stack.id,
                    "lane": stack.lane,
                    "flavor": flavor,
                    "platform": platform,
                    "reference": tags.reference(stack.id, flavor, registry=registry),
                    "base": render.base(stack, flavor),
                    "status": stack.status,
                    "lock": "complete" if found else "partial" if lock.path(stack.id, flavor, platform, partial=True) else "absent",
                    "lock_sha256": lock.sha256(found) if found else None,
                })  # fmt: skip
    return sorted(entries, key=lambda entry: entry["platform"] != host_platform())


@images.command("list")
@click.option("--json", "as_json", is_flag=True, help="The build matrix as one JSON document.")
@click.option("--changed-since", metavar="REV", help="Only images whose row, lock or template differs from a revision of this checkout.")
@click.option("--md", is_flag=True, help="The table of docs/images.md: versions, locks, digests, sizes, what changed.")
def list_(as_json: bool, changed_since: str | None, md: bool) -> None:
    """List the images that can be built, this machine's platform first."""
    from fl import matrix as rows

    matrix = rows.load()
    if md:
        from fl.images import built

        ui.out(built.page(matrix, built.read()))
        return
    entries = _listed(matrix)
    if changed_since is not None:
        from fl.images import changed

        entries = changed.narrow(entries, matrix, changed_since)
    if as_json:
        ui.document({"schema": 1, "images": entries})
        return
    header = ("stack", "flavor", "platform", "status", "lock", "base")
    lines = [(e["stack"], e["flavor"], e["platform"], e["status"], (e["lock_sha256"] or e["lock"])[:12], e["base"]) for e in entries]
    ui.table(header, lines)
    missing = [e for e in entries if e["lock_sha256"] is None]
    if missing:
        ui.say(f"{len(missing)} without a complete lock cannot be built yet: `fl images lock STACK` where the row's index can be reached")


@images.command()
@click.argument("stacks", nargs=-1, metavar="[STACK]...")
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), help="Write DIR/<lane>/<stack>.<flavor>.Dockerfile.")
def render(stacks: tuple[str, ...], output: Path | None) -> None:
    """Render Dockerfiles: all, or those of the named stacks. Offline."""
    from fl import matrix as rows
    from fl.images import lock
    from fl.images import render as rendering

    matrix = rows.load()
    for stack in _chosen(matrix, stacks):
        for flavor in rendering.flavors(stack):
            text = rendering.dockerfile(matrix, stack, flavor)
            if output is None:
                ui.out(text.rstrip("\n"))
            else:
                _write(output / rendering.filename(stack, flavor), text)
            held = {name: lock.path(stack.id, flavor, name, partial=True) for name in stack.hosts.platforms}
            without = [name for name, file in held.items() if file is None]
            partial = [name for name in stack.hosts.platforms if held[name] and lock.path(stack.id, flavor, name) is None]
            if without:
                ui.warning(f"{stack.id} has no lock for {', '.join(without)}: it cannot be built there")
            if partial:
                ui.warning(f"the lock of {stack.id} for {', '.join(partial)} is partial: it is built there with --allow-unlocked only")


def _write(target: Path, text: str) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ImageError(f"{target} cannot be written: {error.strerror}", "fl images render --output DIR") from error
    ui.say(str(target))
