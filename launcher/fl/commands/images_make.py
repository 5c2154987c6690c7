"""`fl images build|verify`: making an image, and looking at it from inside."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from fl import ui
from fl.errors import ImageError, UsageError

if TYPE_CHECKING:
    from fl.images.build import Layer
    from fl.images.verify import Report
    from fl.matrix import Flavor, Matrix, Stack


@click.command()
@click.argument("stack")
@click.option("--flavor", default="train", show_default=True, type=click.Choice(["train", "serve"]), help="What the image is for.")
@click.option("--platform", help="linux/amd64 or linux/arm64; this machine's by default.")
@click.option("--base", metavar="REF", help="Start from this image instead of the row's.")
@click.option("--find-links", "links", multiple=True, type=click.Path(exists=True, path_type=Path), help="Wheels that no index has.")
@click.option("--ca", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Certificates of the site; not kept in the image.")
@click.option("--jit", is_flag=True, help="With nvcc and g++ beside it, for DeepSpeed's operations; named STACK-…-jit (CUDA 13 and later).")
@click.option("--allow-unlocked", is_flag=True, help="Also from a partial lock: what it lacks is installed without a hash.")
@click.option("--cache-from", multiple=True, metavar="CACHE", help="As docker buildx build takes it: a registry's, a folder's.")
@click.option("--cache-to", multiple=True, metavar="CACHE", help="As docker buildx build takes it; type=inline works everywhere.")
@click.option("--no-cache", is_flag=True, help="Run every step again, downloads too.")
@click.option("--attest", is_flag=True, help="BuildKit's provenance attestation, where the builder makes any.")
@click.option("--push", is_flag=True, help="Push what was built to the registry.")
@click.option("--registry", metavar="HOST[/PATH]", help="Instead of the registry of the settings.")
@click.option("--retries", default=2, show_default=True, type=click.IntRange(0, 10), help="Further tries after failures of the network.")
@click.option("--no-disk-check", is_flag=True, help="Build also where the disk seems too full.")
@click.option("--json", "as_json", is_flag=True, help="What was built as one JSON document.")
def build(
    stack: str,
    flavor: Flavor,
    base: str | None,
    links: tuple[Path, ...],
    ca: Path | None,
    allow_unlocked: bool,
    push: bool,
    registry: str | None,
    as_json: bool,
    **how: Any,
) -> None:
    """Build the image of STACK with docker buildx. It is named only when it is what was asked for."""
    import time

    from fl import matrix as rows
    from fl import settings
    from fl.images import build as building
    from fl.images import lock_check, publish
    from fl.images.context import Site, host_platform
    from fl.images.ending import interruptible

    matrix, begin = rows.load(), time.monotonic()
    row = matrix.stack(stack)
    host = settings.place(registry, "--registry") if registry else settings.load().registry
    if push and host is None:
        raise UsageError("--push needs a registry, and none is configured", "--registry HOST/PATH")
    options = building.Options(check_disk=not how.pop("no_disk_check"), **how)
    lock_check.refuse_foreign(matrix, row, flavor, how.get("platform") or host_platform())
    with interruptible("the build"):
        site = Site(base=base, links=links, ca=ca, allow_unlocked=allow_unlocked)
        built = building.build(matrix, row, flavor, site=site, registry=host, options=options)
        seconds = time.monotonic() - begin
        pushed = publish.publish(row, flavor, built.reference, host, lambda line: ui.say("  " + ui.clean(line))) if push and host else None
    if as_json:
        told = {"schema": 1, **asdict(built), "seconds": round(seconds, 1)}
        ui.document({**told, "pushed": asdict(pushed)} if pushed else told)
        return
    lines = [(f"{one.size / 1e6:.1f}".rjust(8), _took(one), one.step[:110]) for one in built.layers]
    ui.table(("      MB", "seconds", "layer"), lines)
    ui.out(f"{built.reference}  {built.id[7:19]}  {built.size / 1e9:.2f} GB  {seconds:.0f} s")
    if pushed:
        ui.out(f"{pushed.names[0]}  {pushed.digest}  {', '.join(pushed.platforms)}")


def _took(layer: Layer) -> str:
    """Seconds of a layer's step, or why there are none."""
    if layer.cached:
        return "" if layer.seconds is None else "cached"
    return "" if layer.seconds is None else f"{layer.seconds:.1f}".rjust(7)


