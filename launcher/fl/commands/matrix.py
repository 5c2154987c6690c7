"""`fl matrix`: the rows, one row, whether they hold together, and what they say about a machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fl import ui
from fl.commands.groups import Group
from fl.commands.matrix_update import update

if TYPE_CHECKING:
    from fl.hardware import Accelerator, Hardware, LaneName
    from fl.matrix import Matrix, Stack
    from fl.select import Verdict

_json = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")


@click.group(cls=Group)
def matrix() -> None:
    """List, show, check and update the compatibility matrix."""


matrix.add_command(update)


@matrix.command("list")
@_json
@click.option("--md", is_flag=True, help="The page docs/stacks.md: versions, locks and last proof of every stack.")
@click.option("--brief", is_flag=True, help="With --md: the table alone, as in README.md.")
def list_(as_json: bool, md: bool, brief: bool) -> None:
    """List the stacks."""
    from fl.matrix import load

    loaded = load()
    if md:
        from fl import ledger_index, paths, stacks_page

        entries = ledger_index.entries(paths.EVIDENCE)
        ui.out(stacks_page.brief(loaded, entries) if brief else stacks_page.page(loaded, entries).rstrip("\n"))
        return
    if as_json:
        ui.document({"schema": 1, "matrix_sha256": loaded.sha256, "stacks": [_stack_json(loaded, s) for s in loaded.stacks]})
        return
    header = ("stack", "lane", "status", "runtime", "torch", "python", "driver", "confidence")
    ui.table(header, [_list_row(s) for s in loaded.stacks])


@matrix.command()
@click.argument("id")
@_json
def show(id: str, as_json: bool) -> None:  # noqa: A002
    """Show one stack: versions, machines, features, and where each claim comes from."""
    from fl.matrix import load

    loaded = load()
    stack = loaded.stack(id)
    if as_json:
        ui.document({"schema": 1, "matrix_sha256": loaded.sha256, **_stack_json(loaded, stack)})
    else:
        _print_stack(loaded, stack)


@matrix.command()
@click.argument("path", required=False, type=click.Path(path_type=Path))
@click.option("--evidence", is_flag=True, help="Also: does the ledger show what the rows claim?")
@click.option("--ledger", type=click.Path(path_type=Path), help="Folder of records: ./evidence, or the settings'.")
@_json
def check(path: Path | None, evidence: bool, ledger: Path | None, as_json: bool) -> None:
    """Check form and facts, offline. PATH is another matrix.yaml than the installed one.

    Ends with 8 and every finding when something is wrong; with 9 when a row claims more than the ledger shows.
    """
    from fl import paths
    from fl.errors import MatrixError
    from fl.matrix import load
    from fl.matrix_check import check as run_check

    file = path or paths.MATRIX
    findings = run_check(file)
    if findings:
        lines = "\n".join(f"  {f.where}: {f.message}{f' [{f.remedy}]' if f.remedy else ''}" for f in findings)
        count = f"{len(findings)} finding{'s' if len(findings) > 1 else ''}"
        raise MatrixError(f"{file} does not hold together, {count}:\n{lines}", "correct these lines, then `fl matrix check` again")
    loaded = load(file)
    if evidence:
        _claims(loaded, file, ledger)
    counts = {
        "stacks": len(loaded.stacks), "lanes": len({s.lane for s in loaded.stacks}), "families": len(loaded.models),
        "incompatibilities": len(loaded.incompatibilities),
    }
    if as_json:
        ui.document({"schema": 1, "path": str(file), "matrix_sha256": loaded.sha256, **counts, "findings": []})
    else:
        shown = ", the ledger shows what it claims" if evidence else ""
        ui.out(f"{file}: {', '.join(f'{n} {what}' for what, n in counts.items())}; nothing is wrong{shown}")


def _claims(loaded: Matrix, file: Path, ledger: Path | None) -> None:
    from fl import ledger as ledgers
    from fl import ledger_index, matrix_evidence
    from fl.commands.audit import now_of
    from fl.errors import EvidenceError

    place = ledger or ledgers.default()
    if not place.is_dir():
        raise EvidenceError(f"there is no ledger {place}", "a folder of records; `fl audit add RUN` makes ./evidence")
    found = matrix_evidence.findings(loaded, ledger_index.entries(place), now_of(loaded))
    if found:
        lines = "\n".join(f"  {one.stack}: {one.message}" for one in found)
        remedies = "\n".join(dict.fromkeys(one.remedy for one in found))
        raise EvidenceError(f"{file} claims more than {place} shows:\n{lines}", remedies)


@matrix.command()
@click.option("--hw", "hw", metavar="LANE", default="auto", help="A lane, or auto: all of them.")
@click.option("--replay", type=click.Path(path_type=Path), help="A host record instead of this machine.")
@_json
def explain(hw: str, replay: Path | None, as_json: bool) -> None:
    """Say every stack's verdict for this machine."""
    import os

    from fl.detect import detect, open_host
    from fl.devices import restrict
    from fl.matrix import load
    from fl.select import Needs, verdicts

    loaded = load()
    hardware, notes = restrict(detect(open_host(replay)), os.environ)
    lanes = _lanes(hw, [a.lane for a in hardware.accelerators])
    needs = Needs(platform=hardware.platform)
    rows = {lane: [v for v in verdicts(loaded, hardware, _meant(hardware, lane), lane, needs) if v.of_lane] for lane in lanes}
    absent = [stack for stack in loaded.stacks if stack.lane not in lanes and hw == "auto"]
    if as_json:
        found = [
            {"lane": lane, "stack": v.stack.id, "chosen": v.chosen, "fits": v.fits, "why": list(v.why), "warnings": list(v.warnings)}
            for lane in lanes for v in rows[lane]
        ]
        found += [
            {"lane": stack.lane, "stack": stack.id, "chosen": False, "fits": False, "why": [_nothing_of(stack.lane)], "warnings": []}
            for stack in absent
        ]
        ui.document({"schema": 1, "platform": hardware.platform, "notes": list(notes), "verdicts": found})
        return
    for note in notes:
        ui.out(ui.clean(note), hang=2)
    for lane in lanes:
        ui.out(ui.paint(_heading(hardware, lane), "bold"), hang=2)
        for verdict in rows[lane]:
            _print_verdict(verdict)
    others = {lane: [stack.id for stack in absent if stack.lane == lane] for lane in dict.fromkeys(stack.lane for stack in absent)}
    for lane, ids in others.items():
        ui.out(f"{ui.paint(f'{lane}:', 'bold')} {_nothing_of(lane)} ({', '.join(ids)})", hang=2)


