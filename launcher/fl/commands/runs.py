"""`fl ps`, `fl logs`, `fl stop`."""

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
