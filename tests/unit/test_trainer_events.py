"""Events, checkpoints and the stop flag, without torch."""

from __future__ import annotations

import json
import os
import signal
import zipfile
from pathlib import Path
from typing import Any

import pytest

from fl_trainers import checkpoints
from fl_trainers.config import Config, Data, Method, Model, Run, Training
from fl_trainers.errors import InputError, Stopped
from fl_trainers.progress import Events
from fl_trainers.stop import Stop


def config(folder: Path, **training: Any) -> Config:
    return Config(
        run=Run(name="r", lane="cpu", stack="s", events=str(folder / "events.jsonl")),
        model=Model(name="m", path="m", kind="folder"),
        data=Data(),
        method=Method(),
        training=Training(output_dir=str(folder / "out"), **training),
    )


def checkpoint(folder: Path, step: int) -> Path:
    made = folder / "out" / f"checkpoint-{step}"
    made.mkdir(parents=True)
    (made / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    (made / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 8)
    with zipfile.ZipFile(made / "optimizer.pt", "w") as archive:
        archive.writestr("data", "x" * 100)
    return made


def test_events_are_json_lines_without_nan(tmp_path: Path) -> None:
    events = Events(tmp_path / "run" / "events.jsonl")
    events.emit("step", loss=float("nan"), nested={"more": [float("inf"), 1.5]})
    events.warn("rows", "two rows", count=2)
    first, second = [json.loads(line, parse_constant=pytest.fail) for line in events.path.read_text().splitlines()]
    assert first["event"] == "step" and first["loss"] == "nan" and first["nested"] == {"more": ["inf", 1.5]} and first["time"] > 1e9
    assert second["event"] == "warning" and second["count"] == 2


def test_only_rank_0_writes_but_any_rank_tells_its_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    events = Events(tmp_path / "events.jsonl")
    events.emit("step", step=1)
    events.error("InputError", "no such file", 5)
    (line,) = events.path.read_text().splitlines()
    assert json.loads(line)["rank"] == 1


def test_the_last_whole_checkpoint_is_found(tmp_path: Path) -> None:
    events = Events(tmp_path / "events.jsonl")
    assert checkpoints.resume_from(config(tmp_path), events) is None
    good, bad = checkpoint(tmp_path, 90), checkpoint(tmp_path, 100)
    assert checkpoints.resume_from(config(tmp_path), events) == str(bad)
    (bad / "trainer_state.json").unlink()
    assert checkpoints.resume_from(config(tmp_path), events) == str(good)
    assert "checkpoint-100 is incomplete" in events.path.read_text()
    assert checkpoints.resume_from(config(tmp_path, overwrite_output_dir=True), events) is None


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "trainer_state.json"])
def test_what_is_cut_off_is_seen(tmp_path: Path, name: str) -> None:
    made = checkpoint(tmp_path, 1)
    assert checkpoints.fault(made) is None
    file = made / name
    file.write_bytes(file.read_bytes()[:-4])
    assert name in str(checkpoints.fault(made))


def test_a_named_checkpoint_must_be_whole(tmp_path: Path) -> None:
    checkpoint(tmp_path, 7)
    wanted = str(tmp_path / "out" / "checkpoint-8")
    with pytest.raises(InputError) as caught:
        checkpoints.resume_from(config(tmp_path, resume_from_checkpoint=wanted), Events(tmp_path / "e"))
    assert "checkpoint-7" in caught.value.remedy
    with pytest.raises(InputError, match="holds no usable checkpoint"):
        checkpoints.resume_from(config(tmp_path / "new", resume_from_checkpoint=True), Events(tmp_path / "e"))


def test_overwriting_takes_old_checkpoints_away(tmp_path: Path) -> None:
    made = checkpoint(tmp_path, 7)
    checkpoints.prepare_output(config(tmp_path))
    assert made.exists()
    checkpoints.prepare_output(config(tmp_path, overwrite_output_dir=True))
    assert made.exists()  # data and model may yet turn out to be of no use
    checkpoints.clear(config(tmp_path, overwrite_output_dir=True))
    assert not made.exists()


def test_a_signal_ends_what_cannot_be_gone_on_from_and_is_kept_for_the_step_border_else() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    try:
        early = Stop()
        early.install()
        with pytest.raises(Stopped):
            os.kill(os.getpid(), signal.SIGTERM)
        late = Stop()
        late.deferred = True
        late.install()
        os.kill(os.getpid(), signal.SIGTERM)
        assert late.agreed()
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL  # the second one ends the process
    finally:
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGINT, before[1])