def _meant(hardware: Hardware, lane: LaneName) -> list[Accelerator]:
    """The devices that a run would get, or all where none can be used."""
    devices = [a for a in hardware.of_lane(lane) if (lane, a.index) not in hardware.withheld]
    return [a for a in devices if a.usable is not False] or devices


def _nothing_of(lane: LaneName) -> str:
    from fl.lanes import LANES

    return f"this machine has no {LANES[lane].TITLE} device"


def _heading(hardware: Hardware, lane: LaneName) -> str:
    """Devices, driver and platform of a lane in one line."""
    from fl.hardware import names
    from fl.lanes import LANES

    module = LANES[lane]
    devices = _meant(hardware, lane)
    what = names(devices) if devices else hardware.cpu.model or hardware.arch if module.DRIVER is None else f"no {module.TITLE} device here"
    version = hardware.drivers.get(module.DRIVER or "", {}).get("version")
    driver = "" if module.DRIVER is None else f", driver {version or 'of unknown version'}"
    unusable = " - cannot be used now, `fl hw` says why" if devices and all(a.usable is False for a in devices) else ""
    return ui.clean(f"{lane}: {what}{driver}, {hardware.platform}{unusable}")


def _print_verdict(verdict: Verdict) -> None:
    mark = ui.paint("chosen", "green") if verdict.chosen else "fits" if verdict.fits else ui.paint("refused", "red")
    ui.out(f"  {verdict.stack.id}: {mark}")
    for text in verdict.why:
        ui.out(f"    {ui.clean(text)}", hang=6)
    for text in verdict.warnings:
        ui.out(f"    {ui.paint('note:', 'yellow')} {ui.clean(text)}", hang=6)


