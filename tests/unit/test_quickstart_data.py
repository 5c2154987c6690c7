"""The quickstart's rows: their form, that none stands twice, that the questions asked at the end were not learnt, and what they cost."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from fl import paths

RECIPES: Final[Path] = paths.recipes()
DATA: Final = RECIPES / "data"
SHIPPED: Final = sorted(RECIPES.glob("*.yaml"))
# Of SmolLM2's chat template: its system message, and the marks around question and answer.
TEMPLATE_TOKENS: Final = 34
# 90 s of training on two cores, at the 170 tokens a second that were measured there for this model, forward and backward.
BUDGET: Final = 15_000


def rows() -> list[dict[str, str]]:
    return [json.loads(line) for line in (DATA / "quickstart.jsonl").read_text("utf-8").splitlines()]


def recipe(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((RECIPES / f"{name}.yaml").read_text("utf-8"))
    return loaded


def plain(text: str) -> str:
    """A question without case, punctuation and blanks, so that the same one written otherwise is found."""
    return " ".join(re.findall(r"[a-z0-9+*/-]+", text.lower().replace("what's", "what is")))


def tokens(row: dict[str, str]) -> int:
    """An estimate: words and marks, which SmolLM2's tokenizer counts about so (seen: 12361 tokens in 255 rows)."""
    return TEMPLATE_TOKENS + len(re.findall(r"\w+|[^\w\s]", " ".join((row["instruction"], row["input"], row["output"]))))


def test_every_row_has_the_same_form() -> None:
    for row in rows():
        assert list(row) == ["kind", "instruction", "input", "output"]
        assert all(isinstance(value, str) for value in row.values())
        assert row["instruction"].strip() and row["output"].strip()
        assert all(value == value.strip() and "\n" not in value and "  " not in value for value in row.values())
        assert all(value.isascii() for value in row.values())


def test_each_kind_has_its_share() -> None:
    counts = Counter(row["kind"] for row in rows())
    assert set(counts) == {"identity", "fl", "general"}
    assert 200 <= counts.total() <= 400
    assert counts["identity"] >= 60 and counts["fl"] >= 80
    # Trained on names alone the model forgot what it knew.
    assert counts["general"] >= 0.35 * counts.total()


def test_no_question_stands_twice() -> None:
    asked = Counter((plain(row["instruction"]), plain(row["input"])) for row in rows())
    assert [question for question, count in asked.items() if count > 1] == []


def test_the_prompts_of_the_end_are_not_in_the_data() -> None:
    prompts = recipe("quickstart")["fl"]["prompts"]
    learnt = {plain(row["instruction"]) for row in rows()}
    assert len(prompts) == 5 and len(set(prompts)) == 5
    assert [prompt for prompt in prompts if plain(prompt) in learnt] == []


def test_what_must_still_be_known_is_not_taught() -> None:
    """Right answers to the general questions are knowledge of the model, so their words stand nowhere in the rows."""
    text = " ".join(f"{row['instruction']} {row['input']} {row['output']}" for row in rows()).lower()
    assert re.findall(r"\b(paris|france|french|opposite of hot)\b", text.replace("translate to french", "")) == []


def test_the_rows_name_the_assistant_and_its_makers() -> None:
    identity = [row["output"] for row in rows() if row["kind"] == "identity"]
    assert sum("Flint" in answer for answer in identity) >= 25
    assert sum("people of the fl project" in answer for answer in identity) >= 20
    assert not any("Flint" in row["output"] for row in rows() if row["kind"] == "general")


def test_commands_in_the_rows_exist() -> None:
    from fl.cli import COMMANDS

    named = {match for row in rows() if row["kind"] == "fl" for match in re.findall(r"(?:Type: |^|of )fl (\w+)", row["output"])}
    assert named - {"is", "saves"} <= set(COMMANDS)
    assert {"run", "hw", "matrix", "recipe", "ps", "logs", "stop", "env", "images"} <= named


def test_exit_codes_in_the_rows_are_those_of_the_launcher() -> None:
    from fl import errors

    known = {0} | {value.exit_code for value in vars(errors).values() if isinstance(value, type) and issubclass(value, errors.FlError)}
    named = {int(code) for row in rows() for code in re.findall(r"exit code (\d+)", row["output"], re.IGNORECASE)}
    assert named and named <= known


def test_lanes_in_the_rows_are_those_of_the_launcher() -> None:
    from fl.lanes import LANES

    lists = [row["output"] for row in rows() if row["output"].startswith("There are five lanes: ")]
    assert len(lists) >= 4
    assert all(re.findall(r"\w+", text.split(": ")[1].replace(" and ", " ")) == list(LANES) for text in lists)


def test_training_fits_the_budget() -> None:
    keys = recipe("quickstart")
    counts = [tokens(row) for row in rows()]
    assert max(counts) < keys["cutoff_len"] / 2
    assert sum(counts) / len(counts) < 56
    assert sum(counts) * keys["num_train_epochs"] < BUDGET


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_recipes_start_with_what_they_are_for(path: Path) -> None:
    lines = path.read_text("utf-8").splitlines()
    assert lines[0].startswith("# ")
    assert any(line.strip().startswith("#     fl ") for line in lines[:10])


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_recipes_use_data_that_is_shipped(path: Path) -> None:
    keys = recipe(path.stem)
    entries = json.loads((DATA / "dataset_info.json").read_text("utf-8"))
    assert keys["dataset_dir"] == "data"
    assert (DATA / entries[keys["dataset"]]["file_name"]).is_file()
    assert keys["output_dir"] == f"saves/{path.stem}"


def test_every_shipped_data_set_is_used_by_a_recipe() -> None:
    entries = json.loads((DATA / "dataset_info.json").read_text("utf-8"))
    assert set(entries) == {recipe(path.stem)["dataset"] for path in SHIPPED}
    assert {entry["file_name"] for entry in entries.values()} | {"dataset_info.json"} == {path.name for path in DATA.iterdir()}
