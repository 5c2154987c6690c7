"""`fl pin`: write or verify fl.lock."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fl import ui

if TYPE_CHECKING:
    from fl.audit import Now
    from fl.ledger_index import Entry as Record
    from fl.matrix import Matrix, Stack
    from fl.pin import PinnedImage
    from fl.pin_evidence import Proposal


@click.command()
@click.argument("stack", required=False)
@click.option("--image", metavar="REF", help="Pin this image of the stack too, by its digest.")
@click.option("--unproven", is_flag=True, help="Pin a stack that the ledger has no proof of.")
@click.option("--check", is_flag=True, help="Does everything that is pinned still hold? For CI; writes nothing.")
@click.option("--upgrade", is_flag=True, help="Propose newer stacks that were seen to work; writes nothing.")
@click.option("--ledger", "folder", type=click.Path(path_type=Path), help="Folder of records: ./evidence, or the settings'.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def pin(
    stack: str | None, image: str | None, unproven: bool, check: bool, upgrade: bool, folder: Path | None, as_json: bool
) -> None:  # fmt: skip
    """Write fl.lock: the STACK that this project runs on, its lock, its image, and the evidence for it. `fl run` then obeys it.

    Without STACK: the one that `fl run` would choose on this machine.
    """
    from fl import matrix as matrices
    from fl.errors import UsageError

    if (check and upgrade) or ((stack or image or unproven) and (check or upgrade)):
        raise UsageError("--check and --upgrade stand alone: they write nothing", "fl pin --check\nfl pin --upgrade\nfl pin STACK")
    rows = matrices.load()
    if check:
        _check(rows, folder, as_json)
    elif upgrade:
        _upgrade(rows, folder, as_json)
    else:
        _write(rows, rows.stack(stack) if stack else _of_this_machine(rows), image, unproven, folder, as_json)


def _of_this_machine(rows: Matrix) -> Stack:
    import os

    from fl.detect import detect, open_host
    from fl.devices import choose_devices, choose_lane, restrict
    from fl.select import Needs, choose

    hardware, _ = restrict(detect(open_host(None)), os.environ)
    lane = choose_lane(hardware)
    return choose(rows, hardware, choose_devices(hardware, lane)[0], lane, Needs(platform=hardware.platform)).stack


def _records(rows: Matrix, folder: Path | None, beside: Path) -> tuple[list[Record], Now, Path]:
    """The ledger's entries, what they are compared with, and where the ledger is."""
    from fl import ledger, ledger_index
    from fl.commands.audit import now_of
    from fl.errors import EvidenceError

    if folder is not None and not folder.is_dir():
        raise EvidenceError(f"there is no ledger {folder}", "a folder of records; `fl audit add RUN` makes ./evidence")
    place = folder or ledger.default(beside)
    return ledger_index.entries(place), now_of(rows), place


def _write(rows: Matrix, stack: Stack, image: str | None, unproven: bool, folder: Path | None, as_json: bool) -> None:
    from fl import pin as pins
    from fl import pin_evidence
    from fl.errors import EvidenceError

    path = pins.find(Path.cwd()) or Path.cwd() / pins.NAME
    records, now, place = _records(rows, folder, path.parent)
    found = pin_evidence.proofs(records, now, stack.id)
    if not found and not unproven:
        instead = "".join(f"\n  {line}" for line in pin_evidence.unproven(records, now, stack.id).splitlines())
        raise EvidenceError(
            f"nothing in {place} proves that {stack.id} works{instead}",
            f"fl conform --stack {stack.id}   on a machine of the {stack.lane} lane\n--unproven pins it all the same",
        )
    entry = pins.make(stack, pins.today(rows, stack), _image(rows, stack, image) if image else None, [record.id for record in found])
    pins.write(path, stack.lane, entry)
    if as_json:
        ui.document(pins.as_json(path, pins.read(path), {}))
        return
    shown = f", image {entry.image.reference}" if entry.image else ""
    ui.out(ui.clean(f"{path}: the {stack.lane} lane is pinned to {stack.id}{shown}"))
    ui.out(ui.clean(f"  rests on {len(found)} records of {place}") if found else "  rests on no evidence (--unproven)")
    ui.out("  commit it; `fl run` obeys it here and in every folder below, `fl pin --check` is for CI")


def _image(rows: Matrix, stack: Stack, reference: str) -> PinnedImage:
    """The image as the first engine that has it knows it. ImageError where none has, or where it is another stack's or lock's."""
    from fl import engines
    from fl import pin as pins
    from fl.errors import EngineError, ImageError, UsageError

    if not pins.REFERENCE.fullmatch(reference):
        raise UsageError(f"the image {reference!r} is no reference", "fl pin STACK --image NAME:TAG")
    asked = []
    for name in ("docker", "podman"):
        if isinstance(engines.ask(name), EngineError):
            continue
        asked.append(name)
        facts = engines.get(name).image(reference)
        if facts is None:
            continue
        labels, locks = facts.labels, pins.today(rows, stack).locks
        if labels.get("fl.stack") != stack.id:
            of = labels.get("fl.stack") or "no stack of fl"
            raise ImageError(f"{reference} is an image of {of}, not of {stack.id}", "fl images list")
        if labels.get("fl.lock.sha256") not in locks.values():
            raise ImageError(f"{reference} was built from another lock of {stack.id} than this fl has", f"fl images build {stack.id}")
        return pins.PinnedImage(reference=reference, digest=facts.digest, id=None if facts.digest else facts.id)
    where = f"not in the store of {' or '.join(asked)}" if asked else "not looked for: neither docker nor podman answers"
    raise ImageError(f"the image {reference} is {where}", f"{asked[0]} pull {reference}" if asked else "fl doctor")


