"""Rows as users have them: calls with thoughts, answers with roles, nulls, halves of characters; and what becomes of each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fl_trainers.config import Columns, Config, Dataset
from fl_trainers.data import pipeline, ranking, sources
from fl_trainers.data.formats import Conversation, Report, check_columns, conversation
from fl_trainers.data.guess import ROLES, guessed
from fl_trainers.errors import InputError

CHAT = Dataset(name="talk", source="file", path="/x", formatting="sharegpt", columns=Columns(messages="conversations", tools="tools"))
OPENAI = Dataset(name="talk", source="file", path="/x", formatting="openai", columns=Columns(messages="messages", tools="tools"),
                 tags=ROLES)  # fmt: skip
PAIRS = Dataset(name="pairs", source="file", path="/x", formatting="sharegpt", ranking=True,
                columns=Columns(messages="conversations", chosen="chosen", rejected="rejected"))  # fmt: skip
ADD = {"name": "add", "arguments": {"a": 1}}
CALL = json.dumps(ADD)


def turns(*turns: tuple[str, Any]) -> list[dict[str, Any]]:
    return [{"from": who, "value": what} for who, what in turns]


def roles(*turns: tuple[str, Any]) -> list[dict[str, Any]]:
    return [{"role": who, "content": what} for who, what in turns]


def items(dataset: Dataset, rows: list[dict[str, Any]], stage: str = "sft", **data: Any) -> tuple[list[Any], dict[str, int]]:
    """What is left of the rows, and the causes of what is not."""
    config = Config.model_validate({
        "schema": 1, "run": {"name": "x", "lane": "cpu", "stack": "x", "events": "/dev/null"},
        "model": {"name": "x", "path": "/x", "kind": "folder"}, "data": data, "method": {"stage": stage, "finetuning_type": "full"},
        "training": {"output_dir": "/x"},
    })  # fmt: skip
    report = Report()
    return [item for _, item in pipeline.convert(config, dataset, enumerate(rows), report)], report.counts


@pytest.mark.parametrize(
    ("written", "before", "calls"),
    [
        (CALL, "", 1),
        (f"[{CALL}, {CALL}]", "", 2),
        (f"<think>\nWith {{braces}} [1].\n</think>\n\n{CALL}", "<think>\nWith {braces} [1].\n</think>\n\n", 1),
        (f"<tool_call>\n{CALL}\n</tool_call>", "", 1),
        (f"Let me see.\n<tool_call>\n{CALL}\n</tool_call>\n<tool_call>{CALL}</tool_call>\n", "Let me see.\n", 2),
    ],
)
def test_a_call_may_have_a_thought_before_it_and_tags_around_it(written: str, before: str, calls: int) -> None:
    row = {"conversations": turns(("human", "a"), ("function_call", written), ("observation", "1"), ("gpt", "b"))}
    made = conversation(row, CHAT, "")
    assert isinstance(made, Conversation), made
    assert made.messages[1]["content"] == before
    assert [one["function"] for one in made.messages[1]["tool_calls"]] == [ADD] * calls


@pytest.mark.parametrize("written", ["Let me see.", '{"arguments": {}}', "[]", "3", '{"name": "add"'])
def test_what_is_no_call_is_counted(written: str) -> None:
    row = {"conversations": turns(("human", "a"), ("function_call", written), ("observation", "1"), ("gpt", "b"))}
    assert str(conversation(row, CHAT, "")).startswith("a function call")


def test_messages_of_openai_keep_what_templates_ask_for() -> None:
    call = {"id": "call12345", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    row = {"messages": [
        *roles(("developer", "Be kind."), ("user", "a")),
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "hm"},
        {"role": "tool", "content": "1", "tool_call_id": "call12345", "name": "add"},
        *roles(("assistant", [{"type": "text", "text": "b"}])),
    ]}  # fmt: skip
    made = conversation(row, OPENAI, "")
    assert isinstance(made, Conversation)
    assert [message["role"] for message in made.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert made.messages[2] == {"role": "assistant", "content": "", "reasoning_content": "hm",
                                "tool_calls": [{"type": "function", "function": ADD, "id": "call12345"}]}  # fmt: skip
    assert made.messages[3] == {"role": "tool", "content": "1", "tool_call_id": "call12345", "name": "add"}
    assert made.messages[4] == {"role": "assistant", "content": "b"}
    weighed = {"messages": [*roles(("user", "a")), {"role": "assistant", "content": "b", "weight": 0}]}
    made = conversation(weighed, OPENAI, "")
    assert isinstance(made, Conversation) and made.messages[1]["weight"] == 0
    old = {"messages": [*roles(("user", "a")), {"role": "assistant", "content": None, "function_call": ADD}]}
    made = conversation(old, OPENAI, "")
    assert isinstance(made, Conversation) and made.messages[1]["tool_calls"][0]["function"] == ADD


def test_answers_of_pairs_are_messages_with_roles_and_calls() -> None:
    good, bad = {"from": "gpt", "value": "b"}, {"from": "gpt", "value": "c"}
    row = {"conversations": turns(("human", "a")), "chosen": {"from": "function_call", "value": CALL}, "rejected": bad}
    rows = [row, {**row, "chosen": {"from": "human", "value": "b"}}, {**row, "chosen": good, "rejected": {"from": "gpt", "value": " "}},
            {**row, "chosen": {"from": "gpt", "value": None}}, {**row, "chosen": good}]  # fmt: skip
    left, causes = items(PAIRS, rows, "dpo")
    assert causes == {"an answer in the role of user": 1, "empty rejected answer": 1, "a message of gpt without content": 1}
    assert left[0].messages[-1]["tool_calls"][0]["function"] == ADD and left[0].rejected == {"role": "assistant", "content": "c"}
    assert left[1].messages[-1] == {"role": "assistant", "content": "b"}


def test_pairs_may_be_two_whole_conversations() -> None:
    row = {"prompt": "a", "chosen": roles(("user", "a"), ("assistant", "b")), "rejected": roles(("user", "a"), ("assistant", "c"))}
    other = {**row, "rejected": roles(("user", "z"), ("assistant", "c"))}
    dataset = guessed(CHAT.model_copy(update={"guess": True}), list(row), row, "dpo")
    left, causes = items(dataset, [row, other], "dpo")
    assert [message["content"] for message in left[0].messages] == ["a", "b"] and left[0].rejected["content"] == "c"
    assert causes == {"two answers that do not follow the same turns": 1}
    columns = Columns(prompt="prompt", chosen="chosen", rejected="rejected")
    entry = Dataset(name="d", source="file", path="/x", ranking=True, columns=columns)
    with pytest.raises(InputError) as caught:
        items(entry, [row], "dpo")
    assert "messages: chosen" in caught.value.remedy


@pytest.mark.parametrize(("mark", "wanted"), [(True, True), ("False", False), (1, True), (None, None), ("", None)])
def test_a_row_of_kto_without_a_mark_is_left_out(mark: Any, wanted: bool | None) -> None:
    dataset = Dataset(name="d", source="file", path="/x", columns=Columns(kto_tag="label"))
    left, causes = items(dataset, [{"instruction": "a", "output": "b", "label": mark}], "kto")
    assert [item.liked for item in left] == ([] if wanted is None else [wanted])
    assert causes == ({"nobody says whether the answer is liked": 1} if wanted is None else {})
    with pytest.raises(InputError, match="true or false is needed"):
        ranking.liked({"label": "maybe"}, dataset, "row 1")


def test_a_null_for_content_is_counted_and_a_missing_key_refused() -> None:
    talks = [turns(("human", None), ("gpt", "b")), turns(("human", "a"), ("gpt", None))]
    left, causes = items(CHAT, [{"conversations": talk} for talk in talks])
    assert not left and causes == {"a message of human without content": 1, "a message of gpt without content": 1}
    with pytest.raises(InputError, match="value of a message is null"):
        items(CHAT, [{"conversations": [{"from": "human", "text": "a"}]}])


def test_half_a_character_is_counted_wherever_it_stands() -> None:
    half = json.loads(r'"a\ud83d"')
    calls = [{"function": {"name": "add", "arguments": {"a": half}}}]
    rows = [{"messages": roles(("user", half), ("assistant", "b"))}, {"messages": roles(("user", "é 🎉"), ("assistant", "b"))},
            {"messages": [*roles(("user", "a")), {"role": "assistant", "content": "", "tool_calls": calls}]},
            {"messages": roles(("user", "a"), ("assistant", "b")), "tools": [{"name": half}]}]  # fmt: skip
    left, causes = items(OPENAI, rows)
    assert len(left) == 1 and list(causes.values()) == [3] and "half of a character" in next(iter(causes))
    assert items(Dataset(name="d", source="file", path="/x", columns=Columns(prompt="text")), [{"text": half}], "pt")[1] == causes | {
        next(iter(causes)): 1
    }


def test_tools_that_are_no_tools_name_the_row() -> None:
    row = {"conversations": turns(("human", "a"), ("gpt", "b")), "tools": '["add"]'}
    with pytest.raises(InputError, match="talk row 7: a tool of column tools is a text"):
        conversation(row, CHAT, "talk row 7")
    one = {**row, "tools": {"name": "add"}}
    made = conversation(one, CHAT, "")
    assert isinstance(made, Conversation) and made.tools == [{"type": "function", "function": {"name": "add"}}]
    made = conversation({**row, "tools": " "}, CHAT, "")
    assert isinstance(made, Conversation) and not made.tools


def test_what_no_row_said_is_taken_out_of_typed_rows() -> None:
    row = {"system": None, "messages": [{"role": "assistant", "content": None, "tool_calls": [{**ADD, "arguments": {"a": 0, "b": None}}]}]}
    wanted = {"role": "assistant", "tool_calls": [{**ADD, "arguments": {"a": 0}}]}
    assert sources.filled(row) == {"system": None, "messages": [wanted]}


def test_a_header_with_a_column_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("instruction,output,output\na,b,c\n")
    with pytest.raises(InputError, match="the header has column output twice"):
        sources.load(Dataset(name="d", source="file", path=str(path)), None)


def test_other_marks_between_cells_are_told() -> None:
    with pytest.raises(InputError) as caught:
        check_columns(Dataset(name="d", source="file", path="/x"), ["instruction;input;output"], stage="sft")
    assert "between ';'" in caught.value.remedy


@pytest.mark.parametrize(
    ("template", "default", "said", "wanted"),
    [
        ("qwen", "Be brief.", None, None),  # the template has it
        ("qwen", "Be brief.", "", None),
        (None, "Be brief.", None, "Be brief."),
        (None, None, "", ""),
        ("qwen", None, "Be kind.", "Be kind."),
    ],
)
def test_system_texts(template: str | None, default: str | None, said: str | None, wanted: str | None) -> None:
    system = [] if said is None else [("system", said)]
    row = {"conversations": turns(*system, ("human", "a"), ("gpt", "b"))}
    (made,), _ = items(CHAT, [row], template=template, default_system=default)
    assert [message["content"] for message in made.messages if message["role"] == "system"] == ([] if wanted is None else [wanted])


QUESTION = {"messages": roles(("user", "a"), ("assistant", "b"), ("user", "c"))}


@pytest.mark.parametrize("stage", ["grpo", "ppo"])
def test_stages_that_ask_need_no_answers(stage: str) -> None:
    asked = Dataset(name="d", source="file", path="/x", columns=Columns(**{**dict.fromkeys(Columns.model_fields), "prompt": "instruction"}))
    check_columns(asked, ["instruction"], stage=stage)
    with pytest.raises(InputError, match="for response"):
        check_columns(asked, ["instruction"], stage="sft")
    left, causes = items(asked, [{"instruction": "a"}, {"instruction": ""}], stage)
    assert [item.messages for item in left] == [roles(("user", "a"))] and causes == {"empty question": 1}
    left, _ = items(OPENAI, [QUESTION, {"messages": [*QUESTION["messages"], *roles(("assistant", "d"))]}], stage)
    assert [item.asked for item in left] == [3, 3]
    assert items(OPENAI, [QUESTION])[1] == {"no answer at the end": 1}


def test_questions_and_pairs_of_message_lists_are_read_off_their_first_row() -> None:
    row = {"prompt": roles(("user", "a"))}
    left, _ = items(guessed(CHAT.model_copy(update={"guess": True}), list(row), row, "grpo"), [row], "grpo")
    assert left[0].messages == row["prompt"]
    pair = {**row, "chosen": roles(("assistant", "b")), "rejected": roles(("assistant", "c"))}
    left, _ = items(guessed(CHAT.model_copy(update={"guess": True}), list(pair), pair, "dpo"), [pair], "dpo")
    assert left[0].messages == roles(("user", "a"), ("assistant", "b")) and left[0].rejected == pair["rejected"][0]
