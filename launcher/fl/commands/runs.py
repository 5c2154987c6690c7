"""`fl ps`, `fl logs`, `fl attach`, `fl stop`, `fl resume`, `fl rm`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from fl import ui

if TYPE_CHECKING:
    from fl.run_status import RunStatus


@click.command(short_help="List runs.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.option("-a", "--all", "everything", is_flag=True, help="Also runs that are over.")
def ps(as_json: bool, everything: bool) -> None:
    """List the runs that go on, or all with -a; also those whose launcher died."""
    from fl import run_status

    found = run_status.list_runs()
    shown = [status for status in found if everything or not status.over]
    if as_json:
        ui.document({"schema": 1, "runs": [status.to_json() for status in shown]})
        return
    if shown:
        ui.table(("RUN", "STATE", "ENGINE", "AGE", "STEP", "LOSS", "SAID"), [_row(status) for status in shown])
    elif found:
        ui.say(f"nothing runs; {len(found)} runs are over: fl ps -a")
    else:
        ui.say("there are no runs yet: fl run quickstart")


def _row(status: RunStatus) -> tuple[str, ...]:
    step = "-" if status.step is None else f"{status.step}/{status.max_steps or '?'}"
    loss = "-" if status.loss is None else f"{status.loss:.4f}"
    said = (status.message or "").splitlines()
    return (status.name, status.state, status.engine or "-", age(time.time() - status.created), step, loss, said[0] if said else "")


def age(seconds: float) -> str:
    """The largest unit that fits: `45 s`, `12 min`, `3 h`, `2 d`."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0, seconds):.0f} s"


@click.command(short_help="Print the log of a run.")
@click.option("-f", "--follow", is_flag=True, help="Go on until the run ends.")
@click.argument("run", default="last")
def logs(follow: bool, run: str) -> None:
    """Print what RUN wrote; the newest run without a name. A name may be shortened to its beginning."""
    from fl import run_logs, run_status

    run_logs.show(run_status.find(run), follow)


@click.command(short_help="Stop a run: checkpoint, then end.")
@click.option("--now", is_flag=True, help="Kill it; nothing is saved.")
@click.argument("run", default="last")
def stop(now: bool, run: str) -> None:
    """Stop RUN, the newest without a name: the current step ends, a checkpoint is saved, then it ends."""
    from fl import run_status, run_stop

    status = run_status.find(run)
    if status.over:
        run_stop.clean(status)
        ui.out(f"{status.name} is over already: {status.state}" + (f" ({status.message})" if status.message else ""))
        return
    ui.step(f"stopping {status.name}" + ("" if now else ": a checkpoint is saved first; --now kills it"))
    ended = run_stop.stop(status, now)
    ui.out(f"{ended.name}: {ended.state}" + (f", checkpoint saved at {ended.saved}" if ended.saved else ", nothing was saved"))


@click.command(short_help="Watch a run until it ends.")
@click.argument("run", default="last")
def attach(run: str) -> None:
    """Watch RUN, the newest without a name, until it ends. Ctrl-C stops the watching, not the run.

    Ends with the run's own exit code.
    """
    from fl import run_attach, run_status
    from fl.errors import EngineError
    from fl.progress import View

    status = run_status.find(run)
    try:
        with View() as view:
            ended = run_attach.watch(status, view)
    except KeyboardInterrupt:
        ui.say(f"{status.name} goes on: fl attach {status.name}, fl stop {status.name}")
        return
    if ended.exit_code is None:
        raise EngineError(f"{ended.name} is {ended.state}: {ended.message}", f"fl resume {ended.name}\nfl logs {ended.name}")
    ui.out(f"{ended.name}: {ended.state}" + (f" ({ended.message})" if ended.message else ""))
    if ended.exit_code:
        raise click.exceptions.Exit(ended.exit_code)


@click.command(short_help="Go on with a run from its last checkpoint.")
@click.option("--dry-run", is_flag=True, help="Print the plan; start and write nothing.")
@click.option("--trust", is_flag=True, help="Let a model's own code run on this machine without a container.")
@click.option("--detach", is_flag=True, help="Start in the background; follow with `fl attach`.")
@click.option("--json", "as_json", is_flag=True, help="The plan (dry run) or the evidence as JSON.")
@click.argument("run", default="last")
def resume(dry_run: bool, trust: bool, detach: bool, as_json: bool, run: str) -> None:
    """Go on with RUN, the newest without a name, that was stopped, failed or lost.

    A new run with the same recipe, stack, engine and devices starts from the newest checkpoint in the output folder.
    """
    import os
    from dataclasses import replace

    from fl import resume as resuming
    from fl import run_status
    from fl.commands import run as running
    from fl.decide import decide

    replay = running.replayed(dry_run)
    again = resuming.again(run_status.find(run), trust=trust)
    os.chdir(again.directory)
    ui.step(f"from {again.checkpoint}")
    decision = decide(again.source, again.overrides, replace(again.options, replay=replay))
    if dry_run and as_json:
        ui.document(decision.plan.to_json())
    elif dry_run:
        running.show(decision)
        ui.out("\ndry run: nothing was started or written")
    else:
        running.start(decision, as_json, detach)


@click.command(short_help="Remove the folders of runs that are over.")
@click.option("--json", "as_json", is_flag=True, help="What was removed as one JSON document.")
@click.argument("names", nargs=-1, required=True, metavar="RUN...")
def rm(as_json: bool, names: tuple[str, ...]) -> None:
    """Remove the folders of RUNs that are over: log, events, plan and evidence. Output folders and ledgers stay.

    A run that goes on is refused, and then nothing is removed.
    """
    from fl import gc, run_status

    found = {status.name: status for status in (run_status.find(name) for name in names)}
    removed = gc.remove_runs(list(found.values()))
    if as_json:
        ui.document({"schema": 1, "removed": [one.to_json() for one in removed]})
        return
    for one in removed:
        ui.out(f"{one.path.name}: removed, {gc.size_text(one.size)}")
