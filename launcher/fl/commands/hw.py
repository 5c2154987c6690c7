"""`fl hw`: what accelerators this machine has, with evidence."""

from __future__ import annotations

from pathlib import Path

import click

from fl import ui
from fl.errors import UsageError
from fl.hardware import Accelerator, Hardware, Problem


@click.command("hw", short_help="Show the accelerators of this machine, with evidence.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.option(
    "--record",
    type=click.Path(path_type=Path, file_okay=False),
    help="Also write what was read to a folder, from which it can be replayed.",
)
@click.option("--keep-ids", is_flag=True, help="With --record: keep serial numbers, UUIDs and host names.")
@click.option("--replay", type=click.Path(path_type=Path), help="Look at a recorded machine instead of this one (also FL_REPLAY).")
def hw(as_json: bool, record: Path | None, keep_ids: bool, replay: Path | None) -> None:
    """Show the accelerators of this machine: present, accessible, usable, and where each fact was read.

    Exits 0 also when there is none.
    """
    from fl.detect import detect, open_host

    if keep_ids and record is None:
        raise UsageError("--keep-ids says what --record writes, and --record is not there", "fl hw --record DIR --keep-ids")
    host = open_host(replay)
    if record is None:
        hardware = detect(host)
    else:
        from fl.host_record import RecordingHost

        if not host.live:
            raise UsageError(
                "--record writes down this machine; with --replay or FL_REPLAY there is nothing to record", "fl hw --record DIR"
            )
        recording = RecordingHost(host, record, keep_ids)
        hardware = detect(recording)
        recording.write()
        ui.say(f"recorded in {record}: look through it before you send it")
    if as_json:
        ui.document(hardware.to_json())
    else:
        import os

        from fl.devices import restrict

        screen(hardware)
        for note in restrict(hardware, os.environ)[1]:
            ui.out(ui.clean(note), hang=2)


def screen(hardware: Hardware) -> None:
    """The readable form."""
    from fl.lanes import LANES

    for lane, module in LANES.items():
        accelerators = hardware.of_lane(lane)
        if not accelerators:
            continue
        driver = hardware.drivers.get(str(module.DRIVER), {})
        facts = ", ".join(f"{key} {value}" for key, value in driver.items() if value)
        ui.out(f"{lane}: {module.TITLE}" + (f" (driver {ui.clean(facts)})" if facts else ""))
        ui.table(("#", "NAME", "CHIP", "MEMORY", "PCI", "USABLE", "BUSY", "HEALTHY", "UUID"), [_row(a) for a in accelerators], indent="  ")
    if not hardware.accelerators:
        ui.out("no accelerator")
    cpu = hardware.cpu
    memory = f", {cpu.memory_mib / 1024:.0f} GiB" if cpu.memory_mib else ""
    ui.out(
        f"cpu: {ui.clean(cpu.model or hardware.arch)}, {cpu.cores} core{'s' if cpu.cores > 1 else ''}{memory}"
        + (f" ({', '.join(cpu.features)})" if cpu.features else ""),
        hang=5,
    )
    for problem in hardware.problems:
        _problem(problem)


def _row(a: Accelerator) -> tuple[str, ...]:
    profile = "" if a.partition is None else f" [{a.partition.kind} {a.partition.profile or ''}".rstrip() + "]"
    memory = "?" if a.memory_mib is None else f"{a.memory_mib / 1024:.1f} GiB"
    return (
        str(a.index),
        (a.name or "?") + profile,
        a.arch or "?",
        memory,
        a.pci or "-",
        _word(a.usable),
        _word(a.busy),
        _word(a.healthy),
        a.uuid or "-",
    )


def _word(value: bool | None) -> str:
    return {True: "yes", False: "no", None: "?"}[value]


def _problem(problem: Problem) -> None:
    style = "red" if problem.severity == "error" else "yellow"
    ui.out(ui.paint(f"{problem.severity} ({problem.code}): ", style) + ui.clean(problem.message), hang=2)
    if problem.remedy:
        ui.out("  " + ui.clean(problem.remedy))
