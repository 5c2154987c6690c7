"""Data that cannot be trained on: exit 5 with the row, column or key named, and what an earlier run left stays as it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from trainer_harness import SUMS, Trainer

pytestmark = pytest.mark.training
Config = Callable[..., Path]
SHAREGPT = {"formatting": "sharegpt", "columns": {"messages": "conversations"}}
CALL = {"name": "add", "arguments": {}}


def talk(*roles: str) -> dict[str, Any]:
    return {"conversations": [{"from": role, "value": f"{role} says {number}"} for number, role in enumerate(roles)]}


ODD = [talk("human", "gpt", "human"), talk("gpt", "human", "gpt"), talk("human", "human", "gpt"), talk("human", "gpt", "gpt")]
FAULTS: dict[str, tuple[dict[str, Any], str, str]] = {
    # parts of the config; what the message says; what the remedy says
    "odd turns": (
        {"rows": ODD, "dataset": SHAREGPT},
        "none of its 4 rows can be trained on: 1 no answer at the end (sums row 1); 2 wrong order of roles: assistant where user is due "
        "(sums row 2, sums ", "",
    ),
    "roles of another kind": (
        {"rows": [talk("user", "assistant")], "dataset": SHAREGPT}, "none of its 1 rows can be trained on: 1 unknown role user", "user_tag",
    ),
    "one odd turn too many": (
        {"rows": [talk("human", "gpt"), *ODD], "dataset": SHAREGPT},
        "4 of 5 rows cannot be trained on, more than the share of 0.5",
        "max_dropped: 0.8",
    ),
    "ranking in sft": (
        {"rows": [{"instruction": "a", "chosen": "b", "rejected": "c"}],
         "dataset": {"ranking": True, "columns": {"prompt": "instruction", "chosen": "chosen", "rejected": "rejected"}}},
        "data set sums has `ranking: true`, which stage sft cannot use", "stage dpo",
    ),
    "columns of another format": (
        {"rows": [talk("human", "gpt")]}, "no column instruction (for prompt); it has: conversations", "sharegpt",
    ),
    "a column of the entry": (
        {"dataset": {"columns": {"prompt": "instruction", "response": "output", "system": "sytem"}}},
        "no column sytem (for system); it has: input, instruction, output", "dataset_info.json",
    ),
    "not a number in a text": ({"rows": '[{"instruction": "a", "output": NaN}]'}, "sums row 1: column output is a number (NaN)", "quote"),
    "calls that the template cannot write": (
        {"rows": [{"conversations": [*talk("human")["conversations"], {"from": "function_call", "value": json.dumps([CALL, CALL])}]}],
         "data": {"template": "glm4"}, "dataset": SHAREGPT},
        "sums row 1: the chat template refuses it: template glm4 writes one call an answer, found several", "template",
    ),
    "a name of the hub without a network": (
        {"dataset": {"source": "hub", "path": "some/where"}}, "data set sums: some/where cannot be read: ", "fl fetch RECIPE",
    ),
    "nothing to compare with": (
        {"rows": [{"instruction": "a", "chosen": "b", "rejected": worse} for worse in ("c", None, "", "  ")], "method": {"stage": "dpo"},
         "dataset": {"ranking": True, "columns": {"prompt": "instruction", "chosen": "chosen", "rejected": "rejected"}}},
        "3 of 4 rows cannot be trained on, more than the share of 0.5 that may be left out: 3 rows: empty rejected answer", "max_dropped",
    ),
    "cut before the answer": (
        {"rows": [{"instruction": "word " * 90, "output": "No."}], "data": {"mask_history": False, "cutoff_len": 1}},
        "no row can be trained on: ", "cutoff_len",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_faults_of_data_have_names_and_leave_the_output_alone(trainer: Trainer, config: Config, tmp_path: Path, name: str) -> None:
    parts, message, remedy = FAULTS[name]
    path = config(training={"overwrite_output_dir": True}, **parts)
    old = path.parent / "out" / "checkpoint-7"
    old.mkdir(parents=True)
    left = [old / "trainer_state.json", path.parent / "out" / "all_results.json", path.parent / "out" / "adapter_model.safetensors"]
    for file in left:
        file.write_text("of an earlier run")
    done = trainer.train(path)
    assert done.code == 5, done.output
    error = done.of("error")[0]
    assert message in error["message"] and remedy in error["remedy"]
    assert "Traceback" not in done.output
    assert [file.read_text() for file in left] == ["of an earlier run"] * 3
    assert not (path.parent / "out" / "base-model").exists()


def test_a_question_longer_than_cutoff_len_is_cut_and_told(trainer: Trainer, config: Config) -> None:
    """LLaMA-Factory's rule: a short answer is kept whole, and the question loses its end."""
    path = config(rows=[*SUMS[:4], {"instruction": "word " * 300, "output": "No."}], data={"cutoff_len": 40})
    done = trainer.train(path)
    assert done.code == 0, done.output
    assert {event["reason"]: event["examples"] for event in done.of("warning")} == {"cut to 40 tokens": ["sums row 5"]}
    last = trainer.check("labelled", str(path))[-1]
    assert last["length"] <= 40 and last["counted"] == ["No.<|im_end|>"]


def test_odd_turns_beside_good_ones_are_left_out_and_told(trainer: Trainer, config: Config) -> None:
    done = trainer.train(config(rows=[*(talk("human", "gpt") for _ in range(4)), *ODD], dataset=SHAREGPT))
    assert done.code == 0, done.output
    told = {event["reason"]: event["count"] for event in done.of("warning")}
    assert told == {
        "no answer at the end": 1, "wrong order of roles: assistant where user is due": 2,
        "wrong order of roles: user where assistant is due": 1,
    }  # fmt: skip
    assert done.of("data")[0]["rows"] == 4
