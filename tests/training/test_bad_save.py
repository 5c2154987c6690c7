"""Files that cannot be written, and checkpoints that were broken since: what there is stays usable, and what is wrong has a name."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from test_ranks import WAYS
from trainer_harness import Done, Trainer, environment

pytestmark = pytest.mark.training
Config = Callable[..., Path]


def limited(python: Path, path: Path, kilobytes: int) -> Done:
    """The trainer in a process whose files cannot grow beyond so much: as on a disk that is full then."""
    command = ["bash", "-c", f'ulimit -f {kilobytes}; exec "$0" "$@"', str(python), "-m", "fl_trainers", str(path)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=400, check=False)
    return Done(done.returncode, done.stdout + done.stderr, path.parent)


@pytest.mark.parametrize(("kilobytes", "file"), [(300, "weights"), (600, "optimizer")])
def test_a_checkpoint_that_cannot_be_written_ends_the_run_and_leaves_nothing_of_itself(
    train_python: Path, trainer: Trainer, config: Config, kilobytes: int, file: str
) -> None:
    """Weights of 445 kB, an optimizer of 745 kB."""
    path = config(file, method={"finetuning_type": "full"}, arguments={"save_strategy": "steps", "save_steps": 4})
    done = limited(train_python, path, kilobytes)
    assert done.code == 5, done.output
    (error,) = done.of("error")
    assert "out: " in error["message"] and "MiB are free in output_dir" in error["message"] and "save_total_limit" in error["remedy"]
    assert "Traceback" not in done.output and not list((path.parent / "out").glob("checkpoint-*"))
    (path.parent / "events.jsonl").unlink()
    again = trainer.train(path)
    assert again.code == 0 and again.of("step")[0]["step"] == 1, again.output


FAULTS: dict[str, tuple[str, str | None, str]] = {
    # file, its new content (None: it is gone; a number: cut to so many bytes), what is said
    "random numbers cut": ("rng_state.pth", "100", "checkpoint-8 is incomplete (rng_state.pth is cut off)"),
    "state of nothing": ("trainer_state.json", "{}", "checkpoint-8 is incomplete (trainer_state.json is broken)"),
    "state of another form": ("trainer_state.json", "[]", "checkpoint-8 is incomplete (trainer_state.json is broken)"),
    "settings cut": ("adapter_config.json", "{", "checkpoint-8 is incomplete (adapter_config.json is broken)"),
    "no weights": ("adapter_model.safetensors", None, "checkpoint-8 is incomplete (it holds no weights)"),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the output folder is kept that the first test makes."""
    return tmp_path_factory.mktemp("made") / "out"


@pytest.fixture
def finished(trainer: Trainer, config: Config, made: Path) -> Callable[..., Path]:
    """A config of 12 steps, with the checkpoints 4 and 8 of a run in its output folder."""
    saving = {"save_strategy": "steps", "save_steps": 4}

    def make(**arguments: object) -> Path:
        if not made.is_dir():
            first = trainer.train(config("first", arguments={**saving, "max_steps": 12}))
            assert first.code == 0, first.output
            shutil.copytree(first.folder / "out", made)
            shutil.rmtree(made / "checkpoint-12")
        path = config(arguments={**saving, "max_steps": 12, **arguments})
        shutil.copytree(made, path.parent / "out")
        return path

    return make


@pytest.mark.parametrize("name", FAULTS)
def test_a_broken_checkpoint_is_passed_over_and_named(trainer: Trainer, finished: Callable[..., Path], name: str) -> None:
    file, content, words = FAULTS[name]
    path = finished()
    broken = path.parent / "out" / "checkpoint-8" / file
    if content is None:
        broken.unlink()
    elif content.isdigit():
        broken.write_bytes(broken.read_bytes()[: int(content)])
    else:
        broken.write_text(content)
    done = trainer.train(path)
    assert done.code == 0, done.output
    assert words in done.of("warning")[0]["message"]
    assert done.of("resume")[0]["path"].endswith("checkpoint-4")


def test_one_whose_content_is_broken_is_named(trainer: Trainer, finished: Callable[..., Path]) -> None:
    path = finished()
    broken = path.parent / "out" / "checkpoint-8" / "optimizer.pt"
    content = bytearray(broken.read_bytes())
    content[300:5300] = bytes(5000)
    broken.write_bytes(content)
    kept = {file: file.read_bytes() for file in (path.parent / "out").rglob("*") if file.is_file()}
    done = trainer.train(path)
    assert done.code == 5 and "Traceback" not in done.output, done.output
    error = done.of("error")[0]
    assert "checkpoint-8: the state of its optimizer or schedule cannot be read: its content is broken" in error["message"]
    assert "remove this one" in error["remedy"]
    assert kept == {file: file.read_bytes() for file in (path.parent / "out").rglob("*") if file.is_file()}


