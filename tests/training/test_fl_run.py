"""`fl run` on the host engine, as a user would: real processes, real training, and every way it can be told to stop."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import ROOT

pytestmark = pytest.mark.training
Fl = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(autouse=True)
def no_engine(monkeypatch: pytest.MonkeyPatch, train_python: Path) -> None:
    monkeypatch.delenv("DOCKER_HOST", raising=False)


def runs() -> Path:
    return Path(os.environ["XDG_STATE_HOME"]) / "fl" / "runs"


def only_run() -> Path:
    (folder,) = runs().iterdir()
    return folder


def state() -> dict[str, Any]:
    document: dict[str, Any] = json.loads((only_run() / "state.json").read_text())
    return document


def start(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    values = {**os.environ, "PYTHONPATH": f"{ROOT / 'launcher'}:{ROOT / 'trainers'}", **environment}
    return subprocess.Popen(
        [sys.executable, "-m", "fl", "run", "--engine", "host", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=values,
    )


def wait_for_step(process: subprocess.Popen[str], seconds: float = 400) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        for folder in runs().iterdir() if runs().is_dir() else ():
            if '"step"' in (folder / "events.jsonl").read_text() if (folder / "events.jsonl").is_file() else "":
                return
        time.sleep(0.1)
    raise AssertionError(f"no training step: {process.communicate()}")


def trainers() -> list[str]:
    """Processes of the trainer that belong to this test's runs."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                text = (entry / "cmdline").read_text()
            except OSError:
                continue
            if str(runs()) in text:
                found.append(text)
    return found


def test_a_run_leaves_model_evidence_and_a_truthful_state(fl: Fl, tmp_path: Path) -> None:
    done = fl("run", "--engine", "host", "tiny-sft", f"output_dir={tmp_path}/out", timeout=600)
    assert done.returncode == 0, done.stderr
    assert "loss" in done.stdout
    assert "cpu-torch213" in done.stdout
    for name in (
        "model.safetensors",
        "trainer_state.json",
        "trainer_log.jsonl",
        "train_results.json",
        "all_results.json",
        "training_loss.png",
        "README.md",
    ):
        assert (tmp_path / "out" / name).is_file(), name
    folder = only_run()
    for name in ("recipe.yaml", "plan.json", "config.json", "hardware.json", "events.jsonl", "log.txt", "state.json", "evidence.json"):
        assert (folder / name).is_file(), name
    evidence = json.loads((folder / "evidence.json").read_text())
    losses = evidence["metrics"]["loss"]
    assert evidence["outcome"] == "passed"
    assert evidence["environment"]["matches_lock"] is True
    assert losses[-1] < losses[0] * 0.7
    assert state()["state"] == "finished"
    assert json.loads((folder / "plan.json").read_text())["argv"][1:3] == ["-m", "fl_trainers"]
    assert trainers() == []


def test_an_output_folder_that_cannot_be_made_is_told(fl: Fl) -> None:
    done = fl("run", "--engine", "host", "tiny-sft", "output_dir=/proc/none/out", timeout=300)
    assert done.returncode == 5, done.stderr
    assert "/proc" in done.stderr and "output_dir: a folder of yours" in done.stderr and "Traceback" not in done.stderr


