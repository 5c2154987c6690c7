"""A decision carried out: folder, environment or image, start, follow, stop, evidence. What was decided is not decided again here."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

from fl import builtin, engines, evidence, modelscope, paths, run_image, runs, ui, wheel
from fl.engines import ranks
from fl.errors import FlError, HardwareError, Interrupted, RecipeError, Terminated, TrainingError
from fl.plan import GRACE
from fl.progress import View

if TYPE_CHECKING:
    from fl.causes import Cause
    from fl.decide import Decision

_POLL: Final = 0.1
_EXITS: Final[dict[int, type[FlError]]] = {3: HardwareError, 5: RecipeError, 10: TrainingError}
"""Exit codes of the trainer that mean one of our classes."""


@dataclass(slots=True)
class Signals:
    """What arrived since the start: SIGINT counted, SIGTERM remembered."""

    interrupts: int = 0
    terminated: bool = False


@contextmanager
def caught() -> Iterator[Signals]:
    """Turns SIGINT and SIGTERM into values while a run goes on.

    After an interrupt SIGINT stays ignored: what is left is writing down how the run ended, and Python's own end, which would die of it.
    """
    seen = Signals()

    def interrupt(number: int, frame: FrameType | None) -> None:
        seen.interrupts += 1

    def terminate(number: int, frame: FrameType | None) -> None:
        seen.terminated = True

    before = {number: signal.signal(number, handler) for number, handler in ((signal.SIGINT, interrupt), (signal.SIGTERM, terminate))}
    try:
        yield seen
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_IGN if seen.interrupts and number == signal.SIGINT else handler)


def preflight(decision: Decision) -> None:
    """What would fail later, said first: errors among the plan's findings, an image that is not there."""
    from fl import preflight as checks
    from fl.choose_engine import missing_image

    if (error := checks.error(decision.plan.problems)) is not None:
        raise error
    if decision.plan.image.source == "build":
        raise missing_image(decision.plan.engine, decision.stack.id, str(decision.plan.image.reference))


def execute(decision: Decision, view: View) -> dict[str, Any]:
    """Runs it to its end: the evidence, or the FlError of a run that did not pass, its evidence written all the same."""
    preflight(decision)
    run = runs.create(decision.plan.run)
    write_inputs(decision, run.folder)
    try:
        with caught() as signals:
            ended = carry_out(decision, run, view, signals)
        error = judge(decision, ended, signals)
    except FlError as failure:
        error = failure
    except BaseException as bug:
        run.update("failed", message=f"{type(bug).__name__}: {bug}", exit_code=1)
        raise
    return _close(decision, run, error)


def _source(decision: Decision) -> dict[str, Any]:
    """What else is needed to read the recipe once more."""
    recipe = decision.recipe
    told = {"name": recipe.name, "path": recipe.path, "shipped": recipe.shipped, "overrides": list(recipe.overrides)}
    return {"schema": 1, **told, "directory": str(Path.cwd())}


def refuse(error: FlError) -> dict[str, Any] | None:
    """The run folder and the evidence of a run that its stack or machine does not allow; None where it was not that."""
    refused = error.refused
    if refused is None:
        return None
    run = runs.create(refused.config.run.name)
    record = write_refusal(error, run.folder)
    run.update("failed", exit_code=error.exit_code, message=error.message.splitlines()[0])
    return record


def write_refusal(error: FlError, folder: Path) -> dict[str, Any]:
    """The files of a refused run, its evidence among them."""
    refused = error.refused
    (folder / "recipe.yaml").write_bytes(refused.recipe.text)
    for name, document in (("plan.json", dict(refused.plan)), ("hardware.json", refused.hardware.to_json())):
        (folder / name).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    refused.config.write(folder / "config.json")
    record = evidence.of_run(folder, "refused", {"type": type(error).__name__, "message": error.message[:2000]})
    runs.write_json(folder / "evidence.json", record)
    return record


def write_inputs(decision: Decision, folder: Path) -> None:
    """The files of design §4.6 that exist before the start."""
    (folder / "recipe.yaml").write_bytes(decision.recipe.text)
    documents = {"plan.json": decision.plan.to_json(), "hardware.json": decision.hardware.to_json(), "recipe.json": _source(decision)}
    for name, document in documents.items():
        (folder / name).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    decision.config.write(folder / "config.json")
    (folder / "events.jsonl").touch()
    (folder / "log.txt").touch()


