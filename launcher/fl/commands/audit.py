"""`fl audit`: which model works on which lane, and how we know."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fl import ui
from fl.commands.groups import Group

if TYPE_CHECKING:
    from fl.audit import Cell, Need, Now
    from fl.ledger_index import Entry
    from fl.matrix import Matrix, Stack

STATES = ("proven", "failed", "stale", "declared", "impossible", "unknown")
"""Those of `fl.audit`, which `--help` does not load."""
_SHOWN = 3
"""Records of a cell that a page holds, the newest ones."""
_MANY = 500
"""Cells with records above which a page holds only the newest of each: a browser has to show it."""
_WIDEST = 64
_ledger = click.option("--ledger", "folder", type=click.Path(path_type=Path), help="Folder of records: ./evidence, or the settings'.")


@click.group(cls=Group, invoke_without_command=True)
@_ledger
@click.option("--model", metavar="NAME|DIR", help="Models whose name holds this, or a model folder: can it be trained here?")
@click.option("--lane", metavar="LANE", help="Only this lane, stack by stack.")
@click.option("--stack", "stack_id", metavar="ID", help="Only this stack.")
@click.option("--state", "states", multiple=True, metavar="STATE", type=click.Choice(STATES), help="Only this state; may be given again.")
@click.option("--all", "everything", is_flag=True, help="Also models that nobody has run.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.option("--md", is_flag=True, help="Markdown on stdout.")
@click.option("--html", "page", type=click.Path(path_type=Path), metavar="FILE", help="Write one page for a browser.")
@click.option("--diff", nargs=2, type=click.Path(path_type=Path), metavar="A B", help="What changed between two ledgers or matrix files.")
@click.option("--needs", is_flag=True, help="What to run next to prove the most.")
@click.pass_context
def audit(
    context: click.Context, folder: Path | None, model: str | None, lane: str | None, stack_id: str | None, states: tuple[str, ...],
    everything: bool, as_json: bool, md: bool, page: Path | None, diff: tuple[Path, Path] | None, needs: bool,
) -> None:  # fmt: skip
    """Say which model works on which lane: proven, failed, stale, declared, impossible or unknown.

    proven: a run passed with the inputs of today. stale: one passed, but an input changed since. declared: the versions say it should work.
    """
    if context.invoked_subcommand is not None:
        context.obj = folder
        return
    from fl import audit as audits
    from fl import matrix as matrices
    from fl.errors import UsageError

    _one_of({"--json": as_json, "--md": md, "--html": page is not None})
    _one_of({"--diff": diff is not None, "--needs": needs, "--md": md, "--html": page is not None})
    rows = matrices.load()
    _known(lane, stack_id, rows)
    if model is not None and not model.strip():
        raise UsageError("--model has no name", "fl audit --model NAME")

    def wanted(cell: Cell) -> bool:
        return lane in (None, cell.lane) and stack_id in (None, cell.stack)

    if diff:
        sides = [[c for c in _of_path(path, folder, rows) if wanted(c) and (model or "").lower() in c.model.lower()] for path in diff]
        pairs = audits.difference(*sides)
        _show_difference([p for p in pairs if not states or any(c is not None and c.state in states for c in p)], as_json)
        return
    found, one = _cells(model, _entries(folder), rows)
    found = [cell for cell in found if wanted(cell)]
    everything = everything or model is not None or bool(states)
    if needs:
        _show_needs(found, rows, as_json, filtered=model is not None)
        return
    found = [cell for cell in found if not states or cell.state in states]
    if as_json:
        ui.listing({"schema": 1, "cells": [_cell_json(c) for c in found]}, "cells")
    elif page is not None:
        _write_page(page, found, folder, [s.id for s in rows.stacks if any(c.stack == s.id for c in found)])
    elif md:
        ui.out(_markdown(found, everything))
    else:
        _show(found, everything, by_stack=lane is not None or stack_id is not None or one)


def _one_of(flags: dict[str, bool]) -> None:
    from fl.errors import UsageError

    if len(given := [name for name, on in flags.items() if on]) > 1:
        raise UsageError(f"{' and '.join(given)} are two answers", "one of them at a time")


def _cells(model: str | None, entries: list[Entry], rows: Matrix) -> tuple[list[Cell], bool]:
    """The cells of the models that are asked for, by name or by a folder's config.json; and whether that is one model."""
    from fl import audit as audits
    from fl import audit_model

    now = now_of(rows)
    if model is not None and (Path(model).exists() or model.startswith(("/", "./", "../", "~"))):
        folder = audit_model.of_folder(Path(model).expanduser())
        found = audits.cells(audit_model.records(folder, entries), now, models={folder.name: [folder.model_type]})
        return audit_model.judged(found, folder, rows), True
    entries = audits.told_apart(entries)
    models = None if model is None else audit_model.named(model, entries, rows)
    return audits.cells(entries, now, models=models), models is not None and len(models) == 1


