"""`fl images push|tags|save|load|diff|sbom`: images between this machine and others."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from fl import ui
from fl.errors import ImageError, UsageError

if TYPE_CHECKING:
    from fl.matrix import Flavor, Matrix, Stack

_FLAVOR = click.option("--flavor", default="train", show_default=True, type=click.Choice(["train", "serve"]), help="What the image is for.")
_REGISTRY = click.option("--registry", metavar="HOST[/PATH]", help="Instead of the registry of the settings.")
_JSON = click.option("--json", "as_json", is_flag=True, help="One JSON document.")


def _registry(told: str | None) -> str:
    """The registry of the command line or of the settings; UsageError without one."""
    from fl import paths, settings

    found = told or settings.load().registry
    if found is None:
        file = paths.config_home() / "config.yaml"
        raise UsageError("no registry is configured", f"--registry HOST/PATH, or `registry: HOST/PATH` in {file}")
    return settings.place(found, "--registry") if told else found


def _tell(line: str) -> None:
    ui.say("  " + ui.clean(line))


def _source(matrix: Matrix, name: str, flavor: Flavor, host: str) -> tuple[Stack, Flavor, str]:
    """The row, the flavor and the image on this machine that a stack's id or a reference means."""
    from fl.images import publish, render, tags

    if name not in {stack.id for stack in matrix.stacks} and (":" in name or "/" in name):
        labels = (publish.local(name).get("Config") or {}).get("Labels") or {}
        if "fl.stack" not in labels:
            raise ImageError(f"{name} is no image of fl: it has no label fl.stack", "fl images list")
        return matrix.stack(labels["fl.stack"]), cast("Flavor", labels.get("fl.flavor", flavor)), name
    stack = matrix.stack(name)
    for reference in (tags.reference(stack.id, flavor, registry=host), tags.reference(stack.id, flavor)):
        try:
            publish.local(reference)
        except ImageError:
            continue
        return stack, flavor, reference
    if flavor not in (have := render.flavors(stack)):
        raise UsageError(f"{stack.id} has no {flavor} image: it has {', '.join(have)}", "fl images list")
    more = "" if flavor == "train" else f" --flavor {flavor}"
    raise ImageError(f"the image {tags.reference(stack.id, flavor)} is not on this machine", f"fl images build {stack.id}{more}")


@click.command()
@click.argument("name", metavar="STACK|REF")
@_FLAVOR
@_REGISTRY
@click.option("--moving", is_flag=True, help="Only the moving name: a branch's build, not a release.")
@click.option("--read-back", is_flag=True, help="Read every layer back and compare its hash.")
@click.option("--timeout", default=120.0, show_default=True, type=click.FloatRange(min=1), help="Seconds without a byte: given up.")
@click.option("--retries", default=2, show_default=True, type=click.IntRange(0, 10), help="Further tries after a failure that may pass.")
@click.option("--record", type=click.Path(file_okay=False, path_type=Path), help="Add the digest to what `verify --record` wrote there.")
@_JSON
def push(
    name: str, flavor: Flavor, registry: str | None, moving: bool, read_back: bool, timeout: float, retries: int, record: Path | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Push an image of this machine to the registry, with docker's credentials, and print its digest."""
    from fl import matrix as rows
    from fl.images import publish
    from fl.images import push as pushing
    from fl.images.ending import interruptible

    matrix, host = rows.load(), _registry(registry)
    stack, flavor, source = _source(matrix, name, flavor, host)
    with interruptible("the push"):
        ui.step(f"push {source} to {host}")
        done = publish.publish(stack, flavor, source, host, _tell, only_moving=moving, silence=timeout, retries=retries)
        wrong = pushing.damaged(f"{done.names[0].rsplit(':', 1)[0]}@{done.image.digest}", _tell) if read_back else []
    if wrong:
        raise ImageError(
            f"{done.names[0]} is damaged in the registry {host}:\n" + "\n".join(wrong),
            "delete the layer there (DELETE /v2/NAME/blobs/DIGEST), then push again: docker does not send what the registry says it has",
        )
    if record is not None:
        from fl.images import built

        key = (stack.id, flavor, done.image.platform)
        ui.say(f"  record: {built.add_digest(record, key, str(publish.local(source)['Id']), done.image.digest, done.image.size)}")
    if done.missing:
        ui.warning(f"{done.names[0]} has no {', '.join(done.missing)} of this revision yet")
    if as_json:
        ui.document({"schema": 1, "stack": stack.id, "flavor": flavor, **asdict(done)})
        return
    for one in done.names:
        ui.out(f"{one}  {done.digest}  {', '.join(done.platforms)}")
    ui.say(f"{done.image.size / 1e6:.0f} MB in {done.image.seconds:.0f} s")


@click.command()
@click.argument("stacks", nargs=-1, metavar="[STACK]...")
@_FLAVOR
@_REGISTRY
@click.option("--release", is_flag=True, help="Give what the moving names point at the names of this release, in the registry.")
@_JSON
def tags(stacks: tuple[str, ...], flavor: Flavor, registry: str | None, release: bool, as_json: bool) -> None:
    """List the names of images and what the registry has under them; with --release, name a release there."""
    from fl import matrix as rows
    from fl import settings
    from fl.images import publish
    from fl.images import tags as naming

    matrix = rows.load()
    chosen = [matrix.stack(one) for one in stacks] or [stack for stack in matrix.stacks if stack.status != "retired"]
    if release and not stacks:
        raise UsageError("a release is named for stacks that are told", "fl images tags STACK --release")
    host = _registry(registry) if release else (settings.place(registry, "--registry") if registry else settings.load().registry)
    entries = []
    for stack in chosen:
        if release:
            name, _, new = publish.release(stack, flavor, str(host))
            ui.say(f"{name}: {'named' if new else 'was named already'}")
        for kind, name in (
            ("release", naming.reference(stack.id, flavor, registry=host)),
            ("moving", naming.moving(stack.id, flavor, registry=host)),
        ):
            found = publish.look_up(name) if host else {"digest": None, "platforms": []}
            entries.append({"stack": stack.id, "flavor": flavor, "kind": kind, "name": name, **found})
    if as_json:
        ui.document({"schema": 1, "tags": entries})
        return
    if not host:
        ui.say("no registry is configured: names only")
    lines = [(e["name"], e["kind"], ", ".join(e["platforms"]), e["digest"] or "-") for e in entries]
    ui.table(("name", "kind", "platforms", "digest"), lines)


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="STACK|REF...")
@click.option("--output", "-o", required=True, type=click.Path(dir_okay=False, path_type=Path), help="FILE.tar or FILE.tar.gz.")
@_FLAVOR
@_JSON
def save(names: tuple[str, ...], output: Path, flavor: Flavor, as_json: bool) -> None:
    """Write images of this machine into one file, for a site without internet."""
    from fl import matrix as rows
    from fl import settings
    from fl.images import archive, publish
    from fl.images.ending import interruptible

    publish.need_docker()
    matrix, host = rows.load(), settings.load().registry
    found = [_source(matrix, name, flavor, host or "")[2] for name in names]
    with interruptible("the archive"):
        ui.step(f"save {', '.join(found)} to {output}")
        saved = archive.save(found, output, _tell)
    if as_json:
        ui.document({"schema": 1, **asdict(saved)})
    else:
        ui.out(f"{saved.sha256}  {saved.path}")
        ui.say(f"{saved.size / 1e6:.0f} MB; there: fl images load {output.name}")


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@_JSON
def load(file: Path, as_json: bool) -> None:
    """Give the images of a file to docker, after every layer was compared with its hash."""
    from fl.images import archive, publish
    from fl.images.ending import interruptible

    publish.need_docker()
    with interruptible("the load"):
        ui.step(f"load {file}")
        held = archive.load(file, _tell)
    if as_json:
        images = [{"names": one.names, "platform": one.platform, "size": one.size, "stack": one.labels.get("fl.stack")} for one in held]
        ui.document({"schema": 1, "path": str(file), "images": images})
        return
    for one in held:
        ui.out(f"{', '.join(one.names) or 'an image without a name'}  {one.platform}  {one.size / 1e6:.0f} MB")


