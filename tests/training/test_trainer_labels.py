"""What the loss counts: the labelled tokens of whole data sets, decoded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from trainer_harness import SUMS, Trainer

pytestmark = pytest.mark.training
Config = Callable[..., Path]
TALK = [
    {
        "conversations": [
            {"from": "system", "value": "Be brief."},
            {"from": "human", "value": "One?"},
            {"from": "gpt", "value": "Two."},
            {"from": "human", "value": "Three?"},
            {"from": "gpt", "value": "Four.\nReally."},
        ]
    }
]
SHAREGPT = {"formatting": "sharegpt", "columns": {"messages": "conversations"}}
END = "<|im_end|>"


def test_answers_and_their_end_and_nothing_else(trainer: Trainer, config: Config) -> None:
    rows = trainer.check("labelled", str(config()))
    assert [row["counted"] for row in rows] == [[row["output"] + END] for row in SUMS]
    assert rows[0]["text"] == "<|im_start|>user\nWhat is 1 plus 1?<|im_end|>\n<|im_start|>assistant\nIt is 2.<|im_end|>"


SLOT = END + "\n"
"""With `template:` all that it writes for an answer counts, as in LLaMA-Factory."""
EMPTY = "<think>\n\n</think>\n\n"
CASES: list[tuple[dict[str, Any], list[str]]] = [
    ({}, ["Two." + END, "Four.\nReally." + END]),
    ({"mask_history": True}, ["Four.\nReally." + END]),
    ({"template": "qwen3_nothink"}, ["Two." + SLOT, "Four.\nReally." + SLOT]),
    ({"template": "qwen3", "enable_thinking": True}, [EMPTY + "Two." + SLOT, EMPTY + "Four.\nReally." + SLOT]),
    ({"template": "qwen3", "enable_thinking": False}, ["Two." + SLOT, "Four.\nReally." + SLOT]),
    ({"template": "qwen3", "enable_thinking": None}, ["Two." + SLOT, "Four.\nReally." + SLOT]),
    ({"template": "vicuna"}, ["Two." + END, "Four.\nReally." + END]),
    ({"template": "llama3"}, ["Two.<|eot_id|>", "Four.\nReally.<|eot_id|>"]),
    ({"template": "glm4"}, ["\nTwo.", "<|im_end|>", "\nFour.\nReally." + END]),
]


@pytest.mark.parametrize(("data", "counted"), CASES, ids=[str(case[0]) for case in CASES])
def test_turns(trainer: Trainer, config: Config, data: dict[str, Any], counted: list[str]) -> None:
    (row,) = trainer.check("labelled", str(config(rows=TALK, dataset=SHAREGPT, data=data)))
    if data.get("template") == "glm4":  # the end of an answer is the place where the next question begins
        assert "".join(row["counted"]) == "".join(counted)
    else:
        assert row["counted"] == counted


def test_train_on_prompt_counts_everything(trainer: Trainer, config: Config) -> None:
    (row,) = trainer.check("labelled", str(config(rows=TALK, dataset=SHAREGPT, data={"train_on_prompt": True})))
    assert row["counted"] == [row["text"]]
    assert "Be brief." in row["text"]


def test_history_and_query_and_system_of_alpaca(trainer: Trainer, config: Config) -> None:
    rows = [{"instruction": "Add.", "input": "1 2", "output": "3", "system": "Sums only.", "history": [["Hi", "Ho"]]}]
    columns = {"prompt": "instruction", "query": "input", "response": "output", "system": "system", "history": "history"}
    (row,) = trainer.check("labelled", str(config(rows=rows, dataset={"columns": columns})))
    assert row["counted"] == ["Ho" + END, "3" + END]
    assert "Add.\n1 2<|im_end|>" in row["text"] and row["text"].startswith("<|im_start|>system\nSums only.<|im_end|>")


def test_openai_adds_no_text_of_its_own_and_calls_are_answers(trainer: Trainer, config: Config) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1, "b": 2}'}}
    rows = [
        {
            "messages": [
                {"role": "user", "content": "1 plus 2?"},
                {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "content": "3"},
                {"role": "assistant", "content": "Three."},
            ],
            "tools": '[{"name": "add", "parameters": {}}]',
        }
    ]
    dataset = {
        "formatting": "openai",
        "columns": {"messages": "messages", "tools": "tools"},
        "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"},
    }
    (row,) = trainer.check("labelled", str(config(rows=rows, dataset=dataset, data={"template": "qwen3_nothink", "cutoff_len": 2000})))
    assert row["counted"] == ['<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>' + SLOT, "Three." + SLOT]
    assert "thinking" not in row["text"]
    plain = [{"messages": rows[0]["messages"][::3]}]
    dataset["columns"] = {"messages": "messages"}
    (row,) = trainer.check("labelled", str(config("plain", rows=plain, dataset=dataset, file="plain.json")))
    assert row["text"] == "<|im_start|>user\n1 plus 2?<|im_end|>\n<|im_start|>assistant\nThree.<|im_end|>"


@pytest.mark.parametrize("cutoff", [8, 20, 40])
def test_no_row_is_longer_than_cutoff_len(trainer: Trainer, config: Config, cutoff: int) -> None:
    long = [{"instruction": "word " * 30, "output": "answer " * 30}, {"instruction": "word " * 30, "output": "Yes."}]
    rows = trainer.check("labelled", str(config(rows=long, data={"cutoff_len": cutoff})))
    assert [row["length"] for row in rows] == [cutoff, cutoff]


def test_packs_that_keep_their_parts_apart_have_the_loss_of_the_rows_alone(trainer: Trainer, config: Config) -> None:
    for name in ("builtin/tiny-llama", "builtin/tiny-qwen3"):
        path = config(name[-5:], data={"neat_packing": True, "packing": True}, model={"path": name})
        losses = trainer.check("apart_and_alone", str(path))
        assert losses["packs"] < losses["rows"] / 3
        assert losses["apart"] == pytest.approx(losses["alone"], abs=1e-4)
        assert abs(losses["together"] - losses["alone"]) > 1e-3


def test_no_gradient_goes_from_one_row_of_a_pack_to_another(trainer: Trainer) -> None:
    """Full and sliding attention are told by positions. Other layers, and attention that goes by no positions, are refused."""
    for name, (own, before, behind, said) in trainer.check("packed_gradients").items():
        assert own > 0 and behind == 0, name
        if name.split()[0] in ("opt", "lfm2", "qwen3_5_text"):
            assert before > 0 and f"the layers of {name.split()[0]} (" in said, name
        else:
            assert before == 0 and said == "", name


def test_packs_are_trained_on(trainer: Trainer, config: Config) -> None:
    for data in ({"packing": True}, {"packing": True, "neat_packing": True}):
        done = trainer.train(config(f"run-{len(data)}", data=data, arguments={"per_device_train_batch_size": 1}))
        assert done.code == 0, done.output
        assert done.losses[-1] < 0.9 * done.losses[0]
        assert done.of("data")[0]["sequences"] < 12


def test_packs_beside_an_evaluation_of_single_rows(trainer: Trainer, config: Config) -> None:
    losses = {}
    for name, data in {"plain": {}, "apart": {"packing": True, "neat_packing": True}}.items():
        done = trainer.train(config(name, data={**data, "val_size": 6}, arguments={"learning_rate": 0.0, "max_steps": 1}))
        assert done.code == 0, done.output
        losses[name] = done.of("eval")[-1]["eval_loss"]
    assert losses["apart"] == pytest.approx(losses["plain"], abs=1e-4)


def test_a_model_without_a_template_takes_the_stated_default(trainer: Trainer, config: Config, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    trainer.check("bare_model_folder", str(folder), [row["instruction"] + row["output"] for row in SUMS])
    path = config(model={"kind": "folder", "path": str(folder), "name": str(folder)})
    done = trainer.train(path)
    assert done.code == 0, done.output
    assert "`template: default` is used" in done.of("warning")[0]["message"]
    saved = (path.parent / "out" / "chat_template.jinja").read_text()
    assert "Human: " in saved
    (row, *_) = trainer.check("labelled", str(path))
    assert row["text"] == "Human: What is 1 plus 1?<|im_end|>\nAssistant:It is 2.<|im_end|>"
