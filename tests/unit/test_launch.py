"""launch.py: what the end of a trainer means; signals as values."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fl import launch, ledger, paths
from fl.engines import Ended
from fl.errors import FlError, Interrupted, RecipeError, Terminated, TrainingError


def decision(folder: Path) -> Any:
    return SimpleNamespace(
        folder=folder,
        plan=SimpleNamespace(run="r-1"),
        config=SimpleNamespace(training=SimpleNamespace(output_dir="/saves/x", overwrite_output_dir=False)),
    )


@pytest.mark.parametrize(
    ("ended", "kind", "said"),
    [
        (Ended(0), None, ""),
        (Ended(5), RecipeError, "exit code 5"),
        (Ended(10), TrainingError, "exit code 10"),
        (Ended(1), TrainingError, "exit code 1"),
        (Ended(143), Terminated, "SIGTERM"),
        (Ended(137, oom=True), TrainingError, "out of memory"),
        (Ended(-11, reason="killed by SIGSEGV"), TrainingError, "SIGSEGV"),
    ],
)
def test_every_end_of_the_trainer_has_a_class(tmp_path: Path, ended: Ended, kind: type[FlError] | None, said: str) -> None:
    error = launch.judge(decision(tmp_path), ended, launch.Signals())
    assert type(error) is (type(None) if kind is None else kind)
    assert said in (error.message if error else "")


def test_the_trainers_own_words_come_first(tmp_path: Path) -> None:
    event = {"event": "error", "type": "NonFinite", "message": "the loss is NaN at step 7", "exit": 10, "remedy": "a lower learning_rate"}
    (tmp_path / "events.jsonl").write_text(json.dumps(event) + "\n")
    (tmp_path / "log.txt").write_text("noise\n")
    error = launch.judge(decision(tmp_path), Ended(10), launch.Signals())
    assert error is not None
    assert "step 7" in error.message
    assert "noise" not in error.message
    assert error.remedy.splitlines()[0] == "a lower learning_rate" and "learning_rate" not in error.message


def test_without_them_the_end_of_the_log_is_shown(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text("first\nSegmentation fault\n")
    error = launch.judge(decision(tmp_path), Ended(139), launch.Signals())
    assert error is not None
    assert "Segmentation fault" in error.message


@pytest.mark.parametrize(
    ("signals", "kind", "code"), [(launch.Signals(interrupts=1), Interrupted, 130), (launch.Signals(terminated=True), Terminated, 143)]
)
def test_a_stop_is_a_stop_whatever_the_trainer_says(tmp_path: Path, signals: launch.Signals, kind: type[FlError], code: int) -> None:
    error = launch.judge(decision(tmp_path), Ended(143), signals)
    assert isinstance(error, kind)
    assert error.exit_code == code
    assert "/saves/x" in error.message


def test_what_torchrun_hides_is_told_by_the_trainer(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_text(json.dumps({"event": "end", "outcome": "stopped", "exit": 143}) + "\n")
    assert isinstance(launch.judge(decision(tmp_path), Ended(1), launch.Signals()), Terminated)
    (tmp_path / "events.jsonl").write_text(json.dumps({"event": "error", "message": "no rows", "exit": 5}) + "\n")
    error = launch.judge(decision(tmp_path), Ended(1), launch.Signals())
    assert isinstance(error, RecipeError)
    assert "no rows" in error.message


def test_a_run_that_finished_before_the_signal_has_passed(tmp_path: Path) -> None:
    assert launch.judge(decision(tmp_path), Ended(0), launch.Signals(interrupts=1)) is None


def test_signals_become_values_and_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with launch.caught() as seen:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
    assert seen.interrupts == 1
    assert seen.terminated
    try:  # interrupted: what is left to do is not to be interrupted again
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    with launch.caught():
        pass
    assert signal.getsignal(signal.SIGINT) is before


def test_what_a_stack_does_not_allow_is_evidence(fl: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    run = ("run", "--engine", "host", "--strict", "tiny-sft", "fp16=true", f"output_dir={tmp_path / 'out'}")
    assert fl(*run, "--dry-run").returncode == 5 and not paths.runs_home().exists()
    assert fl(*run).returncode == 5 and not (tmp_path / "out").exists()
    (folder,) = paths.runs_home().iterdir()
    record = ledger.open_record(folder / "evidence.json")
    assert isinstance(record, dict) and record["outcome"] == "refused" and "fp16" in record["failure"]["message"]
    assert (record["stack"], record["model"]["name"], record["method"]["stage"]) == ("cpu-torch213", "builtin/tiny-qwen3", "sft")
    assert record["environment"]["matches_lock"] is True and record["row_sha256"]
    assert fl("run", "--engine", "host", "tiny-sft", "learning_rat=1").returncode == 5  # a recipe with a slip says nothing of a stack
    assert len(list(paths.runs_home().iterdir())) == 1
    assert "failed" in fl("ps", "--all").stdout