@click.command()
@click.argument("before", metavar="A")
@click.argument("after", metavar="B")
@_FLAVOR
@click.option("--platform", help="Of locks; this machine's by default.")
@_JSON
def diff(before: str, after: str, flavor: Flavor, platform: str | None, as_json: bool) -> None:
    """Compare two images: packages, system packages, layers, sizes. A and B are references, stacks (their locks) or STACK@REVISION."""
    from fl import matrix as rows
    from fl.images import diff as differences
    from fl.images import inventory
    from fl.images.context import host_platform

    matrix, where = rows.load(), platform or host_platform()
    old, new = (inventory.of(matrix, name, flavor, where) for name in (before, after))
    for one in (old, new):
        if one.unlocked:
            ui.warning(f"the lock of {one.name} is partial: it lacks {', '.join(one.unlocked)}")
    if as_json:
        ui.document(differences.document(old, new))
        return
    packages = differences.changes(old.packages, new.packages)
    system = differences.changes(old.system or {}, new.system or {}) if old.system is not None and new.system is not None else []
    lines = [(one.name, one.before or "-", one.after or "-") for one in (*packages, *system, *differences.labels(old, new))]
    lines += [(step[:60], _megabytes(a), _megabytes(b)) for step, a, b in differences.layer_changes(old, new) if old.kind == new.kind]
    if old.size is not None and new.size is not None and old.size != new.size:
        lines.append(("size", _megabytes(old.size), _megabytes(new.size)))
    if lines:
        ui.table(("", old.name, new.name), lines)
    ui.say(f"{len(packages)} of {len(old.packages.keys() | new.packages.keys())} packages differ" if lines else "nothing differs")


@click.command()
@click.argument("name", metavar="STACK|REF")
@_FLAVOR
@click.option("--platform", help="Of a lock; this machine's by default.")
@click.option("--output", "-o", type=click.Path(dir_okay=False, path_type=Path), help="Write it to this file instead of the screen.")
@click.option("--json", "as_json", is_flag=True, help="It is JSON always.")
def sbom(name: str, flavor: Flavor, platform: str | None, output: Path | None, as_json: bool) -> None:
    """Write a bill of materials (CycloneDX 1.6) of a stack's lock or of an image on this machine."""
    from fl import matrix as rows
    from fl.images import inventory
    from fl.images import sbom as bills
    from fl.images.context import host_platform

    held = inventory.of(rows.load(), name, flavor, platform or host_platform())
    if held.unlocked:
        said = f"the lock of {name} for {held.platform} is partial: a bill of it would lack {', '.join(held.unlocked)}"
        raise ImageError(said, f"fl images lock {name}   where the row's index can be reached\nfl images sbom REF   of a built image")
    text = bills.document(held)
    if output is None:
        ui.out(text.rstrip("\n"))
        return
    part = output.with_name(f".{output.name}.part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(output)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise ImageError(f"{output} cannot be written: {error.strerror}", f"ls -ld {output.parent}") from error
    ui.say(str(output))


def _megabytes(size: int | None) -> str:
    return "-" if size is None else f"{size / 1e6:.1f} MB"


COMMANDS = (push, tags, save, load, diff, sbom)
