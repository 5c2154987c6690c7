"""`fl conform` carried out: every case planned as `fl run` would, all trained in one start of the engine, judged, put into the ledger."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from fl import builtin, conform_numbers, conform_set, evidence, launch, ledger, paths, recipe, run_image, runs, ui, wheel
from fl.conform_set import Case
from fl.decide import Decision, Options, Place, decide_recipe, run_name
from fl.errors import (
    EngineError,
    EvidenceError,
    FlError,
    HardwareError,
    Interrupted,
    MatrixError,
    RecipeError,
    StackError,
    Terminated,
    TrainingError,
)

if TYPE_CHECKING:
    from fl.hardware import Hardware
    from fl.matrix import Stack
    from fl.progress import View

SECONDS: Final = 240
"""After which a single case is given up."""
_STOPPED: Final = frozenset({Interrupted.exit_code, Terminated.exit_code, -2, -15})
"""Exit codes of a case that was stopped before its end: no evidence of anything."""
_REFUSED: Final = frozenset({HardwareError.exit_code, StackError.exit_code, RecipeError.exit_code})


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One case, judged."""

    case: Case
    declared: bool | None
    """Whether the stack claims it; False: it was not run."""
    outcome: str
    """passed, failed, refused, or `not declared`."""
    why: str = ""
    remedy: str = ""
    """What to type where it was refused before it started."""
    loss: tuple[float, ...] = ()
    seconds: float | None = None
    tight: conform_numbers.Compared | None = None
    cpu: conform_numbers.Compared | None = None
    record: str | None = None
    """Id of its evidence."""

    @property
    def broken(self) -> bool:
        """Whether the stack claims more than it did."""
        return self.declared is True and self.outcome != "passed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All of it."""

    run: str
    decision: Decision
    results: tuple[Result, ...]
    not_covered: tuple[str, ...]
    unkept: EvidenceError | None = None
    """Why the ledger does not have all records: they are in the run's folder."""


@dataclass(frozen=True, slots=True)
class _Prepared:
    case: Case
    folder: Path
    recipe_sha256: str
    decision: Decision | None
    refused: FlError | None = None


def conform(
    cases: Sequence[Case], options: Options, hardware: Hardware, place: Path, view: View, plan: Callable[[Decision], None],
    jobs: int | None = None,
) -> Report:  # fmt: skip
    """Runs the cases on one stack. `place`: the ledger; `plan` is shown what will run before it does; `jobs`: cases at a time.

    Raises the FlError of a machine, stack or engine that cannot run anything; cases that fail, or whose model cannot be had, are results,
    with evidence.
    """
    run = run_name("conform")
    folder = paths.runs_home() / run
    _write_files(folder)
    try:
        first = _first(cases, run, folder, options, hardware)
        plan(first)
        _writable(place)
        launch.preflight(first)
        absent = _absent(cases, view)
        if absent:  # nothing of theirs is in the plan that starts the engine
            first = _first([case for case in cases if case.model not in absent], run, folder, options, hardware)
    except FlError:
        shutil.rmtree(folder)
        raise
    claimed = {case.name: conform_set.declared(case, first.stack) for case in cases}
    state = runs.create(run)
    wanted = [_prepare(case, run, folder, options, hardware, absent) for case in cases if claimed[case.name] is not False]
    started = [one for one in wanted if one.refused is None]
    carrier = _batch(first, folder, started, jobs)
    seen, unkept = _Seen(view), list[EvidenceError]()
    try:
        if started:
            _run(carrier, state, seen, place)
    except FlError as error:
        stopped = isinstance(error, Interrupted | Terminated)
        state.update("stopped" if stopped else "failed", exit_code=error.exit_code, message=error.message.splitlines()[0])
        for one in wanted:  # what was seen is not lost
            if one.case.name in seen.seconds:
                _judge(one, seen.seconds[one.case.name], first.stack, claimed[one.case.name], place, unkept)
        raise
    finally:
        shutil.rmtree(folder / "out", ignore_errors=True)
    judged = {
        one.case.name: _judge(one, seen.seconds.get(one.case.name), first.stack, claimed[one.case.name], place, unkept) for one in wanted
    }
    results = tuple(judged.get(c.name) or Result(case=c, declared=False, outcome="not declared", why=_claim(c, first.stack)) for c in cases)
    state.update("finished", exit_code=EvidenceError.exit_code if unkept or any(r.broken for r in results) else 0)
    why = EvidenceError(f"{len(unkept)} of {len(judged)} records are not kept: {unkept[0].message}", _again(run)) if unkept else None
    return Report(run=run, decision=first, results=results, not_covered=tuple(conform_set.not_covered(first.stack)), unkept=why)


def _again(run: str) -> str:
    return f"fl audit --ledger DIR add {run}   takes them from the run's folder"


