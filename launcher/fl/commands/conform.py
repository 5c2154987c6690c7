"""`fl conform`: a fixed set of small runs on this machine → evidence."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fl import ui
from fl.commands.run import ENGINES, LANES
from fl.errors import EvidenceError
from fl.progress import View

if TYPE_CHECKING:
    from fl.conform import Report, Result
    from fl.conform_numbers import Compared
    from fl.decide import Decision


@click.command()
@click.option("--hw", type=click.Choice(LANES), help="Lane; auto takes the one whose accelerator is here.")
@click.option("--engine", type=click.Choice(ENGINES), help="What runs it; auto: docker, podman, apptainer, host, whichever can.")
@click.option("--python", type=click.Path(path_type=Path), metavar="PATH", help="Use this interpreter as it is (host engine).")
@click.option("--stack", metavar="ID", help="Row of the matrix; the best that fits otherwise.")
@click.option("--image", metavar="REF", help="Image to use instead of the stack's own.")
@click.option("--devices", metavar="D", help="The device to use; one is enough, and one is taken.")
@click.option("--only", metavar="PATTERN", help="Only cases whose name holds this, or matches it with `*`.")
@click.option("--quick", is_flag=True, help="A fifth of the set, for a first answer.")
@click.option("--jobs", type=click.IntRange(1, 64), metavar="N", help="Cases at a time; by default 1 on an accelerator, 2 on a processor.")
@click.option("--list", "listed", is_flag=True, help="Print the cases; run nothing.")
@click.option("--ledger", type=click.Path(path_type=Path), default=Path("evidence"), help="Where records go; ./evidence by default.")
@click.option("--write-references", is_flag=True, help="For maintainers: these curves become the stack's references.")
@click.option("--json", "as_json", is_flag=True, help="The results as one JSON document.")
def conform(
    hw: str | None, engine: str | None, python: Path | None, stack: str | None, image: str | None, devices: str | None, only: str | None,
    quick: bool, jobs: int | None, listed: bool, ledger: Path, write_references: bool, as_json: bool,
) -> None:  # fmt: skip
    """Try on this machine whether a stack does what the matrix says: every stage, finetuning type, precision and feature.

    Tiny models that need no hub, and one real one. The losses are compared with references; every run leaves evidence in the ledger.
    """
    from fl import conform_set

    cases = conform_set.chosen(only, quick=quick)
    if listed:
        ui.table(("case", "model", "needs"), [(c.name, c.model, c.feature or "-") for c in cases])
        return
    from fl import conform as conforming
    from fl.decide import Options
    from fl.detect import detect, open_host

    hardware = detect(open_host(None))
    one = None if hw == "cpu" or not hardware.accelerators else "count:1"
    options = Options(
        hw=hw, engine=engine, python=python.absolute() if python else None, stack=stack, image=image, devices=devices or one, trust=True,
        strict=True,  # what is adapted is not what the row claims
    )  # fmt: skip
    begin, view = time.monotonic(), _View(len(cases), quiet=as_json)

    def plan(decision: Decision) -> None:
        view.total = sum(conform_set.declared(case, decision.stack) is not False for case in cases)
        if not as_json:
            _show_plan(decision, len(cases), view.total)

    with view:
        report = conforming.conform(cases, options, hardware, ledger, view, plan, jobs)
    seconds = time.monotonic() - begin
    if write_references:
        _write_references(report)
    if as_json:
        ui.document(_json(report, seconds))
    else:
        _show(report, seconds, ledger)
        if report.unkept:
            raise report.unkept
    if report.unkept or any(result.broken for result in report.results):
        raise click.exceptions.Exit(EvidenceError.exit_code)


class _View(View):
    """A line for each case that ended."""

    def __init__(self, total: int, *, quiet: bool) -> None:
        super().__init__(quiet)
        self.total, self.ended = total, 0

    def event(self, event: Mapping[str, Any]) -> None:
        """Cases alone: warnings of tiny runs are in their logs."""
        if event.get("event") != "case":
            return
        self.ended += 1
        if not self.quiet:
            name, code = Path(str(event["config"])).parent.name, event.get("exit")
            ended = "" if code == 0 else f"  exit {code}"
            ui.say(f"  {self.ended:>3}/{self.total}  {name}  {event.get('seconds')} s{ended}")


def _show_plan(decision: Decision, count: int, claimed: int) -> None:
    from fl.hardware import names

    plan, cpu = decision.plan, decision.hardware.cpu
    processor = f"{cpu.model or 'CPU'}, {cpu.cores} cores"
    ui.out(ui.clean(f"hardware  {names(decision.chosen) if decision.chosen else processor}"))
    ui.out(f"stack     {plan.stack} ({decision.stack.status}), lane {plan.lane}")
    ui.out(ui.clean(f"engine    {plan.engine}" + (f", image {plan.image.reference}" if plan.image.reference else "")))
    for text in plan.warnings:
        ui.warning(text)
    ui.out(f"cases     {count}" + (f", the row claims {claimed} of them" if claimed != count else ""))
    ui.out(f"run       {plan.run}\n")


def _show(report: Report, seconds: float, ledger: Path) -> None:
    """The table, then what is wrong, then where the records are."""
    ui.out()
    ui.table(("case", "outcome", "loss", "same stack", "CPU fp32", "seconds"), [_row(result) for result in report.results])
    ui.out()
    for result in (r for r in report.results if r.why and r.outcome != "passed"):
        ui.out(ui.clean(f"{result.case.name}: {result.outcome}: {result.why}"), hang=2)
        for line in result.remedy.splitlines():
            ui.out(ui.clean(f"  try: {line}"))
    counts = [f"{sum(r.outcome == o for r in report.results)} {o}" for o in ("passed", "failed", "refused", "not declared")]
    ui.out(f"{report.decision.stack.id}: {', '.join(counts)}, in {seconds:.0f} s; records are in {ledger}", hang=2)
    if report.not_covered:
        ui.out(f"claimed by the row, and no case stands for it: {', '.join(report.not_covered)}")
    if broken := [r for r in report.results if r.broken]:
        some = "1 case that the row claims" if len(broken) == 1 else f"{len(broken)} cases that the row claims"
        began = any(r.seconds is not None for r in broken)
        end = f": logs are below {report.decision.folder / 'cases'}" if began else ": refused before it started, for the reason above"
        ui.out(ui.paint(f"{some} did not pass{end}", "red"))


def _row(result: Result) -> tuple[str, ...]:
    loss = f"{result.loss[0]:.4f} → {result.loss[-1]:.4f}" if result.loss else "-"
    took = "-" if result.seconds is None else f"{result.seconds:.1f}"
    return (result.case.name, result.outcome, loss, _numbers(result.tight), _numbers(result.cpu), took)


def _numbers(compared: Compared | None) -> str:
    """The difference and what is allowed; a mark where it is too large."""
    if compared is None:
        return "-"
    return f"{compared.difference:.1e} of {compared.allowed:.1e}" + ("" if compared.holds else " !")


def _json(report: Report, seconds: float) -> dict[str, Any]:
    plan = report.decision.plan
    return {
        "schema": 1, "run": report.run, "lane": plan.lane, "stack": plan.stack, "engine": plan.engine, "seconds": round(seconds, 1),
        "not_covered": list(report.not_covered), "unkept": report.unkept and report.unkept.message,
        "cases": [
            {
                "name": r.case.name, "declared": r.declared, "outcome": r.outcome, "why": r.why or None, "remedy": r.remedy or None,
                "loss": list(r.loss), "seconds": r.seconds, "same_stack": _compared(r.tight), "cpu": _compared(r.cpu), "evidence": r.record,
            } for r in report.results
        ],
    }  # fmt: skip


def _compared(compared: Compared | None) -> dict[str, Any] | None:
    from fl.evidence import finite

    if compared is None:
        return None
    return {"reference": compared.name, "max_difference": finite(compared.difference), "allowed": compared.allowed, "holds": compared.holds}


def _write_references(report: Report) -> None:
    """The curves of what passed, beside those of cases that were not run now."""
    from fl import conform_numbers as numbers
    from fl import paths

    if not (paths.REFERENCES.parents[1] / "pyproject.toml").is_file():
        raise EvidenceError("references are part of the project: this fl is an installed one", "use a checkout of the project")
    stack, first = report.decision.stack, report.decision
    new = {r.case.name: numbers.Curve(_recipe_hash(r), r.loss) for r in report.results if r.loss and r.outcome != "refused"}
    made = {
        "time": time.strftime("%Y-%m-%d", time.gmtime()), "device": first.chosen[0].name if first.chosen else first.hardware.cpu.model,
        "engine": first.plan.engine, "lock_sha256": first.plan.lock_sha256, "matches_lock": first.plan.matches_lock,
    }  # fmt: skip
    path = numbers.path(stack.id)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(numbers.document(stack.id, made, numbers.read(stack.id) | new), encoding="utf-8")
    ui.say(f"wrote {len(new)} curves into {path}")


def _recipe_hash(result: Result) -> str:
    return hashlib.sha256(result.case.recipe()).hexdigest()
