"""Where records to add come from: a run, a folder, a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fl import ledger, paths
from fl.errors import EvidenceError


def records(source: str) -> list[dict[str, Any]]:
    """The records of a run by name, of a folder (a ledger, a run's, any of records) or of a file. EvidenceError for a broken one."""
    if not source.strip():
        raise EvidenceError("a source has no name", "a run's name, a folder of records, or a file")
    path = Path(source)
    run = paths.runs_home() / (source if path.exists() or "/" in source else _run(source)) / "evidence.json"
    if not path.exists() and "/" not in source and run.parent.is_dir():
        if cases := _cases(run.parent):
            return cases
        if not run.is_file():
            _close(run.parent)
        if not run.is_file():
            raise EvidenceError(f"the run {source} has no evidence: it goes on, or never began", f"fl ps --all\nfl logs {source}")
        path = run
    if not path.exists():
        raise EvidenceError(f"there is no run, folder or file {source}", "fl ps --all")
    if path.is_file():
        return [_one(path)]
    if (path / "evidence.json").is_file():
        return [_one(path / "evidence.json")]
    if cases := _cases(path):
        return cases
    files = sorted(file for file in path.rglob("*.json") if "signatures" not in file.parts)
    if not files:
        raise EvidenceError(f"{path} holds no records", "a run's name, a folder of records, or a file")
    return [_one(file) for file in files]


def _cases(folder: Path) -> list[dict[str, Any]]:
    """The records of a run of `fl conform`."""
    return [_one(file) for file in sorted(folder.glob("cases/*/evidence.json"))]


def _run(source: str) -> str:
    """The run that a name, or its beginning, means; the source itself where there is none."""
    from fl import run_status

    known = sorted(folder.name for folder in run_status.folders())
    fits = [source] if source in known else [name for name in known if name.startswith(source)]
    if len(fits) > 1:
        raise EvidenceError(f"{len(fits)} runs begin with {source!r}, the newest is {max(fits)}", "fl ps --all")
    return fits[0] if fits else source


def _close(folder: Path) -> None:
    """The evidence of a run whose launcher died before it could write it, where the run is over."""
    from fl import run_stop, runs
    from fl.run_status import Finder

    status = Finder().status(folder)
    if status.state in runs.FINAL:
        run_stop.clean(status)


def _one(path: Path) -> dict[str, Any]:
    found = ledger.open_record(path)
    if isinstance(found, ledger.Fault):
        newer = "a newer fl" in found.message
        raise EvidenceError(
            f"{path} {found.message}; nothing was added", "upgrade fl" if newer else "a record is never edited: run it again"
        )
    return found
