"""Several processes of one run: how many there are on a processor, and which of them the run failed of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hosts import recorded
from test_launch import decision
from tests.conftest import HOSTS

from fl import launch
from fl.decide import Options, decide
from fl.devices import choose_devices, processes
from fl.engines import Ended, ranks
from fl.errors import HardwareError, Interrupted, RecipeError, TrainingError
from fl.resume import _options
from fl_trainers import ranks as trainer_ranks

REPORT = """\
fl_trainers FAILED
------------------------------------------------------------
Failures:
[1]:
  time      : 2026-11-29_12:25:38
  host      : localhost
  rank      : 1 (local_rank: 1)
  exitcode  : {second} (pid: 5518)
  error_file: <N/A>
------------------------------------------------------------
Root Cause (first observed failure):
[0]:
  time      : 2026-11-29_12:25:38
  host      : localhost
  rank      : 0 (local_rank: 0)
  exitcode  : {first} (pid: 5517)
============================================================
"""
LOST = {"event": "error", "type": "LostProcess", "message": "process 1 of 2 lost another one", "remedy": "", "exit": 10}


def written(folder: Path, *events: dict[str, Any], report: str = "") -> Path:
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    (folder / "log.txt").write_text(report)
    return folder


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        ("10", "-9", "process 2 of the run was killed by SIGKILL"),
        ("-11", "-15", "process 1 of the run was killed by SIGSEGV"),
        ("10", "7", "process 2 of the run ended with exit code 7, without a word"),
        ("5", "10", None),
        ("143", "-15", None),
    ],
)
def test_torchruns_report_tells_who_was_killed(first: str, second: str, said: str | None) -> None:
    found = ranks.silent(REPORT.format(first=first, second=second))
    assert (None if found is None else str(found)) == said


def test_a_process_that_was_killed_is_named_and_not_the_one_that_lost_it(tmp_path: Path) -> None:
    written(tmp_path, LOST, {"event": "end", "outcome": "failed", "exit": 10}, report=REPORT.format(first=10, second=-9))
    error = launch.judge(decision(tmp_path), Ended(1), launch.Signals())
    assert isinstance(error, TrainingError) and error.message == "process 2 of the run was killed by SIGKILL"
    killed = launch.judge(decision(tmp_path), Ended(1, oom=True), launch.Signals())
    assert isinstance(killed, TrainingError) and "out of memory" in killed.message


def test_what_a_process_says_of_itself_comes_before_what_others_say_of_losing_it(tmp_path: Path) -> None:
    own = {"event": "error", "type": "InputError", "message": "row 7 is bad", "remedy": "mend it", "exit": 5, "rank": 1}
    end = {"event": "end", "outcome": "failed", "exit": 5}
    error = launch.judge(decision(written(tmp_path, LOST, own, end, report=REPORT.format(first=10, second=5))), Ended(1), launch.Signals())
    assert isinstance(error, RecipeError) and error.message == "row 7 is bad" and error.remedy.startswith("mend it")


def test_a_stop_without_a_checkpoint_says_so(tmp_path: Path) -> None:
    full = {"event": "error", "type": "Output", "message": "out/checkpoint-7: No space left on device", "exit": 5}
    error = launch.judge(decision(written(tmp_path, full)), Ended(5), launch.Signals(interrupts=1))
    assert isinstance(error, Interrupted) and "no checkpoint was saved: out/checkpoint-7: No space left" in error.message
    early = launch.judge(decision(written(tmp_path)), Ended(143), launch.Signals(interrupts=1))
    assert early is not None and "there is no checkpoint in /saves/x yet" in early.message


def test_the_first_error_of_another_process_is_the_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    own = {"event": "error", "type": "InputError", "message": "mine", "exit": 5}
    third = {"event": "error", "type": "TrainingError", "message": "the loss is NaN at step 4", "exit": 10, "rank": 2}
    path = written(tmp_path, {"event": "step"}, {**LOST, "rank": 1}, own, third) / "events.jsonl"
    found = trainer_ranks.cause(path)
    assert found is not None and found["message"] == "the loss is NaN at step 4"
    assert trainer_ranks.cause(written(tmp_path, own, LOST) / "events.jsonl") is None
    assert trainer_ranks.cause(tmp_path / "none") is None


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RuntimeError("[…/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:2"), True),
        (RuntimeError("NCCL error: remote process exited or there was a network error"), True),
        (RuntimeError("failed to recv, got 0 bytes: TCPStore connection was likely closed"), True),
        (RuntimeError("Connection reset by peer"), False),  # of the hub, say
        (ValueError("gloo has no such dtype"), False),
    ],
)
def test_a_lost_process_is_known_by_what_collectives_say(error: Exception, lost: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert trainer_ranks.lost(error) is lost
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert not trainer_ranks.lost(error)


def test_a_processor_trains_with_as_many_processes_as_are_asked_for() -> None:
    machine = recorded("cpu-only")
    assert choose_devices(machine, "cpu", "count:2") == ((), ())
    assert [processes(machine, (), spec) for spec in (None, "count:1", "count:2")] == [1, 1, 2]
    for spec, said in (("0", "no devices to choose from"), ("count:0", "cores"), ("count:9999", "cores")):
        with pytest.raises(HardwareError) as caught:
            choose_devices(machine, "cpu", spec)
        assert said in caught.value.message and "count:" in caught.value.remedy


def test_their_plan_is_torchruns_and_a_resumed_run_has_as_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = Options(engine="host", hw="cpu", devices="count:2", dry_run=True, replay=HOSTS / "cpu-only")
    plan = decide("tiny-sft", [], options).plan
    assert plan.per_node == 2 and plan.argv[1:7] == ("-m", "torch.distributed.run", "--nnodes", "1", "--nproc-per-node", "2")
    assert plan.environment["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] == "120"
    assert _options(plan.to_json(), trust=False, pinned=False).devices == "count:2"
    single = decide("tiny-sft", [], Options(engine="host", hw="cpu", dry_run=True, replay=HOSTS / "cpu-only")).plan
    assert single.per_node == 1 and _options(single.to_json(), trust=False, pinned=False).devices is None