def _entries(folder: Path | None) -> list[Entry]:
    from fl import ledger, ledger_index, paths

    place = folder or ledger.default()
    if not place.is_dir():
        _missing(place, configured=folder is None and place != paths.EVIDENCE)
    entries, broken = ledger_index.read(place)
    if broken:
        ui.warning(f"{broken} files in {place} hold no record that can be believed; `fl audit verify` names them")
    return entries


def _missing(folder: Path, *, configured: bool = False) -> None:
    from fl.errors import EvidenceError

    whose = ", which config.yaml names" if configured else ""
    raise EvidenceError(f"there is no ledger {folder}{whose}", "a folder of records; `fl audit add RUN` makes ./evidence")


def now_of(rows: Matrix) -> Now:
    """What the records are compared with: the matrix, the locks and the trainer of this fl."""
    from fl import audit as audits
    from fl import wheel
    from fl.images import extras, lock

    def hashes(stack: Stack) -> frozenset[str]:
        files = [lock.path(stack.id, "train", platform) for platform in stack.hosts.platforms]
        return frozenset(lock.sha256(file) for file in files if file is not None)

    def beside(stack: Stack) -> frozenset[str]:
        files = [extras.place(stack, platform) for platform in stack.hosts.platforms]
        return frozenset(lock.sha256(file) for file in files if file.is_file())

    return audits.now(rows, wheel.code_sha256(), hashes, beside)


def _known(lane: str | None, stack: str | None, rows: Matrix) -> None:
    from fl.errors import UsageError

    if lane is not None and lane not in (lanes := {row.lane for row in rows.stacks}):
        raise UsageError(f"there is no lane {lane}", f"one of {', '.join(sorted(lanes))}")
    if stack is not None:
        rows.stack(stack)


def _of_path(path: Path, folder: Path | None, rows: Matrix) -> list[Cell]:
    """The cells of a ledger with today's matrix, or of a matrix file with the ledger."""
    from fl import audit as audits
    from fl import ledger_index
    from fl import matrix as matrices
    from fl.errors import EvidenceError

    if path.is_dir():
        return audits.cells(audits.told_apart(ledger_index.entries(path)), now_of(rows))
    if not path.is_file():
        raise EvidenceError(f"{path} is neither a folder of records nor a matrix file", "fl audit --diff OTHER-LEDGER ./evidence")
    other = matrices.load(path)
    return audits.cells(audits.told_apart(_entries(folder)), now_of(other))


def _cell_json(cell: Cell) -> dict[str, Any]:
    return {
        "model": cell.model, "lane": cell.lane, "stack": cell.stack, "state": cell.state, "why": cell.why, "evidence": list(cell.evidence),
    }  # fmt: skip


def _tried(found: list[Cell], everything: bool) -> list[Cell]:
    """All cells, or those of models that were run."""
    ran = {cell.model for cell in found if cell.evidence}
    return found if everything else [cell for cell in found if cell.model in ran]


def _show(found: list[Cell], everything: bool, *, by_stack: bool) -> None:
    from fl import audit as audits

    shown = _tried(found, everything)
    if not shown:
        ui.say("nothing matches" if everything else "no model that was run matches; `fl audit --all` shows also those that nobody has run")
        return
    if by_stack:
        ui.table(("model", "stack", "state", "why"), [(_name(c.model), c.stack, c.state, c.why) for c in shown])
        if all(cell.state == "unknown" for cell in shown):
            try_it = "`fl run quickstart model_name_or_path=MODEL max_steps=2`, then `fl audit add RUN`"
            ui.say(f"nobody knows before it is tried: {try_it}", hang=2)
    else:
        names = list(dict.fromkeys(cell.lane for cell in found))
        best = audits.lanes(shown)
        ui.table(("model", *names), [(_name(m), *(row[n].state if n in row else "" for n in names)) for m, row in best.items()])
        for cell in (cell for row in best.values() for cell in row.values() if cell.state in ("proven", "failed", "stale")):
            ui.out(f"  {ui.clean(cell.model)} on {cell.stack}: {cell.state}, {ui.clean(cell.why)}", hang=4)
    counts = [f"{sum(c.state == state for c in found)} {state}" for state in audits.ORDER]
    ui.say(f"\n{', '.join(counts)} (model x stack)")
    if not everything:
        others = "models that nobody has run: `fl audit --all`; one model: `fl audit --model NAME`; what to run next: `fl audit --needs`"
        ui.say(others, hang=0)