def _first(cases: Sequence[Case], run: str, folder: Path, options: Options, hardware: Hardware) -> Decision:
    """The plan that starts the engine: of the case that needs more of this machine than its run folder, where it is among them."""
    real = [case for case in cases if case.model in builtin.PACKAGES]
    carrier = real[0] if real else next(case for case in conform_set.CASES if case.name == "sft-lora-fp32")
    return decide_recipe(_recipe(carrier, folder), options, _place(run, folder, folder / "out", hardware))


def _absent(cases: Sequence[Case], view: View) -> dict[str, FlError]:
    """Models whose weights are not here and cannot be fetched, with the reason."""
    report: Callable[[str], None] = (lambda text: None) if view.quiet else ui.step
    found: dict[str, FlError] = {}
    with launch.caught() as signals:
        for name in dict.fromkeys(case.model for case in cases):
            try:
                builtin.fetch(name, report, lambda: launch.stop_if_asked(signals))
            except (EngineError, MatrixError) as error:
                cure = "fl fetch quickstart, on a machine with a network, and copy its cache as docs/offline.md says"
                found[name] = EngineError(error.message, f"{error.remedy.splitlines()[0]}\n{cure}")  # no word of the model, to the audit
        launch.stop_if_asked(signals)
    return found


def _claim(case: Case, stack: Stack) -> str:
    return f"{stack.id} does not claim {case.feature}" + (f": {stack.sources[case.feature]}" if case.feature in stack.sources else "")


def _place(run: str, folder: Path, output: Path, hardware: Hardware) -> Place:
    return Place(run=run, folder=folder, output=output, hardware=hardware)


def _recipe(case: Case, folder: Path) -> recipe.Recipe:
    """The case's recipe; its data will lie beside it, as those of a shipped one do."""
    path = folder / "recipes" / f"{case.name}.yaml"
    return recipe.parse(case.recipe(), file=path.name, path=str(path), shipped=True).require()


def _writable(place: Path) -> None:
    """A ledger that takes nothing is told before the work, not after it."""
    probe = place / f".probe-{run_name('x')[-4:]}"
    try:
        place.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise EvidenceError(f"the ledger {place} takes no record: {error.strerror}", "fl conform --ledger DIR") from error


def _write_files(folder: Path) -> None:
    for name, text in conform_set.files().items():
        path = folder / "recipes" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def _prepare(case: Case, run: str, folder: Path, options: Options, hardware: Hardware, absent: Mapping[str, FlError]) -> _Prepared:
    """The case's folder with everything that a run's has; or why it is refused before it starts."""
    place = folder / "cases" / case.name
    place.mkdir(parents=True)
    read = _recipe(case, folder)
    try:
        decision = decide_recipe(read, options, _place(f"{run}-{case.name}", place, folder / "out" / case.name, hardware))
    except FlError as error:
        if error.refused is not None:
            launch.write_refusal(error, place)
        return _Prepared(case, place, read.sha256, None, error)
    launch.write_inputs(decision, place)
    return _Prepared(case, place, read.sha256, decision, absent.get(case.model))