def _check(rows: Matrix, folder: Path | None, as_json: bool) -> None:
    from fl import pin as pins
    from fl import pin_evidence
    from fl.errors import EvidenceError

    path = _present()
    lanes = pins.read(path)
    records, _, _ = _records(rows, folder, path.parent)
    by_id = {record.id: record for record in records}
    if not lanes:
        raise EvidenceError(f"{path} pins no lane", "fl pin STACK")
    problems = {
        lane: [*pins.changes(lane, entry, rows), *_image_problems(entry.image), *pin_evidence.lost(entry, by_id)]
        for lane, entry in lanes.items()
    }
    wrong = [f"  {lane}: {one}" for lane, found in problems.items() for one in found]
    if as_json and not wrong:
        ui.document(pins.as_json(path, lanes, problems))
    if wrong:
        stacks = " ".join(f"fl pin {lanes[lane].stack};" for lane, found in problems.items() if found).rstrip(";")
        raise EvidenceError(
            f"{path} does not hold:\n" + "\n".join(wrong), f"use what was pinned (git log {path})\nor pin what is there now: {stacks}"
        )
    if not as_json:
        for lane, entry in lanes.items():
            rests = f"{len(entry.evidence)} records" if entry.evidence else "no evidence (--unproven)"
            shown = f"; image {entry.image.reference}" if entry.image else ""
            ui.out(ui.clean(f"{lane}: {entry.stack} holds; rests on {rests}{shown}"))
    for lane, entry in lanes.items():
        if entry.extras is None:
            ui.warning(ui.clean(f"{path} does not pin the locks of extras for the {lane} lane: `fl pin {entry.stack}` adds them"))


def _image_problems(image: PinnedImage | None) -> list[str]:
    """What is wrong with a pinned image where an engine has it; one that is nowhere here cannot be looked at, and that is said."""
    from fl import engines
    from fl import pin as pins
    from fl.errors import EngineError

    if image is None:
        return []
    for name in ("docker", "podman"):
        facts = None if isinstance(engines.ask(name), EngineError) else engines.get(name).image(image.reference)
        if facts is not None:
            return pins.moved(image, image.reference, facts.digest, facts.id)
    ui.warning(f"the image {image.reference} is not here, so its digest was not looked at")
    return []


def _present() -> Path:
    from fl import pin as pins
    from fl.errors import EvidenceError

    path = pins.find(Path.cwd())
    if path is None:
        raise EvidenceError(f"there is no {pins.NAME} in {Path.cwd()} or above", "fl pin STACK")
    return path


def _upgrade(rows: Matrix, folder: Path | None, as_json: bool) -> None:
    from fl import pin as pins
    from fl import pin_evidence

    path = _present()
    records, now, _ = _records(rows, folder, path.parent)
    lanes = pins.read(path)
    proposals = [p for lane, entry in lanes.items() if (p := pin_evidence.upgrade(lane, entry, records, now)) is not None]
    if as_json:
        ui.document({"schema": 1, "file": str(path), "proposals": [_proposal_json(p) for p in proposals]})
        return
    for lane, entry in lanes.items():
        if all(p.lane != lane for p in proposals):
            ui.out(ui.clean(f"{lane}: nothing newer than {entry.stack} was seen to work"))
    for proposal in proposals:
        ui.out(ui.clean(f"{proposal.lane}: {proposal.before} → {proposal.after}, seen to work with {len(proposal.evidence)} models"))
        if proposal.versions:
            ui.table(("package", "pinned", "proposed"), [(n, a or "-", b or "-") for n, a, b in proposal.versions], indent="  ")
        if proposal.inputs:
            ui.out(f"  another one by now: {', '.join(proposal.inputs)}")
        for record in proposal.evidence:
            ui.out(ui.clean(f"  {record.time[:10]}  {record.model} on {record.device}: {record.stage} {record.method}, {record.id[:12]}"))
        ui.out(f"  accept: fl pin {proposal.after}")


def _proposal_json(proposal: Proposal) -> dict[str, Any]:
    return {
        "lane": proposal.lane, "before": proposal.before, "after": proposal.after,
        "versions": [{"name": name, "pinned": a or None, "proposed": b or None} for name, a, b in proposal.versions],
        "inputs": list(proposal.inputs), "evidence": [record.id for record in proposal.evidence],
    }  # fmt: skip