def _name(model: str) -> str:
    """No name takes the table's whole width."""
    return model if len(model) <= _WIDEST else f"{model[: _WIDEST - 1]}…"


def _markdown(found: list[Cell], everything: bool) -> str:
    from fl import audit as audits
    from fl import audit_pages

    shown = _tried(found, everything)
    return audit_pages.markdown(audits.lanes(shown), list(dict.fromkeys(cell.lane for cell in found))).rstrip("\n")


def _records(place: Path, wanted: set[str]) -> dict[str, dict[str, Any]]:
    """The records of those ids, each verified again."""
    from fl import ledger

    files = (Path(entry.path) for entry in ledger.files(place) if entry.name.removesuffix(".json") in wanted)
    return {found["id"]: found for found in map(ledger.open_record, files) if isinstance(found, dict)}


def _write_page(page: Path, found: list[Cell], folder: Path | None, stacks: list[str]) -> None:
    from fl import audit_pages, ledger
    from fl.errors import EvidenceError

    cells = sum(bool(cell.evidence) for cell in found)
    wanted = {id for cell in found for id in cell.evidence[: _SHOWN if cells <= _MANY else 1]}  # noqa: A001
    records = _records(folder or ledger.default(), wanted)
    text = audit_pages.page(found, records, stacks, "What works where", _about(len(records)))
    try:
        if page.exists() and not page.is_file():  # a pipe, a terminal
            page.write_text(text, encoding="utf-8")
        else:
            ledger.write(page.resolve(), text.encode())
    except OSError as error:
        raise EvidenceError(f"{page} cannot be written: {error.strerror}", "another file: --html FILE") from error
    ui.say(ui.clean(f"wrote {page}"))


def _about(count: int) -> str:
    from fl import __version__, wheel
    from fl import matrix as matrices

    return (
        f"By fl {__version__}, matrix {matrices.load().sha256[:12]}, trainer {wheel.code_sha256()[:12]}; {count} records are shown. "
        "A record's id is the hash of its content: it proves that nothing was changed, not who wrote it."
    )


def _show_difference(pairs: list[tuple[Cell | None, Cell | None]], as_json: bool) -> None:
    if as_json:
        ui.document({"schema": 1, "changes": [{"before": a and _cell_json(a), "after": b and _cell_json(b)} for a, b in pairs]})
        return
    lines = [((b or a), a.state if a else "-", b.state if b else "-", (b or a)) for a, b in pairs]
    ui.table(("model", "stack", "before", "after", "why"), [(_name(c.model), c.stack, x, y, d.why) for c, x, y, d in lines if c and d])
    ui.say(f"{len(pairs)} cells changed")


def _show_needs(found: list[Cell], rows: Matrix, as_json: bool, *, filtered: bool) -> None:
    from fl import audit as audits
    from fl import conform_set

    conforming = {str(case.keys["model_name_or_path"]) for case in conform_set.CASES}
    if filtered:
        conforming &= {cell.model for cell in found}
    stacks = {cell.stack for cell in found}
    wins = [win for win in audits.needs(found, rows, conforming) if win.stack.id in stacks]
    if as_json:
        ui.document({"schema": 1, "needs": [
            {"stack": w.stack.id, "lane": w.stack.lane, "declared": w.declared, "stale_or_failed": w.again, "proves": w.proves,
             "model_types": [{"model_type": name, "families": count} for name, count in w.types],
             "command": _command(w) if w.proves else _one(w.stack.id)} for w in wins
        ]})  # fmt: skip
        return
    ui.table(("stack", "stale or failed", "it proves", "declared only", "model types first", "run"), [
        (w.stack.id, str(w.again), str(w.proves), str(w.declared), ", ".join(f"{name} ({count})" for name, count in w.types) or "-",
         _command(w) if w.proves else _one(w.stack.id))
        for w in wins if w.declared or w.again
    ])  # fmt: skip
    ui.say(f"`fl conform` proves its own small models; any other one at a time: `{_one('STACK')}`, then `fl audit add RUN`", hang=2)