def carry_out(decision: Decision, run: runs.Run, view: View, signals: Signals) -> engines.Ended:
    """Environment or image, start, events to the view, until the end."""
    report: Callable[[str], None] = (lambda text: None) if view.quiet else ui.step
    _provide(decision, run, report, signals)
    stop_if_asked(signals)
    run.update("starting")
    started = engines.get(decision.plan.engine).start(decision.plan, _container_environment(decision))
    run.update("running", ident=started.ident, engine=decision.plan.engine)
    started.follow(run.folder / "log.txt")
    try:
        return _follow(started, run, view, signals)
    finally:
        if started.poll() is None:
            started.kill()
        started.remove()


def _provide(decision: Decision, run: runs.Run, report: Callable[[str], None], signals: Signals) -> None:
    """Image or environment, code, weights, folders, identity and secrets: everything that the argv names."""
    plan = decision.plan
    if decision.lock is not None:
        from fl.engines import environment
        from fl.images import lock

        if environment.ready(decision.lock, decision.stack.python) is None:
            run.update("building")
            environment.ensure(decision.lock, decision.stack.python, report, lock.BUILD_CONSTRAINTS, lambda: stop_if_asked(signals))
    for extra in plan.extras:
        from fl.engines import extras

        extras.ensure(extra, report, lambda: stop_if_asked(signals))
    if "PYTHONPATH" in plan.environment:
        wheel.unpack_code(paths.cache_home())
    if plan.image.source == "pull":
        run.update("pulling")
        engines.get(plan.engine).pull(str(plan.image.reference), report, lambda: stop_if_asked(signals))
    stop_if_asked(signals)
    builtin.fetch(decision.config.model.name, report, lambda: stop_if_asked(signals))
    modelscope.fetch(modelscope.asked(decision.config), report, lambda: stop_if_asked(signals))
    for folder in (decision.cache, decision.cache / "home", paths.cache_home() / "trainer"):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for folder in _written(decision):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RecipeError(f"The folder {folder} cannot be made: {error.strerror}.", "output_dir: a folder of yours") from error
    if plan.engine != "host":
        _write_identity(run.folder, decision)
        run_image.note(run.folder, plan)


def _written(decision: Decision) -> list[Path]:
    from fl import inputs

    return [Path(folder) for folder in inputs.written(decision.config)]


