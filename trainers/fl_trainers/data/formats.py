"""Rows become conversations: a list of messages as chat templates take them, whatever format they came in."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from fl_trainers.config import Columns, Dataset
from fl_trainers.data import calls
from fl_trainers.data.calls import Message
from fl_trainers.data.sources import Row, describe
from fl_trainers.errors import InputError

THOUGHT = "reasoning_content"
"""Where OpenAI's messages carry an answer's thought beside its content."""
HALVES = "half of a character (a lone surrogate such as \\ud83d)"


@dataclass
class Conversation:
    """Messages with the roles system, user, assistant and tool; the last one is the assistant's, unless the stage only asks."""

    messages: list[Message]
    tools: list[Any] | None = None
    rejected: Message | None = None
    """The worse answer of a pair, whose better one is the last message."""
    liked: bool | None = None
    """Of kto: whether the last answer is a good one."""
    where: str = "a row"
    """Which row it was."""

    @property
    def asked(self) -> int:
        """How many of its messages ask for the last answer."""
        return len(self.messages) - int(self.messages[-1]["role"] == "assistant")


EVALUATION = "in evaluation: "
ASKING = ("grpo", "ppo")
"""Stages whose answers the model writes itself: rows need none."""
SHOWN = 3
"""How many rows are named of each reason."""