def _one(stack: str) -> str:
    return f"fl run quickstart --stack {stack} model_name_or_path=MODEL max_steps=2"


def _command(need: Need) -> str:
    return f"fl conform --hw {need.stack.lane} --stack {need.stack.id}"


@audit.command()
@click.argument("sources", nargs=-1, required=True, metavar="RUN|DIR|FILE …")
@click.option("--ledger", "target", type=click.Path(path_type=Path), help="The ledger to add to: ./evidence, or the settings'.")
@click.pass_context
def add(context: click.Context, sources: tuple[str, ...], target: Path | None) -> None:
    """Add evidence: of runs by name, of a folder of records, of a file."""
    from fl import ledger, ledger_sources

    place = target or context.obj or ledger.target()
    records = [record for source in sources for record in ledger_sources.records(source)]
    before = {entry.name for entry in ledger.files(place)} if place.is_dir() else set()
    for record in records:
        ledger.add(place, record)
    new = len({f"{record['id']}.json" for record in records} - before)
    ui.say(ui.clean(f"{new} of {len(records)} records are new in {place}"))


@audit.command()
@click.argument("other", type=click.Path(path_type=Path))
@click.pass_context
def merge(context: click.Context, other: Path) -> None:
    """Take another ledger's records into ./evidence, or into DIR by `fl audit --ledger DIR merge OTHER`. Broken ones are told and left."""
    from fl import ledger
    from fl.errors import EvidenceError

    if not other.is_dir():
        _missing(other)
    place = context.obj or ledger.target()
    _, faults = ledger.verify(other)
    records = list(ledger.read(other))
    for record in records:
        ledger.add(place, record)
    ui.say(ui.clean(f"{len(records)} records of {other} are in {place}"))
    if faults:
        lines = "\n".join(f"  {fault.path}: {fault.message}" for fault in faults)
        raise EvidenceError(
            f"{len(faults)} files of {other} were not taken:\n{ui.clean(lines)}", "the machine that wrote them still has its runs"
        )


@audit.command()
@click.option("--signers", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Ask for signatures by these.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.pass_context
def verify(context: click.Context, signers: Path | None, as_json: bool) -> None:
    """Recompute every id. A hash proves that a record was not changed, not who made it: that is what --signers is for."""
    from fl import audit_sign, ledger
    from fl.errors import EvidenceError

    place = context.obj or ledger.default()
    if not place.is_dir():
        _missing(place)
    good, faults = ledger.verify(place)
    lists: list[audit_sign.Signed] = []
    if signers is not None:
        lists, bad = audit_sign.signed(place, signers)
        covered = frozenset(id for one in lists for id in one.ids)  # noqa: A001
        there = {r["id"] for r in ledger.read(place)}
        faults += bad
        if unsigned := len(there - covered):
            faults.append(ledger.Fault(place, f"{unsigned} records are signed by nobody of {signers.name}"))
        faults += [ledger.Fault(place, f"lacks the record {id}, which was signed") for id in sorted(covered - there)]  # noqa: A001
    if faults:
        lines = "\n".join(f"  {fault.path}: {fault.message}" for fault in faults[:50])
        lines += f"\n  and {len(faults) - 50} more" if len(faults) > 50 else ""
        raise EvidenceError(
            f"{len(faults)} faults in {place}; {good} records hold:\n{ui.clean(lines)}",
            "git log --stat -- FILE tells who changed it; a file that holds no record goes out of the ledger",
        )
    if as_json:
        signatures = [{"signer": one.signer, "records": len(one.ids)} for one in lists]
        ui.document({"schema": 1, "ledger": str(place), "records": good, "signatures": signatures})
        return
    ui.out(ui.clean(f"{place}: {good} record{'' if good == 1 else 's'}, every id holds: none was changed since it was written"))
    if signers is None:
        ui.out("  who wrote them a hash cannot tell: `fl audit verify --signers FILE`")
    for one in lists:
        ui.out(f"  {len(one.ids)} signed by {ui.clean(one.signer)}")


@audit.command()
@click.option("--key", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=True, help="A private SSH key.")
@click.pass_context
def sign(context: click.Context, key: Path) -> None:
    """Vouch with an SSH key for the records that it has not signed yet."""
    from fl import audit_sign, ledger

    file, count = audit_sign.sign(context.obj or ledger.default(), key)
    ui.say(ui.clean(f"signed {count} records: {file}"))
