"""Stages dpo, orpo, simpo and kto: the margin between better and worse answers grows; losses are their formulas."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
from trainer_harness import SUMS, Done, Trainer

PAIRS = [
    {"instruction": row["instruction"], "chosen": row["output"], "rejected": f"No idea about {row['instruction'].lower()}"} for row in SUMS
]
PAIR_SET = {"ranking": True, "columns": {"prompt": "instruction", "query": None, "response": None, "chosen": "chosen",
                                         "rejected": "rejected"}}  # fmt: skip
MARKS = [
    {"instruction": row["instruction"], "output": row["chosen" if good else "rejected"], "label": good}
    for row in PAIRS
    for good in (True, False)
]
MARK_SET = {"columns": {"prompt": "instruction", "query": None, "response": "output", "kto_tag": "label"}}


@pytest.fixture
def prefer(trainer: Trainer, config: Callable[..., Path]) -> Callable[..., Done]:
    runs = iter(range(99))

    def run(stage: str, kind: str = "lora", preference: dict[str, Any] | None = None, rows: Any = None, **more: Any) -> Done:
        arguments = {"max_steps": 10, "learning_rate": 0.02 if kind == "lora" else 0.005, **more.pop("arguments", {})}
        dataset = more.pop("dataset", MARK_SET if stage == "kto" else PAIR_SET)
        rows = rows if rows is not None else MARKS if stage == "kto" else PAIRS
        method = {"stage": stage, "finetuning_type": kind, "preference": preference or {}, "reference": more.pop("reference", None)}
        return trainer.train(config(f"run{next(runs)}", rows=rows, dataset=dataset, method=method, arguments=arguments, **more))

    return run


@pytest.mark.parametrize("kind", ["lora", "full", "freeze"])
@pytest.mark.parametrize("stage", ["dpo", "orpo", "simpo", "kto"])
def test_better_answers_win(prefer: Callable[..., Done], stage: str, kind: str) -> None:
    done = prefer(stage, kind)
    assert done.code == 0, done.output
    steps = [event for event in done.of("step") if "margins" in event]
    first, last = mean(step["margins"] for step in steps[:3]), mean(step["margins"] for step in steps[-3:])
    assert last > first + (0.01 if stage in ("orpo", "simpo") else 0.2), (first, last)
    if stage != "kto":
        assert steps[-1]["accuracies"] == 1.0
    assert done.losses[-1] < done.losses[0]
    assert (done.folder / "out" / ("adapter_config.json" if kind == "lora" else "model.safetensors")).is_file()


@pytest.mark.parametrize(("liked", "said"), [(True, "every answer is liked"), (False, "no answer is liked")])
def test_kto_says_when_it_has_one_kind_of_answer(prefer: Callable[..., Done], liked: bool, said: str) -> None:
    done = prefer("kto", rows=[{**row, "label": liked} for row in MARKS], arguments={"max_steps": 1})
    assert done.code == 0, done.output
    assert [event["message"] for event in done.of("warning") if said in event["message"]], done.of("warning")


@pytest.mark.parametrize(
    ("loss", "start"), [("sigmoid", 0.6931), ("hinge", 1.0), ("ipo", 25.0), ("kto_pair", 0.5)]
)  # beta 0.1, no margin yet: log 2, 1, (1 / 0.2)², 1/2
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_each_loss_starts_at_its_own_value(prefer: Callable[..., Done], loss: str, start: float, kind: str) -> None:
    done = prefer("dpo", kind, {"loss": loss}, arguments={"max_steps": 3})
    assert done.code == 0, done.output
    assert done.losses[0] == pytest.approx(start, abs=1e-3)
    assert done.losses[-1] < done.losses[0]


def test_evaluation_tells_the_rewards(prefer: Callable[..., Done]) -> None:
    done = prefer("dpo", data={"val_size": 6}, arguments={"eval_strategy": "steps", "eval_steps": 5})
    assert done.code == 0, done.output
    held = json.loads((done.folder / "out" / "eval_results.json").read_text())
    assert held["eval_rewards/accuracies"] == 1.0 and held["eval_rewards/margins"] > 0.2


def test_other_terms_take_part(prefer: Callable[..., Done]) -> None:
    """Not log 2 where half of the longer answer counts; sft's loss on top; (log 2 + 2 log 2) / 2 with bco's two terms."""
    smooth = prefer("dpo", preference={"label_smoothing": 0.3, "ld_alpha": 0.5}, arguments={"max_steps": 1})
    bco = prefer("dpo", preference={"bco_weight": 1.0}, arguments={"max_steps": 1})
    ftx = prefer("dpo", preference={"ftx": 1.0}, arguments={"max_steps": 1})
    assert bco.losses[0] == pytest.approx(1.5 * 0.6931, abs=1e-3)
    assert ftx.losses[0] > 3
    assert smooth.code == 0 and smooth.losses[0] != pytest.approx(0.6931, abs=1e-3), smooth.output


def test_losses_are_their_formulas(trainer: Trainer) -> None:
    assert trainer.check("preference_losses") == []


@pytest.mark.parametrize(
    ("stage", "rows", "dataset", "words"),
    [
        ("dpo", SUMS, {}, ("no pairs of answers", "stage: sft")),
        ("sft", PAIRS, PAIR_SET, ("ranking: true", "use stage dpo")),
        ("kto", SUMS, {}, ("kto_tag",)),
        ("dpo", [{"instruction": "a", "chosen": "b", "reject": "c"}], PAIR_SET, ("no column rejected", "reject")),
        ("dpo", [{"instruction": "a", "chosen": ["b"], "rejected": "c"}], PAIR_SET, ("row 1", "chosen", "a text is needed")),
        ("kto", [{"instruction": "a", "output": "b", "label": "good"}], MARK_SET, ("row 1", "label", "true or false")),
    ],
)
def test_data_of_another_kind_is_refused(prefer: Callable[..., Done], stage: str, rows: Any, dataset: Any, words: tuple[str, ...]) -> None:
    done = prefer(stage, rows=rows, dataset=dataset)
    assert done.code == 5, done.output
    assert all(word in done.output for word in words), done.output


def test_chats_with_pairs_and_marks(prefer: Callable[..., Done]) -> None:
    pairs = [{"conversations": [{"from": "human", "value": row["instruction"]}], "chosen": {"from": "gpt", "value": row["chosen"]},
              "rejected": {"from": "gpt", "value": row["rejected"]}} for row in PAIRS]  # fmt: skip
    columns = {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"}
    done = prefer("dpo", rows=pairs, dataset={"formatting": "sharegpt", "ranking": True, "columns": columns})
    assert done.code == 0, done.output
    assert done.losses == pytest.approx(prefer("dpo").losses, abs=1e-5)


def test_the_reference_is_the_model_that_the_recipe_names(prefer: Callable[..., Done]) -> None:
    """A trained adapter that goes on is far from its base, and not at all from a reference with the same adapter."""
    first = prefer("dpo")
    start = {"adapters": [str(first.folder / "out")]}
    same = {"name": "builtin/tiny-llama", "path": "builtin/tiny-llama", "kind": "tiny"}
    one = {"max_steps": 1}
    assert prefer("dpo", model=start, arguments=one).losses[0] < 0.6
    beside = prefer("dpo", model=start, arguments=one, reference={**same, **start})
    assert beside.code == 0, beside.output
    assert beside.losses[0] == pytest.approx(0.6931, abs=1e-3)
    other = prefer("dpo", kind="full", arguments=one, reference={**same, **start})  # the reference knows better than the model
    assert other.losses[0] > 0.8
    assert prefer("kto", model=start, arguments=one, reference={**same, **start}).losses[0] == pytest.approx(0.5, abs=1e-3)


def test_a_reference_with_another_vocabulary_is_refused(trainer: Trainer, config: Callable[..., Path], prefer: Callable[..., Done]) -> None:
    stranger = trainer.train(config("stranger", method={"finetuning_type": "full"}, arguments={"max_steps": 1}))
    done = prefer("dpo", reference={"name": "other", "path": str(stranger.folder / "out"), "kind": "folder"})
    assert done.code == 5, done.output
    assert "ref_model: other has another vocabulary" in done.output
