"""The trainer's data path without torch: sources, formats, cutting, packing, mixing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_trainers.config import Columns, Config, Dataset, Tags
from fl_trainers.data import mix, packing, pipeline, sources
from fl_trainers.data.encode import IGNORE, Encoded, Settings, assemble, shares
from fl_trainers.data.formats import Conversation, Report, check_columns, conversation, order_fault
from fl_trainers.data.guess import guessed
from fl_trainers.errors import InputError

SHARES = [
    # question, answer, room -> kept of the question, kept of the answer
    ((10, 10, 100), (10, 10)),
    ((200, 10, 100), (90, 10)),  # a short answer is kept whole
    ((10, 200, 100), (10, 90)),  # a short question is kept whole
    ((200, 200, 100), (50, 50)),  # both long: in proportion
    ((300, 100, 100), (75, 25)),
    ((60, 60, 100), (50, 50)),
    ((0, 200, 100), (0, 100)),
    ((200, 49, 100), (51, 49)),
    ((200, 50, 100), (80, 20)),  # half the room is not short any more
]


@pytest.mark.parametrize(("lengths", "kept"), SHARES)
def test_shares(lengths: tuple[int, int, int], kept: tuple[int, int]) -> None:
    assert shares(*lengths) == kept


@given(st.integers(0, 500), st.integers(1, 500), st.integers(1, 300))
def test_shares_fit(source: int, target: int, room: int) -> None:
    kept_source, kept_target = shares(source, target, room)
    assert 0 <= kept_source <= source and 0 <= kept_target <= target
    assert kept_source + kept_target <= room
    if source + target <= room:
        assert (kept_source, kept_target) == (source, target)


PAIRS = [([1, 2, 3], [4, 5]), ([6, 7], [8, 9])]


def assembled(**more: Any) -> tuple[Encoded, Report]:
    report = Report()
    settings = Settings(**{"cutoff_len": 100, **more})
    return assemble(PAIRS, [True, True], 99, settings, report, "row 1"), report


def test_every_answer_counts() -> None:
    row, report = assembled()
    assert row.input_ids == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert row.labels == [IGNORE] * 3 + [4, 5] + [IGNORE] * 2 + [8, 9]
    assert not report.counts


def test_mask_history_counts_the_last_answer_and_keeps_the_end() -> None:
    row, _ = assembled(mask_history=True)
    assert row.labels == [IGNORE] * 7 + [8, 9]
    cut, report = assembled(mask_history=True, cutoff_len=4)
    assert cut.input_ids == [6, 7, 8, 9] and cut.labels == [IGNORE, IGNORE, 8, 9]
    assert report.counts == {"cut to 4 tokens": 1, "turns left out by the cut": 1}


def test_turns_are_taken_until_the_row_is_full() -> None:
    row, report = assembled(cutoff_len=7)
    assert row.input_ids == [1, 2, 3, 4, 5, 6, 8]
    row, report = assembled(cutoff_len=5)
    assert row.input_ids == [1, 2, 3, 4, 5]
    assert report.counts["turns left out by the cut"] == 1


def test_train_on_prompt_counts_questions_too() -> None:
    row, _ = assembled(train_on_prompt=True)
    assert row.labels == row.input_ids


def test_an_answer_that_the_template_leaves_open_gets_an_end() -> None:
    row = assemble(PAIRS, [False, False], 99, Settings(100), Report(), "row 1")
    assert row.input_ids[-1] == row.labels[-1] == 99
    assert row.labels[5] == 99  # where the next question begins
    short = assemble(PAIRS[:1], [False], 99, Settings(3), Report(), "row 1")
    assert len(short.input_ids) == 3 and short.input_ids[-1] == 99


@given(st.lists(st.integers(1, 60), max_size=60), st.integers(10, 60))
def test_knapsacks_hold_every_row_once(lengths: list[int], capacity: int) -> None:
    packs = packing.knapsacks(lengths, capacity)
    assert sorted(index for pack in packs for index in pack) == [i for i, length in enumerate(lengths) if length <= capacity]
    assert all(sum(lengths[index] for index in pack) <= capacity for pack in packs)


def test_knapsacks_are_greedy() -> None:
    assert packing.knapsacks([5, 9, 1, 4], 10) == [[1, 2], [0, 3]]


def test_packs_know_their_parts() -> None:
    rows = [Encoded([1, 1], [1, 1]), Encoded([2, 2, 2], [2, 2, 2])]
    assert packing.pack(rows, 8) == [(Encoded([2, 2, 2, 1, 1], [2, 2, 2, 1, 1]), [3, 2])]


def test_blocks_are_whole() -> None:
    assert list(packing.blocks([[1, 2, 0], [3, 0], [4, 5, 6, 0]], 4)) == [[1, 2, 0, 3], [0, 4, 5, 6]]
    assert list(packing.blocks([[1, 2, 0], [3, 0]], 8)) == [[1, 2, 0, 3, 0]]  # the only one


class Letters:
    """A tokenizer whose tokens are letters; ^ begins a text and $ ends one."""

    bos_token_id, eos_token_id = ord("^"), ord("$")

    def __init__(self, begins: bool) -> None:
        self.add_bos_token = begins

    def __call__(self, texts: list[str], **_: object) -> dict[str, list[list[int]]]:
        return {"input_ids": [[ord(letter) for letter in text] for text in texts]}

    def get_vocab(self) -> dict[str, int]:
        return {"<|end_of_text|>": ord("!")}


TEXTS = ("abcdef", "g", "hijklmnop", "qr", "stuvw")
PEERS_ROWS = {
    # made by LLaMA-Factory 0.9.5: PretrainDatasetProcessor.preprocess_dataset with such a tokenizer, batches of three texts, cutoff_len 5
    (False, True): "abcde f$g$h ijklm qr$st",
    (False, False): "abcde g$ hijkl qr$ stuvw",
    (True, True): "^bcde ^$g$h ^jklm ^r$st",
    (True, False): "^abcd ^g$ ^hijk ^qr$ ^stuv",
}


def pretraining_rows(begins: bool, packing: bool, report: Report, **more: object) -> list[str]:
    data: dict[str, object] = {"cutoff_len": 5, "packing": packing, "preprocessing_batch_size": 3, **more}
    config = Config.model_validate({
        "run": {"name": "r", "lane": "cpu", "stack": "s", "events": "e"}, "model": {"name": "m", "path": "m", "kind": "tiny"},
        "data": data, "method": {"stage": "pt", "finetuning_type": "full"}, "training": {"output_dir": "o", "arguments": {}},
    })  # fmt: skip
    items: list[pipeline.Item] = [(f"row {number}", text) for number, text in enumerate(TEXTS, 1)]
    rows = pipeline.tokenized(config, Letters(begins), items, report)
    assert all(row["labels"] == row["input_ids"] for row in rows)
    return ["".join(map(chr, row["input_ids"])) for row in rows]


@pytest.mark.parametrize(("begins", "packing"), PEERS_ROWS)
def test_texts_become_the_rows_that_the_peer_makes_of_them(begins: bool, packing: bool) -> None:
    report = Report()
    assert pretraining_rows(begins, packing, report) == PEERS_ROWS[begins, packing].split()
    if packing:
        assert report.examples == {"cut to the last whole block": ["row 3", "row 5"]}
    else:
        assert report.counts == {"cut to 5 tokens": 3}
    assert not report.dropped


def test_texts_of_llama3_end_with_the_end_of_texts() -> None:
    assert pretraining_rows(False, False, Report(), template="llama3")[1] == "g!"


def test_mixing() -> None:
    sets = [["a1", "a2", "a3"], ["b1"]]
    assert mix.mix(sets, "concat", (), 1) == ["a1", "a2", "a3", "b1"]
    assert mix.mix(sets, "interleave_under", (), 1) == ["a1", "b1"]
    assert mix.mix(sets, "interleave_over", (), 1) == ["a1", "b1", "a2", "b1", "a3", "b1"]
    assert mix.mix(sets, "interleave_once", (), 1) == ["a1", "b1", "a2", "a3"]


@given(st.lists(st.lists(st.integers(), max_size=6), min_size=1, max_size=3))
def test_interleaving_loses_and_doubles_no_row_but_where_it_says_so(sets: list[list[int]]) -> None:
    named = [[(number, at) for at in range(len(rows))] for number, rows in enumerate(sets)]
    whole = sorted(row for rows in named for row in rows)
    assert sorted(mix.mix(named, "interleave_once", (), 1)) == whole
    under = mix.mix(named, "interleave_under", (), 1)
    assert len(set(under)) == len(under)
    if all(named):
        assert sorted(set(mix.mix(named, "interleave_over", (), 1))) == whole


@given(st.lists(st.integers(), max_size=60), st.integers(1, 70), st.integers(0, 5))
def test_a_shuffled_stream_has_every_row_no_earlier_than_the_buffer_allows(rows: list[int], size: int, seed: int) -> None:
    made = list(mix.shuffled(enumerate(rows), size, seed))
    assert sorted(made) == list(enumerate(rows)) and made == list(mix.shuffled(enumerate(rows), size, seed))
    assert all(at <= place + size for place, (at, _) in enumerate(made))


def test_resample_repeats_only_when_it_must() -> None:
    assert sorted(mix.resample([1, 2, 3], 3, 1)) == [1, 2, 3]
    assert len(set(mix.resample(range(100), 40, 1))) == 40
    more = mix.resample([1, 2, 3], 7, 1)
    assert len(more) == 7 and set(more) == {1, 2, 3}


CHAT = Dataset(name="talk", source="file", path="/x", formatting="sharegpt", columns=Columns(messages="conversations"))
ALPACA = Dataset(name="sums", source="file", path="/x")


def said(*turns: tuple[str, str]) -> dict[str, Any]:
    return {"conversations": [{"from": who, "value": what} for who, what in turns]}


FAULTS = [
    (said(("gpt", "b")), "wrong order of roles: assistant where user is due"),
    (said(("human", "a"), ("human", "a"), ("gpt", "b")), "wrong order of roles: user where assistant is due"),
    (said(("human", "a")), "no answer at the end"),
    (said(("human", "a"), ("gpt", " ")), "empty answer"),
    (said(("human", "a"), ("robot", "b")), "unknown role robot"),
    (said(("human", "a"), ("function_call", "no json")), "a function call that is not JSON"),
    ({"conversations": []}, "no messages"),
]


@pytest.mark.parametrize(("row", "reason"), FAULTS)
def test_rows_that_cannot_be_used(row: dict[str, Any], reason: str) -> None:
    assert conversation(row, CHAT, "talk row 1") == reason


def test_tools_results_and_calls() -> None:
    call = '{"name": "add", "arguments": {"a": 1}}'
    made = conversation(said(("human", "a"), ("function_call", call), ("observation", "1"), ("observation", "2"), ("gpt", "b")), CHAT, "")
    assert isinstance(made, Conversation)
    assert [message["role"] for message in made.messages] == ["user", "assistant", "tool", "tool", "assistant"]
    assert made.messages[1]["tool_calls"][0]["function"] == {"name": "add", "arguments": {"a": 1}}
    assert order_fault(made.messages) is None


def test_other_tags_and_a_system_column() -> None:
    tags = Tags(role_tag="role", content_tag="content", user_tag="user", assistant_tag="bot")
    chat = CHAT.model_copy(update={"tags": tags, "columns": Columns(messages="talk", system="head")})
    row = {"talk": [{"role": "user", "content": "a"}, {"role": "bot", "content": "b"}], "head": "Be kind."}
    made = conversation(row, chat, "")
    assert isinstance(made, Conversation) and made.messages[0] == {"role": "system", "content": "Be kind."}


def test_a_value_that_is_no_text_names_row_and_value() -> None:
    with pytest.raises(InputError, match=r"row 3: column output is a list \(\[1, 2\]\)"):
        conversation({"instruction": "a", "output": [1, 2]}, ALPACA, "row 3")


@pytest.mark.parametrize(
    ("found", "hint"),
    [
        (["instruction", "outptu"], "response: outptu"),
        (["conversations"], "formatting: sharegpt"),
        (["text"], "stage: pt"),
        ([], "name its columns"),
    ],
)
def test_missing_columns_name_the_nearest(found: list[str], hint: str) -> None:
    with pytest.raises(InputError) as caught:
        check_columns(ALPACA, found, stage="sft")
    assert hint in caught.value.remedy


def load(tmp_path: Path, name: str, text: str) -> list[dict[str, Any]]:
    path = tmp_path / name
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    return list(sources.load(Dataset(name="d", source="file", path=str(path)), None))


def test_files_of_every_direct_kind(tmp_path: Path) -> None:
    row = {"instruction": "a", "output": "b"}
    assert load(tmp_path, "a.json", json.dumps([row])) == [row]
    assert load(tmp_path, "b.json", json.dumps({"data": [row, row]})) == [row, row]
    assert load(tmp_path, "c.json", json.dumps(row) + "\n" + json.dumps(row)) == [row, row]
    assert load(tmp_path, "d.jsonl", "\ufeff" + json.dumps(row) + "\n\n") == [row]
    assert load(tmp_path, "e.csv", 'instruction,output\na,"b,\nc"\n1,NA\n') == [
        {"instruction": "a", "output": "b,\nc"},
        {"instruction": "1", "output": "NA"},
    ]
    assert load(tmp_path, "f.tsv", "instruction\toutput\na\tb\n") == [row]
    assert load(tmp_path, "g.txt", "one\n\ntwo\n") == [{"text": "one"}, {"text": "two"}]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", '[{"a": }]', "line 1, column 8"),
        ("b.jsonl", '{"a": 1}\n{"a"', "line 2 is not JSON"),
        ("c.json", "[1]", r"row 1 is a number \(1\)"),
        ("d.json", '"text"', "a list of rows is needed"),
        ("e.json", "[" * 100000, "nested too deeply|line 1"),
        ("f.csv", "a,b\n1\n", "line 2 has not as many cells as the header"),
        ("g.json", '["\udcff"]', "is not UTF-8"),
        ("h.xyz", "", "of the types .xyz"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load(tmp_path, name, text)


def test_a_missing_file_names_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "train.json").write_text("[]")
    with pytest.raises(InputError) as caught:
        sources.load(Dataset(name="d", source="file", path=str(tmp_path / "trian.json")), None)
    assert caught.value.remedy == f"there is {tmp_path / 'train.json'}"


GUESSES: list[tuple[dict[str, Any], str, dict[str, Any]]] = [
    ({"instruction": "a", "input": "", "output": "b"}, "sft", {"prompt": "instruction", "query": "input", "response": "output"}),
    ({"question": "a", "answer": "b", "system": "c"}, "sft", {"prompt": "question", "response": "answer", "system": "system"}),
    ({"conversations": [{"from": "human", "value": "a"}], "tools": "[]"}, "sft", {"messages": "conversations", "tools": "tools"}),
    ({"messages": [{"role": "user", "content": "a"}]}, "sft", {"messages": "messages"}),
    ({"text": "a", "id": 1}, "pt", {"prompt": "text"}),
    ({"prompt": "a", "chosen": "b", "rejected": "c"}, "dpo", {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"}),
    ({"prompt": "a", "completion": "b", "label": True}, "kto", {"prompt": "prompt", "response": "completion", "kto_tag": "label"}),
]


@pytest.mark.parametrize(("row", "stage", "wanted"), GUESSES)
def test_a_data_set_without_an_entry_is_read_off_its_first_row(row: dict[str, Any], stage: str, wanted: dict[str, Any]) -> None:
    made = guessed(ALPACA.model_copy(update={"guess": True}), list(row), row, stage)
    found = {name: column for name, column in made.columns.model_dump().items() if column is not None}
    assert {name: found.get(name) for name in wanted} == wanted
    assert made.ranking is (stage == "dpo")
    formatting = "sharegpt" if "conversations" in row else "openai" if "messages" in row else "alpaca"
    assert made.formatting == formatting and made.tags.role_tag == ("role" if formatting == "openai" else "from")
    assert guessed(ALPACA, list(row), row, stage) == ALPACA


def test_rows_with_media_are_left_out_and_not_trained_as_text() -> None:
    dataset = ALPACA.model_copy(update={"columns": Columns(images="images")})
    row = {"instruction": "<image>What?", "output": "A cat.", "images": ["cat.jpg"]}
    assert conversation(row, dataset, "row 1") == "a row with images"
    assert isinstance(conversation({**row, "images": []}, dataset, "row 1"), Conversation)