def test_of_weights_alone_a_run_goes_on_with_the_learning_rate_of_that_step(trainer: Trainer, finished: Callable[..., Path]) -> None:
    """`save_only_model: true` stands in most of LLaMA-Factory's examples. transformers begins the schedule anew, unsaid."""
    path = finished(warmup_steps=6)
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        (path.parent / "out" / "checkpoint-8" / name).unlink()
    done = trainer.train(path)
    assert done.code == 0, done.output
    assert "checkpoint-8 holds weights only" in done.of("warning")[0]["message"]
    assert [step["learning_rate"] for step in done.of("step")] == pytest.approx([0.02 * left / 6 for left in (4, 3, 2, 1)])


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ([], "holds weights only"),
        (["optimizer.pt"], "was written without DeepSpeed"),
        (["global_step8/zero_pp_rank_0_mp_rank_00_optim_states.pt", "global_step8/zero_pp_rank_1_mp_rank_00_optim_states.pt"],
         "was written by 2 processes, and ZeRO cannot go on from it with 1"),
    ],
)  # fmt: skip
def test_from_what_deepspeed_cannot_go_on(trainer: Trainer, finished: Callable[..., Path], files: list[str], words: str) -> None:
    path = finished(deepspeed={"zero_optimization": {"stage": 2}})
    folder = path.parent / "out" / "checkpoint-8"
    whole = (folder / "optimizer.pt").read_bytes()
    (folder / "optimizer.pt").unlink()
    for file in files:
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_bytes(whole)
    done = trainer.train(path)
    assert done.code == 5, done.output
    error = done.of("error")[0]
    assert words in error["message"] and "adapter_name_or_path: " in error["remedy"] and "Traceback" not in done.output
    assert json.loads((path.parent / "record.json").read_text())["outcome"] == "failed"


def test_without_deepspeed_its_state_is_not_taken_for_an_optimizer(trainer: Trainer, finished: Callable[..., Path]) -> None:
    path = finished()
    folder = path.parent / "out" / "checkpoint-8"
    (folder / "global_step8").mkdir()
    (folder / "optimizer.pt").rename(folder / "global_step8" / "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    done = trainer.train(path)
    assert done.code == 0, done.output
    assert "checkpoint-8 has its optimizer in DeepSpeed's form: the learning rate goes on" in done.of("warning")[0]["message"]
    assert done.of("step")[0]["learning_rate"] == pytest.approx(0.02 * 4 / 12)


@pytest.mark.parametrize(
    ("stage", "kind", "arguments"),
    [
        ("sft", "full", {"max_steps": 1}),  # the last step: no later loss would tell
        ("sft", "lora", {"max_steps": 4, "save_strategy": "steps", "save_steps": 1}),
        ("sft", "full", {"max_steps": 20, "save_strategy": "epoch", "per_device_train_batch_size": 36}),
        ("pt", "full", {"max_steps": 1}),
    ],
)
def test_weights_that_are_no_numbers_are_never_saved(
    trainer: Trainer, config: Config, stage: str, kind: str, arguments: dict[str, object]
) -> None:
    """The loss of that step was finite still. A checkpoint of it would be gone on from by the same command, for ever."""
    given = {"learning_rate": 1e39, "max_grad_norm": 0.0, "lr_scheduler_type": "constant", **arguments}
    dataset = {"columns": {"prompt": "output"}} if stage == "pt" else {}
    done = trainer.train(config(method={"stage": stage, "finetuning_type": kind}, arguments=given, dataset=dataset))
    assert done.code == 10, done.output
    (error,) = done.of("error")
    assert error["message"].startswith("the update of step 1 left ") and "finite value" in error["message"]
    left = [path.name for path in (done.folder / "out").rglob("*") if "base-model" not in str(path)]
    assert not any(name.startswith("checkpoint") or name.endswith(".safetensors") for name in left), left


@pytest.mark.parametrize("way", ["ZeRO-3", "FSDP2"])
def test_nor_where_they_are_spread(trainer_of_shards: Trainer, config: Config, way: str) -> None:
    given = {"learning_rate": 1e39, "max_grad_norm": 0.0, "lr_scheduler_type": "constant", "max_steps": 3, "save_strategy": "steps",
             "save_steps": 1, "per_device_train_batch_size": 2, **WAYS[way]}  # fmt: skip
    done = trainer_of_shards.train(config(method={"finetuning_type": "full"}, arguments=given), 2)
    assert done.code == 10, done.output
    assert "the update of step 1 left " in done.of("error")[0]["message"]
    assert not list((done.folder / "out").glob("checkpoint-*"))
