"""Several data sets, and rows held back: the rows, in their order, that `datasets` gives (and so LLaMA-Factory)."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from trainer_harness import Trainer

pytestmark = pytest.mark.training
Fl = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.mark.parametrize("sizes", [[3, 5], [5, 3], [4, 2, 9], [6, 6]])
@pytest.mark.parametrize("shares", [(), (0.7, 0.2, 0.1)])
def test_mixing_is_that_of_datasets(trainer: Trainer, sizes: list[int], shares: tuple[float, ...]) -> None:
    probabilities = [share / sum(shares[: len(sizes)]) for share in shares[: len(sizes)]]
    for seed in (42, 7):
        found = trainer.check("data_checks.mixed", sizes, probabilities, seed)
        assert {key: pair for key, pair in found.items() if pair[0] != pair[1]} == {}
        assert len(found) == 6 and all(pair[0] for pair in found.values())


@pytest.mark.parametrize(("size", "val_size", "held"), [(10, 0.2, 2), (12, 0.2, 3), (12, 3, 3), (10, 0.001, 1), (36, 0.1, 4)])
def test_rows_held_back_are_those_of_datasets(trainer: Trainer, size: int, val_size: float, held: int) -> None:
    ours, theirs = trainer.check("data_checks.halves", size, val_size, 42)
    assert ours == theirs and len(ours[1]) == held and sorted(ours[0] + ours[1]) == list(range(size))


@pytest.mark.parametrize(("size", "val_size", "message"), [(10, 10, "10 rows are to be held back, and there are 10"), (10, 0.99, "")])
def test_something_is_left_to_train_on(trainer: Trainer, size: int, val_size: float, message: str) -> None:
    assert message in trainer.check("data_checks.refusal", size, val_size)


def test_what_mixing_leaves_out_or_repeats_is_told(fl: Fl, tmp_path: Path, train_python: Path) -> None:
    info: dict[str, dict[str, object]] = {}
    for name, count in (("a", 5), ("b", 2)):
        rows = [{"instruction": f"{name}{number}?", "output": f"{number}."} for number in range(count)]
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
        info[name] = {"file_name": f"{name}.json"}
    info["some"] = {**info["a"], "num_samples": 3}
    (tmp_path / "dataset_info.json").write_text(json.dumps(info))
    recipe = {"model_name_or_path": "builtin/tiny-llama", "stage": "sft", "do_train": True, "dataset": "a,b", "dataset_dir": str(tmp_path),
              "output_dir": str(tmp_path / "out")}  # fmt: skip
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))

    def asked(*more: str) -> str:
        done = fl("recipe", "data", "--hw", "cpu", "--rows", "0", str(tmp_path / "recipe.json"), *more, timeout=600)
        assert done.returncode == 0, done.stderr
        return " ".join(done.stdout.split())

    under = asked("mix_strategy=interleave_under")
    assert "7 rows read, 4 used, 3 dropped" in under
    assert "dropped: 3 × left out by interleave_under, which ends with its shortest set (a row 3, a row 4, a row 5)" in under
    assert "7 rows read, 10 used, 0 dropped; 10 sequences; 3 times a row comes again" in asked("mix_strategy=interleave_over")
    assert "7 rows read, 5 used, 0 dropped; 5 sequences; 2 rows for evaluation" in asked("val_size=0.2")
    assert "3 rows read, 3 used" in asked("dataset=some")
    streamed = asked("dataset=some", "streaming=true", "max_steps=2")
    assert "5 rows read, 5 used" in streamed and "num_samples (3) is not drawn from a stream" in streamed


def test_a_folder_that_datasets_saved_and_a_readme_beside_rows(fl: Fl, trainer: Trainer, tmp_path: Path) -> None:
    """Typed rows: what one tool has and another has not is null in the file, and in no text."""
    tools = [{"name": "add", "parameters": {"a": "number"}}, {"name": "say", "parameters": {"b": "text"}}]
    trainer.check("data_checks.save_to_disk", str(tmp_path / "saved"), [{"instruction": "a", "output": "b", "tools": tools}])
    assert (tmp_path / "saved" / "state.json").is_file()
    (tmp_path / "saved" / "README.md").write_text("# Rows")
    columns = {"prompt": "instruction", "response": "output", "tools": "tools"}
    (tmp_path / "dataset_info.json").write_text(json.dumps({"mine": {"file_name": "saved", "columns": columns}}))
    recipe = {"model_name_or_path": "builtin/tiny-llama", "stage": "sft", "do_train": True, "dataset": "mine", "dataset_dir": str(tmp_path),
              "template": "qwen", "output_dir": str(tmp_path / "out"), "max_steps": 1}  # fmt: skip
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    for more in ([], ["streaming=true"]):
        done = fl("recipe", "data", "--hw", "cpu", "--json", str(tmp_path / "recipe.json"), *more, timeout=600)
        assert done.returncode == 0, done.stderr
        text = json.loads(done.stdout)["rows"][0]["parts"][0]["spans"][0]["text"]
        assert '"name": "add", "parameters": {"a": "number"}' in text and '"name": "say", "parameters": {"b": "text"}' in text
