"""`fl doctor`: every check of host, drivers, engine, permissions, disk, registry, with what to do."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

import click

from fl import ui
from fl.errors import UsageError

if TYPE_CHECKING:
    from fl.findings import Finding

_MARKS: Final = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "error": ("✗", "red"), "skipped": ("-", "dim")}
_INDENT: Final = " " * 15
_TAIL: Final = 1 << 20
"""Bytes of a text that are looked at, from its end."""


@click.command(short_help="Check host, drivers, engines and permissions.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.option("--fix", is_flag=True, help="Mend what is safe to mend, printing each command.")
@click.option("--replay", type=click.Path(path_type=Path), help="Look at a recorded machine instead of this one (also FL_REPLAY).")
@click.option("--explain", type=click.File("rb"), help="Name cause and cure of the known error texts in a file (-: stdin) instead.")
def doctor(as_json: bool, fix: bool, replay: Path | None, explain: IO[bytes] | None) -> None:
    """Check this machine: what would keep a run from working, where that was seen, and the command that mends it.

    Exits 3 (device), 6 (engine, disk) or 7 (image, registry) by the worst error, else 0.
    """
    if explain is not None:
        if fix or replay is not None:
            raise UsageError("--explain reads a text, not a machine: it goes with --json only", "fl doctor --explain FILE")
        sys.exit(meaning(explain, as_json))
    from fl.doctor import examine, exit_code, to_json
    from fl.doctor_facts import gather

    facts = gather(replay)
    if fix:
        from fl.doctor_fix import mend

        if mend(facts, sys.stdin.isatty() and sys.stderr.isatty()):
            facts = gather(replay)
    findings = examine(facts)
    if as_json:
        ui.document(to_json(findings))
    else:
        screen(findings)
    sys.exit(exit_code(findings))


def meaning(file: IO[bytes], as_json: bool) -> int:
    """Known causes in the end of a text; the exit code is that of the worst, 0 where none is known."""
    from fl.causes import every

    tail, cut = b"", False
    while chunk := file.read(_TAIL):
        cut = cut or len(tail) + len(chunk) > _TAIL
        tail = (tail + chunk)[-_TAIL:]
    causes = tuple(every(tail.decode("utf-8", "replace")))
    if as_json:
        known = [{"code": c.code, "lane": c.lane, "cause": c.cause, "cure": c.cure, "exit": c.error.exit_code} for c in causes]
        ui.document({"schema": 1, "causes": known})
    for cause in () if as_json else causes:
        mark, style = _MARKS["error"]
        ui.out(f"{ui.paint(mark, style)} {ui.clean(cause.cause)}")
        for line in cause.cure.splitlines():
            ui.out(ui.paint("  try   ", "cyan") + ui.clean(line))
    if not causes and not as_json:
        where = " in its last MiB, which is what was read" if cut else ""
        ui.out(f"no known error text{where}; `fl doctor` looks at the machine itself")
    return min((cause.error.exit_code for cause in causes), default=0)


def screen(findings: Sequence[Finding]) -> None:
    """A line a finding; evidence and cure below what is not well."""
    before = ""
    for names, finding in _grouped(findings):
        mark, style = _MARKS[finding.status]
        title = "" if names == before else names
        before = names
        text = f"{title:<12} {ui.clean(finding.finding)}" if "," not in title else f"{title}: {ui.clean(finding.finding)}"
        ui.out(f"{ui.paint(mark, style)} " + (ui.paint(text, "dim") if finding.status == "skipped" else text), hang=len(_INDENT))
        if finding.status in ("warning", "error"):
            for seen in [e for e in finding.evidence if e.value not in finding.finding][:4]:
                ui.out(ui.paint(f"{_INDENT}seen  ", "dim") + ui.clean(f"{seen.source}: {seen.value}"), hang=len(_INDENT) + 8)
        if finding.status != "ok":
            for line in finding.remedy.splitlines():
                ui.out(ui.paint(f"{_INDENT}try   ", "cyan") + ui.clean(line))
    counts = Counter(finding.status for finding in findings)
    ui.out()
    words = ((counts["error"], "errors"), (counts["warning"], "warnings"), (counts["ok"], "ok"), (counts["skipped"], "skipped"))
    ui.out(", ".join(f"{count} {word.removesuffix('s') if count == 1 else word}" for count, word in words))


def _grouped(findings: Sequence[Finding]) -> list[tuple[str, Finding]]:
    """Neighbours that were skipped for the same reason stand in one line."""
    groups: list[tuple[str, Finding]] = []
    for finding in findings:
        names, last = groups[-1] if groups else ("", None)
        if last is not None and finding.status == last.status == "skipped" and finding.finding == last.finding and not finding.remedy:
            groups[-1] = (names if finding.check == last.check else f"{names}, {finding.check}", last)
        else:
            groups.append((finding.check, finding))
    return groups
