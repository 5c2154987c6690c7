"""What a data set without an entry of dataset_info.json is: read off its columns and its first row. Pure."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from fl_trainers.config import Columns, Dataset, Tags

ROLES = Tags(
    role_tag="role", content_tag="content", user_tag="user", assistant_tag="assistant", observation_tag="tool", function_tag="function",
    system_tag="system",
)  # fmt: skip
"""OpenAI's names."""
QUESTIONS = ("instruction", "prompt", "question", "query", "problem")
ANSWERS = ("output", "response", "completion", "answer", "solution")
TEXTS = ("text", "content", "document")
MARKS = ("kto_tag", "label")


def guessed(dataset: Dataset, columns: Collection[str], first: dict[str, Any], stage: str) -> Dataset:
    """The data set with formatting, columns and tags, where its entry does not say them; unchanged where it does, or where nothing fits."""
    if not dataset.guess:
        return dataset

    def named(names: tuple[str, ...]) -> str | None:
        return next((name for name in names if name in columns), None)

    beside = {name: name for name in ("system", "tools") if name in columns}
    pair = {"chosen": "chosen", "rejected": "rejected"} if {"chosen", "rejected"} <= set(columns) and stage not in ("sft", "kto") else {}
    mark = {"kto_tag": named(MARKS)} if stage == "kto" else {}
    none = dict.fromkeys(Columns.model_fields)
    whole = isinstance(first.get("chosen"), list) and len(first["chosen"]) > 1
    turns_of = "prompt" if isinstance(first.get("prompt"), list) else None
    talk = "chosen" if pair and whole else turns_of or named(("messages", "conversations"))
    if stage == "pt":
        found = {"prompt": named(TEXTS) or "text"}
        return dataset.model_copy(update={"columns": Columns(**{**none, **found})})
    if talk is not None:
        turns = first.get(talk)
        turn = turns[0] if isinstance(turns, list) and turns and isinstance(turns[0], dict) else {}
        tags = ROLES if "role" in turn else Tags()
        made: dict[str, Any] = {"formatting": "openai" if "role" in turn else "sharegpt", "tags": tags}
        found = {"messages": talk}
    else:
        made = {"formatting": "alpaca"}
        found = {"prompt": named(QUESTIONS) or "instruction", "response": named(ANSWERS) or "output"}
        beside |= {name: column for name, column in (("query", "input"), ("history", "history")) if column in columns}
    return dataset.model_copy(update={**made, "ranking": bool(pair), "columns": Columns(**{**none, **found, **beside, **pair, **mark})})
