"""`fl recipe data`: rows as the model will see them, through the public command."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.training
Fl = Callable[..., "subprocess.CompletedProcess[str]"]
SUMS = [{"instruction": f"What is {a} plus {b}?", "output": f"It is {a + b}."} for a in range(1, 5) for b in range(1, 5)]


@pytest.fixture
def recipe(tmp_path: Path, train_python: Path) -> Callable[..., str]:
    """A recipe over given rows; keys given as keywords are added."""

    def make(rows: list[dict[str, Any]], entry: dict[str, Any] | None = None, **keys: Any) -> str:
        (tmp_path / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
        (tmp_path / "dataset_info.json").write_text(json.dumps({"mine": {"file_name": "rows.json", **(entry or {})}}))
        made = {"model_name_or_path": "builtin/tiny-llama", "stage": "sft", "do_train": True, "finetuning_type": "full",
                "dataset": "mine", "dataset_dir": str(tmp_path), "output_dir": str(tmp_path / "out"), "cutoff_len": 64,
                "template": "chatml", **keys}  # fmt: skip
        (tmp_path / "recipe.json").write_text(json.dumps(made))
        return str(tmp_path / "recipe.json")

    return make


def asked(fl: Fl, *arguments: str) -> dict[str, Any]:
    done = fl("recipe", "data", "--hw", "cpu", "--json", *arguments, timeout=600)
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def test_rows_are_shown_with_what_is_trained_and_every_cause_is_counted(fl: Fl, recipe: Callable[..., str], tmp_path: Path) -> None:
    rows = [*SUMS, {"instruction": "Nothing?", "output": " "}, {"instruction": "Count.", "output": " ".join(map(str, range(99)))}]
    path = recipe(rows)
    found = asked(fl, "--rows", "2", path)
    first, second = (row["parts"][0] for row in found["rows"])
    assert [span["text"] for span in first["spans"]] == [
        "<|im_start|>user\nWhat is 1 plus 1?<|im_end|>\n<|im_start|>assistant\n", "It is 2.<|im_end|>\n",
    ]  # fmt: skip
    assert [span["trained"] for span in second["spans"]] == [False, True]
    assert found["rows"][1]["where"] == "mine row 2"
    trained = [token for token, label in zip(first["input_ids"], first["labels"], strict=True) if label != -100]
    assert trained == [label for label in first["labels"] if label != -100] and len(trained) == first["spans"][1]["tokens"]
    assert found["counts"]["read"] == 18 and found["counts"]["used"] == 17 and found["counts"]["sequences"] == 17
    causes = {cause["reason"]: cause for cause in found["causes"]}
    assert causes["empty answer"] == {"reason": "empty answer", "rows": 1, "examples": ["mine row 17"], "dropped": True}
    assert causes["cut to 64 tokens"]["dropped"] is False
    assert not (tmp_path / "out").exists()
    text = fl("recipe", "data", "--hw", "cpu", "--ids", path, timeout=600).stdout
    assert "⟦It is 2.<|im_end|>\n⟧" in text and "dropped: 1 × empty answer (mine row 17)" in text
    assert " ".join(f"⟦{token}⟧" for token in trained) in " ".join(text.split())


def test_pairs_and_packs_are_shown_too(fl: Fl, recipe: Callable[..., str]) -> None:
    packed = asked(fl, recipe(SUMS, packing=True))
    assert packed["rows"][0]["packed"] and packed["counts"]["sequences"] < 16 == packed["counts"]["used"]
    pairs = [{"instruction": row["instruction"], "chosen": row["output"], "rejected": "I do not know."} for row in SUMS]
    columns = {"prompt": "instruction", "chosen": "chosen", "rejected": "rejected"}
    found = asked(fl, "--rows", "1", recipe(pairs, {"ranking": True, "columns": columns}, stage="dpo"))
    better, worse = found["rows"][0]["parts"]
    assert (better["name"], worse["name"]) == ("chosen", "rejected")
    assert found["counts"]["longest"] >= len(worse["input_ids"]) > len(better["input_ids"])
    assert worse["spans"][-1] == {**worse["spans"][-1], "text": "I do not know.<|im_end|>\n", "trained": True}


def test_a_file_is_named_directly(fl: Fl, recipe: Callable[..., str], tmp_path: Path) -> None:
    path = recipe(SUMS)
    (tmp_path / "dataset_info.json").unlink()
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    (tmp_path / "talks.jsonl").write_text(json.dumps({"messages": talk}) + "\n")
    found = asked(fl, "--rows", "20", path, f"dataset={tmp_path}/rows.json,{tmp_path}/talks.jsonl")
    assert found["counts"]["used"] == len(SUMS) + 1
    assert [row["where"] for row in found["rows"]][-1] == "talks row 1"
    assert found["rows"][-1]["parts"][0]["spans"][-1]["text"] == "Ho<|im_end|>\n"
    missing = fl("recipe", "data", "--hw", "cpu", path, f"dataset={tmp_path}/row.json")
    assert missing.returncode == 5 and "Beside it: rows.json" in missing.stderr


def test_data_that_cannot_be_used_are_exit_5_with_the_trainers_words(fl: Fl, recipe: Callable[..., str]) -> None:
    done = fl("recipe", "data", "--hw", "cpu", "--json", recipe([{"instruction": "a", "outptu": "b"}]), timeout=600)
    assert done.returncode == 5
    error = json.loads(done.stdout)["error"]
    assert "no column output (for response)" in error["message"] and "outptu" in error["remedy"]


def test_the_bundled_format_of_a_real_model_is_its_tokenizers_own(fl: Fl, recipe: Callable[..., str]) -> None:
    """SmolLM2 is the model with a template of its own that can be had without a hub."""
    rows = [*SUMS[:3], {"instruction": "Be brief.", "output": "Yes.", "system": "You are Flint.", "history": [["Who?", "Flint."]]}]
    entry = {"columns": {"prompt": "instruction", "response": "output", "system": "system", "history": "history"}}
    rows[:3] = [{**row, "system": None, "history": None} for row in rows[:3]]
    path = recipe(rows, entry, model_name_or_path="builtin/smollm2-135m", template=None)
    done = fl("recipe", "data", "--hw", "cpu", "--json", "--rows", "4", path, timeout=600)
    if done.returncode == 6:
        pytest.skip("the package index does not have the model")
    own = json.loads(done.stdout)
    bundled = asked(fl, "--rows", "4", recipe(rows, entry, model_name_or_path="builtin/smollm2-135m", template="smollm2"))
    assert own["template"] is None and bundled["template"] == "smollm2"
    for one, other in zip(own["rows"], bundled["rows"], strict=True):
        texts = ["".join(span["text"] for span in row["parts"][0]["spans"]) for row in (one, other)]
        assert texts[0].startswith("<|im_start|>system\n") and texts[1] == texts[0] + "\n"
        assert other["parts"][0]["input_ids"][:-1] == one["parts"][0]["input_ids"]
