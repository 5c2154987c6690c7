"""`fl images`: what CI types."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fl import ui
from fl.commands import images_make, images_ship
from fl.commands.groups import Group
from fl.commands.images_lock import lock as lock_command
from fl.errors import ImageError, UsageError

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
                    "lock": lock.state(stack.id, flavor, platform),
                    "lock_sha256": lock.sha256(found) if found else None,
                })  # fmt: skip
    return sorted(entries, key=lambda entry: entry["platform"] != host_platform())


@images.command("list")
@click.option("--json", "as_json", is_flag=True, help="The build matrix as one JSON document.")
@click.option("--changed-since", metavar="REV", help="Only images whose row, lock, template or our code differs from a revision.")
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
        cure = "`fl images lock STACK` where the row's index can be reached"
        ui.say(f"{len(missing)} without a complete lock cannot be built yet: {cure}", hang=2)


@images.command()
@click.argument("stacks", nargs=-1, metavar="[STACK]...")
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), help="Write DIR/<lane>/<stack>.<flavor>.Dockerfile.")
@click.option("--base", metavar="REF", help="The training image from this base instead of the row's, as build --base.")
@click.option("--json", "as_json", is_flag=True, help="Texts, files and the state of each lock as one JSON document.")
def render(stacks: tuple[str, ...], output: Path | None, base: str | None, as_json: bool) -> None:
    """Render Dockerfiles: all, or those of the named stacks. Offline."""
    from fl import matrix as rows
    from fl import whole
    from fl.images import lock
    from fl.images import render as rendering

    if base is not None and len(stacks) != 1:
        raise UsageError("--base replaces the base of one stack", "fl images render STACK --base REF")
    matrix = rows.load()
    entries: list[dict[str, Any]] = []
    for stack in _chosen(matrix, stacks):
        for flavor in rendering.flavors(stack) if base is None else rendering.flavors(stack)[:1]:
            file = str(output / rendering.filename(stack, flavor)) if output else None
            locks = {platform: lock.state(stack.id, flavor, platform) for platform in stack.hosts.platforms}
            text = rendering.dockerfile(matrix, stack, flavor, base)
            entries.append({"stack": stack.id, "lane": stack.lane, "flavor": flavor, "locks": locks, "file": file, "text": text})
    if output:
        whole.write({Path(one["file"]): one["text"] for one in entries}, ImageError, "fl images render --output DIR")
    for one in entries:
        if one["file"]:
            ui.say(one["file"])
        elif not as_json:
            ui.out(one["text"].rstrip("\n"))
        without, partial = ([name for name, state in one["locks"].items() if state == wanted] for wanted in ("absent", "partial"))
        if without:
            ui.warning(f"{one['stack']} has no lock for {', '.join(without)}: it cannot be built there")
        if partial:
            ui.warning(f"the lock of {one['stack']} for {', '.join(partial)} is partial: it is built there with --allow-unlocked only")
    if as_json:
        ui.document({"schema": 1, "dockerfiles": entries})