def _batch(first: Decision, folder: Path, cases: Sequence[_Prepared], jobs: int | None) -> Decision:
    """The first case's plan with the batch in place of one config. An accelerator may allow only one process at a time."""
    jobs = jobs or (1 if first.chosen else min(2, first.hardware.cpu.cores))
    content = {
        "configs": [str(one.folder / "config.json") for one in cases], "jobs": jobs, "seconds": SECONDS,
        "events": str(folder / "events.jsonl"),
    }  # fmt: skip
    (folder / "batch.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    argv = (*first.plan.argv[:-2], "fl_trainers.batch", str(folder / "batch.json"))
    batch = replace(first, plan=replace(first.plan, argv=argv))
    launch.write_inputs(batch, folder)
    return batch


class _Seen:
    """Passes events on and keeps how long each case took."""

    def __init__(self, view: View) -> None:
        self.view, self.quiet = view, view.quiet
        self.losses = view.losses
        self.seconds: dict[str, float] = {}

    def event(self, event: Mapping[str, Any]) -> None:
        if event.get("event") == "case" and event.get("exit") not in _STOPPED:
            self.seconds[Path(str(event["config"])).parent.name] = float(event["seconds"])
        self.view.event(event)

    def close(self) -> None:
        self.view.close()


def _run(carrier: Decision, state: runs.Run, seen: _Seen, place: Path) -> None:
    """Runs the batch to its end."""
    with launch.caught() as signals:
        ended = launch.carry_out(carrier, state, seen, signals)  # type: ignore[arg-type]
    if signals.interrupts or signals.terminated:
        kind = Interrupted if signals.interrupts else Terminated
        raise kind(f"stopped after {len(seen.seconds)} cases; their records are in {place}", f"ls {state.folder / 'cases'}")
    if ended.exit_code:
        error = launch.judge(carrier, ended, signals)
        raise error or TrainingError("the batch ended early", f"fl logs {carrier.plan.run}")


def _judge(
    one: _Prepared, seconds: float | None, stack: Stack, claimed: bool | None, place: Path, unkept: list[EvidenceError]
) -> Result:  # fmt: skip
    """The case's evidence, made and added; where the ledger takes it no more, that is noted."""
    if one.refused is None and (seen := one.folder.parents[1] / run_image.NAME).is_file():
        shutil.copy(seen, one.folder)  # all cases ran in the one image that the engine was started with
    error = one.refused or (_ended(one.folder) if seconds is not None else TrainingError("it was not started"))
    loss = _curve(one.folder, "reward" if one.case.sampled else "loss")
    numbers = None if error is not None else conform_numbers.fault(loss)
    curve = tuple(value for value in loss if value is not None)
    own = conform_numbers.read(stack.id)
    cpu = own if stack.id == conform_numbers.CPU else conform_numbers.read(conform_numbers.CPU)
    same = band = None
    if error is None and numbers is None:
        same = conform_numbers.tight(one.case, one.recipe_sha256, curve, stack.id, own)
        band = conform_numbers.against_cpu(one.case, curve, cpu)
        numbers = next((_off(c) for c in (same, band) if c is not None and not c.holds), None)
    if error is None and numbers is not None:
        error = EvidenceError(numbers)
    failure = None if error is None else {"type": _kind(error), "message": error.message[:2000]}
    record = evidence.of_run(one.folder, "refused" if one.refused else evidence.outcome(error), failure, _reference(same, band))
    if record.get("lane") is None:  # refused before there was a plan
        record = evidence.identified({**record, "lane": stack.lane, "stack": stack.id, "recipe_sha256": one.recipe_sha256,
                                      "trainer_sha256": wheel.code_sha256(), **_planned(one.case)})  # fmt: skip
    runs.write_json(one.folder / "evidence.json", record)
    try:
        ledger.add(place, record)
    except EvidenceError as full:
        unkept.append(full)
    why = "" if error is None else error.message.splitlines()[0].rstrip(":")
    return Result(case=one.case, declared=claimed, outcome=record["outcome"], why=why, remedy=one.refused.remedy if one.refused else "",
                  loss=curve, seconds=seconds, tight=same, cpu=band, record=record["id"])  # fmt: skip


def _planned(case: Case) -> dict[str, Any]:
    """Model and method of a case that has no config."""
    return {
        "model": {"name": case.model},
        "method": {"stage": case.keys["stage"], "finetuning_type": case.keys["finetuning_type"]},
    }


def _kind(error: FlError) -> str:
    return "Numbers" if isinstance(error, EvidenceError) else type(error).__name__


def _off(compared: conform_numbers.Compared) -> str:
    return f"the loss is {compared.difference:.2g} away from {compared.name}, allowed is {compared.allowed:.2g}"


def _reference(same: conform_numbers.Compared | None, band: conform_numbers.Compared | None) -> dict[str, Any] | None:
    """The record's `reference`: the stack's own curve where there is one, the CPU's beside it."""
    if same is None and band is None:
        return None
    shown = same or band
    assert shown is not None
    made: dict[str, Any] = {"name": shown.name, "max_difference": evidence.finite(shown.difference), "allowed": shown.allowed}
    if same is not None and band is not None:
        made["cpu"] = {"name": band.name, "max_difference": evidence.finite(band.difference), "allowed": band.allowed}
    return made


def _ended(folder: Path) -> FlError | None:
    """How the trainer's run of a case ended, by its own record and last words."""
    try:
        record = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return TrainingError(f"it left no record: {_last_line(folder / 'log.txt')}")
    if record.get("outcome") == "passed":
        return None
    failure = record.get("failure") or {}
    message = str(failure.get("message") or "it failed")
    exits = runs.last_events(folder / "events.jsonl").get("error", {}).get("exit")
    return RecipeError(message) if exits in _REFUSED else TrainingError(message)


def _last_line(log: Path) -> str:
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        return "nor a log"
    return next((line.strip() for line in reversed(lines) if line.strip()), "its log is empty")


def _curve(folder: Path, name: str) -> list[float | None]:
    """The losses, or for stages whose loss says nothing the rewards, by step."""
    try:
        record = json.loads((folder / "record.json").read_text(encoding="utf-8"))
        values = (record.get("metrics") or {}).get(name) or []
    except (OSError, ValueError, AttributeError):
        return []
    return [float(value) if isinstance(value, int | float) else None for value in values]
