"""The built-in reward functions, as a table."""

from __future__ import annotations

from pathlib import Path

import pytest

from fl_trainers.errors import InputError
from fl_trainers.progress import Events
from fl_trainers.rewards import BUILT_IN, load


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


@pytest.mark.parametrize(
    ("name", "completion", "answer", "value"),
    [
        ("exact", " It is 4. ", "It is 4.", 1.0),
        ("exact", "<think>2 and 2</think>\n4", "4", 1.0),
        ("exact", "44", "4", 0.0),
        ("contains", "I think it is Paris, France.", "Paris", 1.0),
        ("contains", "<think>Paris?</think> London", "Paris", 0.0),
        ("number", "So 2 + 2 makes 1,004.0", "#### 1004", 1.0),
        ("number", "It is 5", "It is 4", 0.0),
        ("number", "no idea", "4", 0.0),
        ("number", "4", "four", None),
        ("think_format", "<think>well</think> yes", "", 1.0),
        ("think_format", "<think></think> yes", "", 0.0),
        ("think_format", "yes", "", 0.0),
        ("brief", "", "", 1.0),
        ("brief", "x" * 300, "", 0.25),
    ],
)
def test_built_in_rewards(name: str, completion: str, answer: str, value: float | None) -> None:
    assert BUILT_IN[name](completions=[said(completion)], answer=[answer], prompts=[[]]) == [value]


def test_a_file_that_does_not_parse_is_told_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "r.py"
    file.write_text("x = 1\ndef f(:\n")
    with pytest.raises(InputError, match=r"r\.py line 2: SyntaxError"):
        load([f"{file}:f"], Events(tmp_path / "events.jsonl"))