@click.command()
@click.argument("name", metavar="REF|STACK")
@click.option("--flavor", default="train", show_default=True, type=click.Choice(["train", "serve"]), help="Of a stack named by its id.")
@click.option("--evidence", type=click.Path(file_okay=False, path_type=Path), help="Add the tiny run to this ledger of evidence.")
@click.option("--record", type=click.Path(file_okay=False, path_type=Path), help="Record digest, size and changes there: images/built.")
@click.option("--json", "as_json", is_flag=True, help="The report as one JSON document.")
def verify(name: str, flavor: Flavor, evidence: Path | None, record: Path | None, as_json: bool) -> None:
    """Check a built image from inside: versions, imports, user, labels, no caches, no secrets, a tiny training run."""
    from fl import __version__
    from fl import matrix as rows
    from fl.images import built, proof, publish
    from fl.images import verify as verifying
    from fl.images.ending import interruptible

    matrix = rows.load()
    with interruptible("the verification"):
        stack, flavor, reference = _meant(matrix, name, flavor)
        if evidence is not None:
            proof.allowed(stack)
        ui.step(f"verify {reference}")
        report = verifying.verify(matrix, stack, reference, flavor)
        if evidence is not None and report.proof:
            from fl import ledger

            ui.say(f"  evidence: {ledger.add(evidence, proof.record(matrix, stack, report))}")
    if record is not None and not report.problems:
        labels = (publish.local(reference).get("Config") or {}).get("Labels") or {}
        ui.say(f"  record: {built.write(record, report, __version__, labels.get('org.opencontainers.image.base.name'))}")
    if as_json:
        ui.document(report.document())
    else:
        _show(report)
    if report.problems:
        raise click.exceptions.Exit(ImageError.exit_code)


def _show(report: Report) -> None:
    """The checks and the sizes as tables."""
    words = {True: "passed", False: "FAILED", None: "not seen"}
    lines = [(one.name, words[one.passed], f"{one.seconds:.1f} s" if one.seconds else "", line) for one in report.checks
             for line in one.found or ("",)]  # fmt: skip
    ui.table(("check", "", "", ""), lines)
    ui.out()
    ui.table(("", "MB", "what"), [(one["kind"], f"{one['bytes'] / 1e6:.1f}".rjust(8), one["what"][:100]) for one in report.sizes])
    ui.out()
    wrong = report.problems
    ui.out(f"{report.reference}: " + (f"{len(wrong)} problems" if wrong else "is what its lock and its row say"))


def _meant(matrix: Matrix, name: str, flavor: Flavor) -> tuple[Stack, Flavor, str]:
    """The row, the flavor and the reference behind a stack's id or a reference; one of a registry is pulled where it is not here."""
    import os
    from difflib import get_close_matches

    from fl import settings
    from fl.engines import daemon
    from fl.images import publish, render, tags

    publish.need_docker()
    address = daemon.endpoint(os.environ)
    if name in {stack.id for stack in matrix.stacks}:
        stack = matrix.stack(name)
        if flavor not in (have := render.flavors(stack)):
            raise UsageError(f"{stack.id} has no {flavor} image: it has {', '.join(have)}", "fl images list")
        reference = tags.reference(name, flavor, registry=settings.load().registry)
        if daemon.image(address, reference) is None:
            more = "" if flavor == "train" else f" --flavor {flavor}"
            raise ImageError(f"the image {reference} is not on this machine", f"fl images build {name}{more}\ndocker pull {reference}")
        return stack, flavor, reference
    found = daemon.image(address, name)
    if found is None and "/" in name:
        from fl.engines.docker_pull import pull

        pull(address, name, lambda line: ui.say("  " + ui.clean(line)))
        found = daemon.image(address, name)
    if found is None:
        near = get_close_matches(name, [stack.id for stack in matrix.stacks], 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ImageError(f"{name} is neither a stack nor an image on this machine{hint}", "fl images list")
    labels = (found.get("Config") or {}).get("Labels") or {}
    if "fl.stack" not in labels:
        raise ImageError(f"{name} is no image of fl: it has no label fl.stack", "fl images list")
    return matrix.stack(labels["fl.stack"]), cast("Flavor", labels.get("fl.flavor", flavor)), name


COMMANDS = (build, verify)