def test_the_same_recipe_and_seed_give_the_same_losses(fl: Fl, tmp_path: Path) -> None:
    losses = []
    for number in range(2):
        done = fl(
            "run",
            "--engine",
            "host",
            "--json",
            "tiny-sft",
            "max_steps=6",
            f"output_dir={tmp_path}/{number}",
            timeout=600,
            env={"OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr
        losses.append(json.loads(done.stdout)["metrics"]["loss"])
    assert losses[0] == losses[1]
    assert len(losses[0]) == 6


def test_one_interrupt_saves_and_ends_with_130(tmp_path: Path) -> None:
    process = start("tiny-sft", "max_steps=100000", f"output_dir={tmp_path}/out")
    wait_for_step(process)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=600)
    assert process.returncode == 130, said
    assert list((tmp_path / "out").glob("checkpoint-*"))
    assert state()["state"] == "stopped"
    assert json.loads((only_run() / "evidence.json").read_text())["outcome"] == "failed"
    assert trainers() == []


def test_a_stopped_run_is_resumed_by_the_same_command(fl: Fl, tmp_path: Path) -> None:
    process = start("tiny-sft", "max_steps=100000", "overwrite_output_dir=false", f"output_dir={tmp_path}/out")
    wait_for_step(process)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=600)
    assert process.returncode == 143, said
    (checkpoint,) = (tmp_path / "out").glob("checkpoint-*")
    reached = int(checkpoint.name.split("-")[1])
    done = fl(
        "run",
        "--engine",
        "host",
        "tiny-sft",
        f"max_steps={reached + 3}",
        "overwrite_output_dir=false",
        f"output_dir={tmp_path}/out",
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    newest = max(runs().iterdir(), key=lambda folder: folder.stat().st_mtime)
    steps = [e["step"] for e in map(json.loads, (newest / "events.jsonl").read_text().splitlines()) if e["event"] == "step"]
    assert steps[0] == reached + 1


def test_two_interrupts_end_at_once(tmp_path: Path) -> None:
    process = start("tiny-sft", "max_steps=100000", f"output_dir={tmp_path}/out")
    wait_for_step(process)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=300)
    assert process.returncode == 130
    assert trainers() == []


def test_a_killed_launcher_leaves_a_run_that_ps_tells_and_stop_ends(fl: Fl, tmp_path: Path) -> None:
    process = start("tiny-sft", "max_steps=100000", f"output_dir={tmp_path}/out")
    wait_for_step(process)
    process.kill()
    process.communicate(timeout=300)
    name = only_run().name
    listed = json.loads(fl("ps", "--json").stdout)
    assert [(r["run"], r["state"]) for r in listed["runs"]] == [(name, "running")]
    assert trainers()
    stopped = fl("stop", name, timeout=600)
    assert stopped.returncode == 0, stopped.stderr
    assert trainers() == []
    assert name in fl("ps", "-a").stdout
    evidence = json.loads((only_run() / "evidence.json").read_text())
    assert (evidence["outcome"], evidence["failure"]["type"]) == ("failed", "Orphaned")
    assert evidence["metrics"]["loss"]


def test_a_loss_that_is_not_a_number_names_the_step(fl: Fl, tmp_path: Path) -> None:
    done = fl(
        "run",
        "--engine",
        "host",
        "tiny-sft",
        "learning_rate=1e30",
        "warmup_ratio=0",
        "max_grad_norm=0",
        f"output_dir={tmp_path}/out",
        timeout=600,
    )
    assert done.returncode == 10, done.stderr
    assert "step" in done.stderr
    assert json.loads((only_run() / "evidence.json").read_text())["failure"]["type"] == "TrainingError"
    assert state()["state"] == "failed"


@pytest.mark.parametrize(
    ("rows", "said"),
    [('[{"question": "a", "answer": "b"}]', "instruction"), ("[]", "empty"), ("{not json", "data.json")],
)
def test_data_that_cannot_be_used_is_exit_5(fl: Fl, tmp_path: Path, rows: str, said: str) -> None:
    (tmp_path / "data.json").write_text(rows)
    (tmp_path / "dataset_info.json").write_text('{"mine": {"file_name": "data.json"}}')
    (tmp_path / "recipe.yaml").write_text(
        f"model_name_or_path: builtin/tiny-qwen3\nstage: sft\ndo_train: true\nfinetuning_type: full\ndataset: mine\n"
        f"dataset_dir: {tmp_path}\noutput_dir: {tmp_path}/out\nmax_steps: 2\n"
    )
    done = fl("run", "--engine", "host", str(tmp_path / "recipe.yaml"), timeout=600)
    assert done.returncode == 5, done.stderr
    assert said in done.stderr


def test_a_detached_run_goes_on_and_can_be_followed(fl: Fl, tmp_path: Path) -> None:
    done = fl("run", "--engine", "host", "--detach", "tiny-sft", f"output_dir={tmp_path}/out", timeout=300)
    assert done.returncode == 0, done.stderr
    name = only_run().name
    assert name in done.stdout
    followed = fl("logs", "-f", name, timeout=600)
    assert "step 20/20" in followed.stdout
    end = time.monotonic() + 300
    while time.monotonic() < end and state()["state"] != "finished":
        time.sleep(0.2)
    assert state()["state"] == "finished"
    assert (only_run() / "evidence.json").is_file()