def _lanes(hw: str, present: list[Any]) -> list[Any]:
    from typing import get_args

    from fl.hardware import LaneName

    known = list(get_args(LaneName))
    if hw == "auto":
        return [lane for lane in known if lane in present or lane == known[-1]]
    if hw not in known:
        from difflib import get_close_matches

        near = get_close_matches(hw, known, 1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise click.BadParameter(f"'{hw}' is no lane (auto, {', '.join(known)}).{hint}", param_hint="--hw")
    return [hw]


def _pairs(table: dict[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in table.items())


def _list_row(stack: Stack) -> tuple[str, ...]:
    runtime, driver = _pairs(stack.runtime) or "-", _pairs(stack.hosts.driver) or "-"
    return (stack.id, stack.lane, stack.status, runtime, stack.train.get("torch") or "-", stack.python, driver, stack.confidence)


def _stack_json(loaded: Matrix, stack: Stack) -> dict[str, Any]:
    """The row as it stands in the file, and `packages`: what its train image pins, layer included."""
    return {**stack.model_dump(mode="json"), "packages": loaded.packages(stack)}


def _print_stack(loaded: Matrix, stack: Stack) -> None:
    origin = "the base image" if stack.torch_from == "base" else loaded.indexes[stack.index].title if stack.index else "the ordinary index"
    facts = {
        "lane": stack.lane, "status": stack.status, "confidence": stack.confidence, "runtime": _pairs(stack.runtime) or "-",
        "platforms": ", ".join(stack.hosts.platforms), "chips": ", ".join(stack.hosts.arches) or "-",
        **{f"chips on {platform}": ", ".join(chips) for platform, chips in stack.hosts.arches_on.items()},
        "driver": _pairs(stack.hosts.driver) or "-", "python": stack.python, "base image": stack.base.image, "torch from": origin,
        **({"serving base": stack.serve_base.image} if stack.serve_base else {}),
        "packages": _pairs(loaded.packages(stack)), "serving": _pairs(loaded.packages(stack, "serve")) or "-",
        **_extras(stack),
    }
    ui.out(ui.paint(stack.id, "bold"))
    _print_facts(facts)
    words = {True: "yes", False: "no", None: "not checked"}
    ui.out("features")
    _print_facts({name: value if isinstance(value, str) else words[value] for name, value in stack.features.items()})
    ui.out("sources")
    _print_facts(stack.sources)
    for note in stack.notes:
        ui.out(f"note: {note}", hang=6)


def _extras(stack: Stack) -> dict[str, str]:
    """Optional packages that are locked, by platform; of those that do not fit the lock says why."""
    from fl.images import extras

    made = {platform: extras.read(stack, platform) for platform in stack.hosts.platforms}
    found = {}
    for platform, one in made.items():
        if one is not None:
            found[platform] = "; ".join([", ".join(one.needs), *(f"without {name}: {why}" for name, why in one.absent.items())])
    if len(set(found.values())) == 1 and len(found) == len(made):
        return {"extras": next(iter(found.values()))}
    return {f"extras on {platform}": told for platform, told in found.items()} or {"extras": "none: its own lock is not complete"}


def _print_facts(facts: dict[str, str]) -> None:
    width = max(map(len, facts), default=0)
    for name, value in facts.items():
        ui.out(f"  {name.ljust(width)}  {value}", hang=width + 4)