@dataclass
class Report:
    """What was left out or shortened, by reason."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)
    """The first rows that it happened to."""
    shortened: set[str] = field(default_factory=set)
    """The reasons that cost a row no more than its end."""
    read: int = 0
    """Rows looked at, good and bad."""

    prefix: str = ""

    def of_evaluation(self) -> Report:
        """The same report, for rows that are not trained on."""
        return Report(self.counts, self.examples, self.shortened, prefix=EVALUATION)

    def count(self, reason: str, where: str, rows: int = 1) -> None:
        """`where` names the row it happened to."""
        cut = reason.startswith(("cut to ", "turns left out"))
        reason = self.prefix + reason
        self.counts[reason] = self.counts.get(reason, 0) + rows
        named = self.examples.setdefault(reason, [])
        if len(named) < SHOWN:
            named.append(where)
        if cut:
            self.shortened.add(reason)

    @property
    def dropped(self) -> dict[str, int]:
        """Rows that would have been trained on and are not, by reason."""
        return {
            reason: count for reason, count in self.counts.items() if reason not in self.shortened and not reason.startswith(EVALUATION)
        }

    def told(self, reason: str) -> str:
        """`3 rows: empty answer (mine row 4, mine row 9, mine row 12)`."""
        count = self.counts[reason]
        return f"{count} {'row' if count == 1 else 'rows'}: {reason} ({self.named(reason)})"

    def named(self, reason: str) -> str:
        """`mine row 4, mine row 9, mine row 12, …`: the first rows that it happened to."""
        named = self.examples[reason]
        return ", ".join(named) + (", …" if self.counts[reason] > len(named) else "")


def check_columns(dataset: Dataset, found: Iterable[str], *, stage: str) -> None:
    """Refuses a data set that lacks the columns its entry names; the message has the nearest column that it has."""
    present, columns, default = sorted(found), dataset.columns, Columns()
    if dataset.formatting in ("sharegpt", "openai"):
        wanted = {"messages": columns.messages or "(none)"}
    elif stage in ("pt", *ASKING):
        wanted = {"prompt": columns.prompt or "(none)"}
    else:
        wanted = {"prompt": columns.prompt or "(none)"} | ({} if dataset.ranking else {"response": columns.response or "(none)"})
        if columns.query is not None and columns.query != default.query:
            wanted["query"] = columns.query
    optional = {"history": columns.history, "system": columns.system, "tools": columns.tools}
    wanted |= {key: name for key, name in optional.items() if name is not None}
    for key, name in wanted.items():
        if name not in present:
            near = difflib.get_close_matches(name, present, 1, 0.5) if len(present) > 1 else []
            hint = f"`columns: {{{key}: {near[0]}}}` in its dataset_info.json entry" if near else _guess(dataset, present)
            raise InputError(f"data set {dataset.name}: no column {name} (for {key}); it has: {', '.join(present) or 'none'}", hint)


def _guess(dataset: Dataset, present: list[str]) -> str:
    if len(present) == 1 and (mark := next((mark for mark in (";", "\t", "|") if mark in present[0]), "")):
        return f"its cells seem to stand between {mark!r}, a .csv file has commas (and a .tsv file tabs)"
    for column in ("conversations", "messages"):
        if column in present and dataset.formatting == "alpaca":
            return f"it looks like `formatting: sharegpt` (or openai) with `columns: {{messages: {column}}}`"
    if "text" in present:
        return "for plain text: `stage: pt` and `columns: {prompt: text}`"
    return "name its columns in its dataset_info.json entry: `columns: {prompt: …, response: …}`"


def text_of(row: Row, column: str | None, where: str) -> str:
    """A text column; null and a missing optional column are the empty text. Raises InputError for any other type."""
    value = row.get(column) if column else None
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InputError(f"{where}: column {column} is {describe(value)}, a text is needed", "quote it in the data, or name another column")
    return value


def raw_text(row: Row, dataset: Dataset, where: str) -> str:
    """The text of a pre-training row."""
    return text_of(row, dataset.columns.prompt, where)


def conversation(
    row: Row, dataset: Dataset, where: str, better: Message | None = None, *, asking: bool = False
) -> Conversation | str:
    """The conversation of a row, or the reason why the row is left out. better: a pair's, from its own column. asking: a question is
    enough."""
    messages = _alpaca(row, dataset, where) if dataset.formatting == "alpaca" else _chat(row, dataset, where)
    if isinstance(messages, str):
        return messages
    if better is not None:
        if dataset.formatting == "alpaca" or dataset.columns.messages == dataset.columns.chosen:
            messages.pop()
        messages.append(better)
    for kind in ("images", "videos", "audios"):
        if row.get(getattr(dataset.columns, kind) or ""):
            return f"a row with {kind}"
    system = text_of(row, dataset.columns.system, where)
    if system and (not messages or messages[0]["role"] != "system"):
        messages.insert(0, {"role": "system", "content": system})
    if asking and messages and messages[-1]["role"] == "assistant" and not messages[-1]["content"] and "tool_calls" not in messages[-1]:
        messages.pop()
    fault = order_fault(messages, asking=asking) if messages else "no messages"
    return fault or Conversation(messages, calls.tools(row, dataset, where), where=where)


def said(talk: Conversation) -> Iterator[str]:
    """Every text of a conversation, tools and calls as JSON."""
    for message in (*talk.messages, *([] if talk.rejected is None else [talk.rejected])):
        yield from (str(message[key]) for key in ("content", THOUGHT) if key in message)
        if "tool_calls" in message:
            yield json.dumps(message["tool_calls"], ensure_ascii=False)
    if talk.tools:
        yield json.dumps(talk.tools, ensure_ascii=False)


def halved(text: str) -> bool:
    """Whether a text holds a half of a character, which JSON can write (\\ud83d) and no tokenizer reads."""
    try:
        return not text.isascii() and not text.encode()
    except UnicodeEncodeError:
        return True


def _alpaca(row: Row, dataset: Dataset, where: str) -> list[Message] | str:
    columns = dataset.columns
    messages: list[Message] = []
    for turn in row.get(columns.history or "") or []:
        if not isinstance(turn, (list, tuple)) or len(turn) != 2 or not all(isinstance(part, str) for part in turn):
            raise InputError(f"{where}: column {columns.history} holds {describe(turn)}, a list of [question, answer] pairs is needed")
        messages += [{"role": "user", "content": turn[0]}, {"role": "assistant", "content": turn[1]}]
    prompt = "\n".join(part for part in (text_of(row, columns.prompt, where), text_of(row, columns.query, where)) if part)
    answer = text_of(row, columns.response, where)
    if not prompt:
        return "empty question"
    return [*messages, {"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


def _chat(row: Row, dataset: Dataset, where: str) -> list[Message] | str:
    column = dataset.columns.messages or ""
    turns = row.get(column)
    if turns is None or (isinstance(turns, list) and not turns):
        return "no messages"
    if not isinstance(turns, list):
        raise InputError(f"{where}: column {column} is {describe(turns)}, a list of messages is needed")
    messages: list[Message] = []
    for turn in turns:
        message = message_of(turn, dataset, where)
        if isinstance(message, str):
            return message
        messages.append(message)
    return messages


def _roles(dataset: Dataset) -> dict[str, str]:
    tags = dataset.tags
    roles = {
        tags.user_tag: "user", tags.assistant_tag: "assistant", tags.observation_tag: "tool",
        tags.function_tag: "function", tags.system_tag: "system",
    }  # fmt: skip
    known = {"user": "user", "assistant": "assistant", "tool": "tool", "system": "system", "developer": "system"}
    return roles | known if dataset.formatting == "openai" else roles


def message_of(turn: Any, dataset: Dataset, where: str) -> Message | str:
    """One message as chat templates take it, or the reason why its row is left out."""
    tags = dataset.tags
    if not isinstance(turn, dict) or tags.role_tag not in turn:
        raise InputError(f"{where}: a message is {describe(turn)}, an object with {tags.role_tag} and {tags.content_tag} is needed",
                         "name other keys by `tags: {role_tag: …, content_tag: …}` in its dataset_info.json entry")  # fmt: skip
    role = _roles(dataset).get(str(turn[tags.role_tag]))
    if role is None:
        return f"unknown role {turn[tags.role_tag]}"
    content, called = turn.get(tags.content_tag), calls.of_turn(turn)
    if isinstance(content, list):  # OpenAI's list of parts
        parts = [part for part in content if isinstance(part, dict)]
        if any(part.get("type") != "text" for part in parts):
            return "a message with images, audio or video"
        content = "".join(str(part.get("text", "")) for part in parts)
    if content is None and called:
        content = ""
    if content is None and tags.content_tag in turn:
        return f"a message of {turn[tags.role_tag]} without content"
    if not isinstance(content, str):
        raise InputError(f"{where}: {tags.content_tag} of a message is {describe(content)}, a text is needed",
                         "name another key by `tags: {content_tag: …}` in its dataset_info.json entry")  # fmt: skip
    if role == "function":
        return calls.spoken(content) if not called else {"role": "assistant", "content": content, "tool_calls": called}
    message: Message = {"role": role, "content": content, **({"tool_calls": called} if called else {})}
    kept = ("name", "tool_call_id") if role == "tool" else (THOUGHT,) if role == "assistant" else ()
    if role == "assistant" and turn.get("weight") == 0:  # OpenAI's way to say that an answer is not to be learned
        message["weight"] = 0
    return message | {key: turn[key] for key in kept if isinstance(turn.get(key), str) and turn[key]}


def order_fault(messages: list[Message], *, asking: bool = False) -> str | None:
    """Why the roles are in no order that can be trained on: user (or tools), then the assistant, and so on, the assistant last (asking: or
    a question)."""
    turns = messages[1:] if messages[0]["role"] == "system" else messages
    expected = "user"
    for message in turns:
        role = "user" if message["role"] == "tool" else message["role"]
        if role == "user" and expected == "assistant" and message["role"] == "tool":
            continue  # several results of one call
        if role != expected:
            return f"wrong order of roles: {message['role']} where {expected} is due"
        expected = "assistant" if role == "user" else "user"
    if asking and turns and turns[-1]["role"] != "assistant":
        return None
    if not turns or turns[-1]["role"] != "assistant":
        return "no answer at the end"
    last = turns[-1]
    if not last["content"].strip() and not last.get("tool_calls"):
        return "empty answer"
    return None
