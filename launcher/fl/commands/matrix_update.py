"""`fl matrix update`: newer versions for rows; dry unless told to write."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from fl import ui

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fl.matrix import Flavor, Matrix, Stack
    from fl.matrix_update import Lock, Proposal, Resolve


@click.command()
@click.argument("stacks", nargs=-1, metavar="[STACK]...")
@click.option("--layer", metavar="NAME", help="The libraries that rows share, instead of those that a row pins itself.")
@click.option("--flavor", default="train", show_default=True, type=click.Choice(["train", "serve"]), help="Whose packages.")
@click.option("--torch", metavar="VERSION", help="Propose a new row for this torch: a copy of STACK, or of the nearest row of --lane.")
@click.option("--runtime", metavar="VERSION", help="With --torch: for this CUDA, ROCm or CANN.")
@click.option("--lane", default="cuda", show_default=True, metavar="LANE", help="With --torch and without STACK.")
@click.option("--fresh", is_flag=True, help="Also packages that no row pins.")
@click.option("--write", "writing", is_flag=True, help="Write matrix.yaml, comments kept, and the locks.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def update(
    stacks: tuple[str, ...], layer: str | None, flavor: Flavor, torch: str | None, runtime: str | None, lane: str, fresh: bool,
    writing: bool, as_json: bool,
) -> None:  # fmt: skip
    """Look for newer versions that the rules of the matrix allow, lock again, and say what changes. Writes nothing without --write.

    All rows without STACK. Ends with 8 when a row cannot be resolved.
    """
    from dataclasses import asdict

    from fl import matrix_newer
    from fl import matrix_update as updating
    from fl.errors import MatrixError, UsageError
    from fl.images.ending import interruptible
    from fl.matrix import load

    matrix = load()
    if torch is not None:
        with interruptible("the proposal"):
            _new_row(matrix, stacks, torch, runtime, lane, writing, as_json)
        return
    if runtime is not None:
        raise UsageError("--runtime is for a new row", "fl matrix update --torch VERSION --runtime VERSION")
    if layer is not None and (stacks or flavor != "train"):
        raise UsageError("--layer locks every row of the layer again; it takes no STACK", f"fl matrix update --layer {layer}")
    resolve, make = _told(updating.resolver(matrix), updating.locker(fresh=fresh))
    found = []
    with interruptible("the update"):
        if layer is not None:
            ui.step(f"layer {layer}: looking for newer versions")
            found.append(updating.of_layer(matrix, layer, resolve, make))
        for stack in _targets(matrix, stacks, flavor) if layer is None else ():
            ui.step(f"{stack.id}: looking for newer versions")
            found.append(updating.of_row(matrix, stack, flavor, resolve, make))
        written = updating.write(found) if writing else []
        newer = [] if layer or stacks or flavor != "train" else matrix_newer.torches(matrix, resolve)
    if as_json:
        told = [{**asdict(one), "command": None if one.refused else one.command} for one in newer]
        ui.document({"schema": 1, "proposals": [_json(one) for one in found], "written": written, "torch": told})
    else:
        for one in found:
            _print(one)
        _print_end(found, written, writing)
        for row in newer:
            allowed = "; ".join(row.refused) if row.refused else f"a row for it: {row.command}"
            ui.out(f"{row.lane}: torch {row.torch} is there, the newest row has {row.before}: {ui.clean(allowed)}", hang=2)
    refused = [f"{one.title}: {one.refused}" for one in found if one.refused]
    if refused and not as_json:
        raise MatrixError("\n".join(refused), "fl images lock STACK   says the same with the versions of now")
    if refused:
        raise click.exceptions.Exit(MatrixError.exit_code)


def _told(resolve: Resolve, make: Lock) -> tuple[Resolve, Lock]:
    """The same with a line for each question: a layer asks some hundred, of some seconds each."""

    def resolving(stack: Stack, flavor: Flavor, wanted: Mapping[str, str], platform: str) -> Mapping[str, str]:
        ui.say(f"  {stack.id}, {flavor}, {platform}")
        return resolve(stack, flavor, wanted, platform)

    def making(matrix: Matrix, stack: Stack, flavor: Flavor, platform: str, before: str | None) -> str:
        ui.say(f"  lock of {stack.id}, {flavor}, {platform}")
        return make(matrix, stack, flavor, platform, before)

    return resolving, making


def _targets(matrix: Matrix, stacks: tuple[str, ...], flavor: Flavor) -> list[Stack]:
    if stacks:
        return [matrix.stack(name) for name in stacks]
    return [stack for stack in matrix.stacks if stack.status != "retired" and matrix.packages(stack, flavor)]


def _json(one: Proposal) -> dict[str, Any]:
    from dataclasses import asdict

    from fl import matrix_update as updating

    locks = [
        {
            "stack": c.stack.id, "flavor": c.flavor, "platform": c.platform, "new": c.before is None,
            "packages": [asdict(x) for x in c.difference],
        }
        for c in one.locks
    ]  # fmt: skip
    return {
        "title": one.title, "outcome": "refused" if one.refused else "newer" if one.changes else "current", "refused": one.refused,
        "changes": [asdict(c) for c in one.changes], "held": [asdict(h) for h in one.held],
        "locks": locks, "unlocked": [asdict(u) for u in one.unlocked],
        "dockerfiles": updating.dockerfiles(one), "models": updating.models(one), "look_at": updating.left_over(one),
    }  # fmt: skip


def _print(one: Proposal) -> None:
    from fl import matrix_update as updating
    from fl.images import lock

    ui.out(ui.paint(one.title, "bold") + ("" if one.changes or one.refused else ": nothing newer that fits"))
    for change in one.changes:
        ui.out(f"  {change.name} {change.before} → {change.after}")
    for held in one.held:
        ui.out(f"  held: {held.name} {held.version}: {held.reason}")
    for place in one.unlocked:
        ui.out(f"  not locked: {ui.clean(str(place))}")
    for locked in one.locks:
        moved = [f"{c.name} {c.before or '(new)'} → {c.after or '(gone)'}" for c in locked.difference]
        where = f"{locked.stack.id}, {locked.flavor}, {locked.platform}"
        ui.out(f"  lock for {where}: {len(moved)} of {len(lock.parse(locked.after))} packages change")
        for text in moved:
            ui.out(f"    {text}")
    if patch := updating.dockerfiles(one):
        ui.out("  Dockerfile:")
        ui.out("\n".join(f"    {line}" for line in patch.splitlines()))
    for model in updating.models(one):
        ui.out(f"  {model['model']} on {model['stack']}: {model['before']} → {model['after']}: {model['why']}", hang=2)
    for line in updating.left_over(one):
        ui.out(f"  look at {line}")


def _print_end(found: list[Proposal], written: list[str], writing: bool) -> None:
    newer = [one for one in found if one.changes]
    for name in written:
        ui.say(f"written: {name}")
    if newer and not writing:
        ui.say("nothing is written; --write does")
    if newer:
        ui.say("a row with other pins is not proven: train with it (`fl run --stack ID`), then let status and confidence say so", hang=2)


def _new_row(
    matrix: Matrix, stacks: tuple[str, ...], torch: str, runtime: str | None, lane: str, writing: bool, as_json: bool
) -> None:
    from fl import matrix_row
    from fl.errors import MatrixError, UsageError
    from fl.matrix_update import locker

    if len(stacks) > 1:
        raise UsageError("a new row is the copy of one", f"fl matrix update {stacks[0]} --torch {torch}")
    sibling = matrix.stack(stacks[0]) if stacks else matrix_row.nearest(matrix, torch, lane, runtime)
    ui.step(f"a row for torch {torch}, copied from {sibling.id}")
    row = matrix_row.propose(matrix, sibling, torch, runtime, locker(fresh=True))
    if row.unlocked and not row.locks:
        lines = "\n".join(f"  {ui.clean(str(one))}" for one in (*row.findings, *row.unlocked))
        raise MatrixError(f"{row.stack.id} cannot be resolved on any platform, and is not written\n{lines}", "another --torch or --runtime")
    written = matrix_row.write(row) if writing else []
    if as_json:
        locks = [{"stack": c.stack.id, "flavor": c.flavor, "platform": c.platform} for c in row.locks]
        unlocked = [{"platform": u.platform, "reason": u.reason} for u in row.unlocked]
        ui.document({"schema": 1, "stack": row.stack.id, "sibling": sibling.id, "row": row.block, "findings": list(row.findings),
                     "locks": locks, "unlocked": unlocked, "written": written})  # fmt: skip
        return
    ui.out(row.block.rstrip("\n"))
    for finding in row.findings:
        ui.out(f"  not allowed: {finding}")
    for place in row.unlocked:
        ui.out(f"  not locked: {ui.clean(str(place))}")
    for locked in row.locks:
        ui.out(f"  lock for {locked.platform}: {len(locked.difference)} packages")
    for name in written:
        ui.say(f"written: {name}")
    if not written:
        ui.say("nothing is written; --write does")
    ui.say("what was not checked says so in sources; check it, then train with the row: docs/adding-a-stack.md", hang=2)