def _write_identity(folder: Path, decision: Decision) -> None:
    """A passwd and a group entry for the caller, and the secrets as a file that only they can read."""
    from fl.decide import caller

    me, home = caller(), decision.plan.environment["HOME"]
    users = {"root": (0, 0), me.name: (me.uid, me.gid)} if me.uid else {"root": (0, 0)}
    lines = [f"{name}:x:{uid}:{gid}:{name}:{home}:/bin/sh" for name, (uid, gid) in users.items()]
    (folder / "passwd").write_text("\n".join(lines) + "\n", encoding="utf-8")
    groups = [f"{name}:x:{gid}:" for name, (_, gid) in users.items()] + [f"device{gid}:x:{gid}:{me.name}" for gid in decision.plan.groups]
    (folder / "group").write_text("\n".join(groups) + "\n", encoding="utf-8")
    if decision.secrets:
        descriptor = os.open(folder / "secrets.json", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(dict(decision.secrets), file)


def _container_environment(decision: Decision) -> Mapping[str, str]:
    """The host engine gets secrets in the child's environment; a container reads the file in its run folder."""
    return decision.secrets if decision.plan.engine == "host" else {}


def stop_if_asked(signals: Signals) -> None:
    """Raises what a signal means that arrived before the training began."""
    if signals.terminated:
        raise Terminated("stopped by SIGTERM before the training began")
    if signals.interrupts:
        raise Interrupted("interrupted before the training began")


def _follow(started: engines.Started, run: runs.Run, view: View, signals: Signals) -> engines.Ended:
    """Events to the screen until the end. One interrupt: checkpoint and a clean end; a second: now."""
    offset, asked, killed = 0, False, False
    while True:
        ended = started.poll()
        events, offset = runs.read_events(run.folder / "events.jsonl", offset)
        for event in events:
            view.event(event)
            if event.get("event") in ("saving", "step"):
                run.note("saving" if event["event"] == "saving" else "running")
        if ended is not None:
            return ended
        if (signals.interrupts or signals.terminated) and not asked:
            asked = True
            view.close()
            ui.say("stopping: a checkpoint is saved first" + ("; Ctrl-C again stops now" if signals.interrupts else ""))
            started.stop(GRACE)
        if signals.interrupts > 1 and not killed:
            killed = True
            started.kill()
        time.sleep(_POLL)


def judge(decision: Decision, ended: engines.Ended, signals: Signals) -> FlError | None:
    """What the end of the trainer means; None: it passed."""
    folder = decision.folder
    remedy = f"fl logs {decision.plan.run}"
    if ended.exit_code == 0:
        return None
    last, cure = runs.last_words(folder / "events.jsonl") or ("", "")
    if signals.interrupts or signals.terminated:
        what = f"stopped, but no checkpoint was saved: {last}" if last else f"stopped; {_again(decision)}"
        return (Interrupted if signals.interrupts else Terminated)(f"the run was {what}", remedy)
    if gone := _silent(ended, folder):
        last = str(gone)
    remedy = "\n".join(filter(None, (cure, remedy)))
    code = _told(ended, folder)
    if ended.oom:
        return TrainingError(
            "the training was killed: out of memory" + (f" ({ended.reason})" if ended.reason else ""),
            f"per_device_train_batch_size=1, a smaller cutoff_len, or a smaller model\n{remedy}",
        )
    if code == 143:
        return Terminated(f"the training was stopped from outside (SIGTERM); {_again(decision)}", remedy)
    kind = _EXITS.get(code, TrainingError)
    message = last or ended.reason or f"the trainer ended with exit code {code}"
    tail = "" if last else _tail(folder / "log.txt")
    cause = _cause(folder, message)
    return kind(message + tail, remedy) if cause is None else kind(f"{message}{tail}\ncause: {cause.cause}", f"{cause.cure}\n{remedy}")


def _told(ended: engines.Ended, folder: Path) -> int:
    """The exit code; torchrun makes 1 of everything, so there the trainer's own last words count."""
    from fl.run_status import told_exit

    told = told_exit(runs.last_events(folder / "events.jsonl"))
    return told if ended.exit_code == 1 and told else ended.exit_code


def _silent(ended: engines.Ended, folder: Path) -> ranks.Silent | None:
    """The one of several processes that ended without a word: what the others say is only that they lost it."""
    said = runs.first_error(folder / "events.jsonl")
    told = said is not None and said.get("type") != runs.LOST
    return None if told or ended.exit_code != 1 else ranks.silent(_tail(folder / "log.txt", lines=200))


def _again(decision: Decision) -> str:
    """What the same command does next time."""
    training = decision.config.training
    if not any(Path(training.output_dir).glob("checkpoint-*/trainer_state.json")):
        return f"there is no checkpoint in {training.output_dir} yet, so the same command starts at the beginning"
    if training.overwrite_output_dir:
        return f"its last checkpoint is in {training.output_dir}; overwrite_output_dir=false goes on from it, the same command starts anew"
    return f"the same command goes on from the last checkpoint in {training.output_dir}"


def _cause(folder: Path, message: str) -> Cause | None:
    """A known one of the trainer's own words, else of the end of its log."""
    from fl.causes import explain

    return explain(message) or explain(_tail(folder / "log.txt", lines=200))


def _tail(log: Path, lines: int = 12) -> str:
    try:
        text = log.read_text(encoding="utf-8", errors="replace").rstrip().splitlines()[-lines:]
    except OSError:
        return ""
    return "\n" + "\n".join(f"  | {line}" for line in text) if text else ""


def _close(decision: Decision, run: runs.Run, error: FlError | None) -> dict[str, Any]:
    """State and evidence of the end, whatever it was; then the error, if there is one."""
    (run.folder / "secrets.json").unlink(missing_ok=True)
    failure = None if error is None else {"type": type(error).__name__, "message": error.message[:2000]}
    record = evidence.of_run(run.folder, evidence.outcome(error), failure)
    runs.write_json(run.folder / "evidence.json", record)
    if error is None:
        run.update("finished", exit_code=0)
        return record
    stopped = isinstance(error, Interrupted | Terminated)
    run.update("stopped" if stopped else "failed", exit_code=error.exit_code, message=error.message.splitlines()[0])
    raise error


def detach(decision: Decision) -> bool:
    """Goes on in a background process with its own session. True in the child, whose words go to launcher.log; False in the parent.

    The parent waits for the child's first state, so that whoever asks for the run next finds one.
    """
    decision.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    log = os.open(decision.folder / "launcher.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    if child := os.fork():
        os.close(log)
        while not (decision.folder / "state.json").exists() and os.waitpid(child, os.WNOHANG) == (0, 0):
            time.sleep(_POLL / 10)
        return False
    os.setsid()
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    return True
