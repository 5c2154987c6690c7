"""Conversations become token ids with labels: the loss counts answers and their end, unless the recipe says otherwise."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fl_trainers.config import Config
from fl_trainers.data import calls, templates
from fl_trainers.data.formats import THOUGHT, Conversation, Report
from fl_trainers.data.templates import Format
from fl_trainers.errors import InputError

IGNORE = -100
"""The label of a token that does not count."""
NOTHING_LEFT = "nothing to learn from is left"
THINK = ("<think>\n", "\n</think>\n\n")
"""Around a thought, where the format has no words of its own for it."""
MARK = "\ue000"
"""A character that nobody writes."""
CHANGED = "the chat template changes earlier answers"
TAG = re.compile(r"<[^<>\s]+>|◁[^◁▷\s]+▷")


@dataclass(frozen=True)
class Turn:
    """What the model is given and what it shall answer, both as text."""

    source: str
    target: str
    closed: bool
    """Whether the template ends the answer with something of its own."""
    learned: bool = True
    """False: its message has `weight: 0`."""


@dataclass
class Encoded:
    """One training row."""

    input_ids: list[int]
    labels: list[int]


@dataclass(frozen=True)
class Settings:
    """What the recipe says about labels and lengths."""

    cutoff_len: int
    train_on_prompt: bool = False
    mask_history: bool = False
    enable_thinking: bool | None = None
    chat: Format | None = None
    """A bundled template: all that it writes for an answer counts, line breaks at its end too, as LLaMA-Factory counts it. With the
    tokenizer's own template an answer ends with its end token."""
    one_thought: bool = False
    """Only the last answer is told how to think, earlier ones lose their thoughts: bundled templates, where no other answer is learned."""
    preserve_thinking: bool = False
    """Earlier answers stay as they are then."""


def settings_of(config: Config) -> Settings:
    """What encoding needs of the config."""
    data = config.data
    last_only = config.method.stage not in ("sft", "pt") or (data.mask_history and not data.preserve_thinking)
    return Settings(
        data.cutoff_len, data.train_on_prompt, data.mask_history, data.enable_thinking,
        chat=templates.chosen(data.template, data.tool_format, data.default_system),
        one_thought=last_only, preserve_thinking=data.preserve_thinking,
    )  # fmt: skip


def render(tokenizer: Any, conversation: Conversation, upto: int, *, prompt: bool, thinking: Mapping[str, Any]) -> str:
    """The first `upto` messages as text; with `prompt` up to where the answer begins. thinking: more names for the template.

    Raises InputError, with the row, where the template has no way to write a role, a call or an order of turns.
    """
    messages = conversation.messages[:upto]
    try:
        return str(
            tokenizer.apply_chat_template(messages, tools=conversation.tools, tokenize=False, add_generation_prompt=prompt, **thinking)
        )
    except Exception as error:  # jinja2's classes, which are not imported for this
        texts = [calls.as_text(message) for message in messages]
        if isinstance(error, TypeError) and texts != messages:  # DeepSeek's templates join arguments to other text, as OpenAI sends them
            return render(tokenizer, replace(conversation, messages=texts), upto, prompt=prompt, thinking=thinking)
        if type(error).__name__ not in ("TemplateError", "UndefinedError", "TemplateRuntimeError"):
            raise
        raise InputError(f"{conversation.where}: the chat template refuses it: {error}",
                         "rows without it, or a `template:` that has a way to write it") from error  # fmt: skip


def thinking_of(conversation: Conversation, settings: Settings) -> dict[str, Any]:
    """What the template is told of thoughts: what the recipe says, and where it leaves it to the rows (null), what this row does.

    A bundled template decides answer by answer; another one has a switch only, which is off for a row without any thought.
    """
    wanted, chat = settings.enable_thinking, settings.chat
    if chat is not None and chat.thinking:
        told: dict[str, Any] = {"enable_thinking": wanted}
        if settings.one_thought:
            told["thought_from"] = len(conversation.messages) - 1 - (conversation.messages[0]["role"] == "system")
        return told
    if wanted is not None:
        return {"enable_thinking": wanted}
    said = (str(message["content"]) for message in conversation.messages if message["role"] == "assistant")
    return {} if any("</think>" in text for text in said) else {"enable_thinking": False}


def asked(config: Config) -> dict[str, Any]:
    """What the template is told of thoughts when a question is asked."""
    wanted = config.data.enable_thinking
    return {} if wanted is None else {"enable_thinking": wanted}


def with_thoughts(tokenizer: Any, conversation: Conversation, chat: Format | None) -> Conversation:
    """Thoughts that stand beside the answers are written before them, unless the tokenizer's own template asks for them where they are."""
    if not any(THOUGHT in message for message in conversation.messages):
        return conversation
    if chat is None and THOUGHT in str(tokenizer.chat_template):
        return conversation
    opened, closed = (chat.thinking if chat is not None else None) or THINK
    written = [{**message, "content": f"{opened}{message[THOUGHT]}{closed}{message['content']}"} if THOUGHT in message else message
               for message in conversation.messages]  # fmt: skip
    return replace(conversation, messages=written)


def without_old_thoughts(conversation: Conversation, settings: Settings) -> Conversation:
    """With `one_thought` and a bundled template that has thoughts: those of earlier answers are gone."""
    if not settings.one_thought or settings.preserve_thinking or settings.chat is None or not settings.chat.thinking:
        return conversation
    mark = settings.chat.thinking[1].strip()
    old = [
        {**message, "content": str(message["content"]).split(mark)[-1].lstrip("\n")} if message["role"] == "assistant" else message
        for message in conversation.messages[:-1]
    ]
    return replace(conversation, messages=[*old, conversation.messages[-1]])


def turns(tokenizer: Any, conversation: Conversation, settings: Settings) -> list[Turn]:
    """Cuts the rendered conversation at the borders of its answers, found by rendering every beginning of it.

    Raises ValueError when an answer cannot be found in the whole: the template rewrote it.
    """
    conversation = without_old_thoughts(with_thoughts(tokenizer, conversation, settings.chat), settings)
    thinking = thinking_of(conversation, settings)
    count = len(conversation.messages)
    full = render(tokenizer, conversation, count, prompt=False, thinking=thinking)
    found: list[Turn] = []
    position = 0
    for index, message in enumerate(conversation.messages):
        if message["role"] != "assistant":
            continue
        told = {} if index < count - 1 and "thought_from" in thinking else thinking  # an earlier answer is not told how to think
        before = render(tokenizer, conversation, index, prompt=True, thinking=told)
        start = _outside(before, _common(before, full))
        if start < len(before) and start < len(render(tokenizer, conversation, index, prompt=False, thinking=told)):
            raise ValueError("the chat template changes earlier turns")
        after = full if index == count - 1 else render(tokenizer, conversation, index + 1, prompt=False, thinking=thinking)
        if settings.chat is not None and full.startswith(after):
            end, closed = len(after), not settings.chat.open
            start += _given_thought(full, start, settings, str(message["content"]))
        elif full.startswith(after) and "tool_calls" in message:
            end, closed = _end_of_call(tokenizer, conversation, index, after, thinking)
        elif full.startswith(after):
            end, closed = _end(after, start, str(message["content"]))
        else:
            end, closed = _end_inside(tokenizer, conversation, index, full, thinking)
        if end < start:
            raise ValueError(CHANGED)
        found.append(Turn(full[position:start], full[start:end], closed, message.get("weight") != 0))
        position = end
    return found


def _given_thought(full: str, start: int, settings: Settings, content: str) -> int:
    """The length of an empty thought that was written because the row has none: where the recipe leaves it open, it is not learned."""
    empty = settings.chat.empty_thought if settings.chat is not None else ""
    added = settings.enable_thinking is None and bool(empty) and full.startswith(empty, start) and not content.startswith(empty)
    return len(empty) if added else 0


def _common(first: str, second: str) -> int:
    """How many characters two texts have in common from their start."""
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if first[low:middle] == second[low:middle] else (low, middle - 1)
    return low


def _outside(before: str, at: int) -> int:
    """`at`, or where the tag begins that it would lie in: a question that ends with <think> and an answer that begins with <tool_call>
    have `<t` in common, which is no part of the question."""
    return next((tag.start() for tag in TAG.finditer(before, max(at - 60, 0)) if tag.start() < at < tag.end()), at)


def _end(full: str, start: int, content: str) -> tuple[int, bool]:
    """Where the last answer and its end token end, and whether there is one. Line breaks after it are no part of it."""
    visible = content.strip()
    at = full.find(visible, start) if visible else -1
    tail = full[at + len(visible) :] if at >= 0 else full[start:]
    return (len(full.rstrip()), True) if tail.strip() else (len(full), False)


def _behind(tokenizer: Any, conversation: Conversation, index: int, upto: int, thinking: Mapping[str, Any]) -> str | None:
    """What the template writes behind an answer of the first `upto` messages: a mark in its place shows it. None: it refuses the mark."""
    messages = [*conversation.messages[:index], {"role": "assistant", "content": MARK}, *conversation.messages[index + 1 :]]
    try:
        text = render(tokenizer, replace(conversation, messages=messages), upto, prompt=False, thinking=thinking)
    except InputError:  # a result without a call
        return None
    return text.rpartition(MARK)[2] if MARK in text else None


def _end_of_call(tokenizer: Any, conversation: Conversation, index: int, after: str, thinking: Mapping[str, Any]) -> tuple[int, bool]:
    """As `_end`, of an answer whose text the template makes of its calls."""
    tail = _behind(tokenizer, conversation, index, index + 1, thinking)
    return (len(after), False) if tail is not None and not tail.strip() else (len(after.rstrip()), True)


def _end_inside(tokenizer: Any, conversation: Conversation, index: int, full: str, thinking: Mapping[str, Any]) -> tuple[int, bool]:
    """As `_end`, of an answer that reads otherwise where nothing follows it: its thought is gone in the whole, or its end is another."""
    behind = _behind(tokenizer, conversation, index, len(conversation.messages), thinking)
    tail = _behind(tokenizer, conversation, index, index + 1, thinking)
    if behind is None or tail is None:
        raise ValueError(CHANGED)
    tail = tail.rstrip()
    tag = TAG.match(behind) if tail else None
    ended = max(tag.end() if tag else 0, len(tail[: _outside(tail, _common(tail, behind))].rstrip()))
    if not full.endswith(behind[ended:]):
        raise ValueError(CHANGED)
    return len(full) - len(behind) + ended, bool(ended)


def shares(source: int, target: int, room: int) -> tuple[int, int]:
    """How many tokens question and answer keep of `room`: LLaMA-Factory's rule.

    A short answer (under half the room) is kept and the question cut, else a short question is kept and the answer cut,
    else both are cut in proportion.
    """
    if target * 2 < room:
        most = room
    elif source * 2 < room:
        most = room - source
    else:
        most = int(room * (target / (source + target)))
    kept = min(most, target)
    return min(max(room - kept, 0), source), kept


def assemble(
    pairs: Sequence[tuple[list[int], list[int]]], closed: Sequence[bool], eos: int, settings: Settings, report: Report, where: str,
    learned: Sequence[bool] = (),
) -> Encoded:  # fmt: skip
    """Joins the turns of a conversation until `cutoff_len` is full; from the end where only the last answer counts. learned: of each
    answer, whether it counts at all."""
    row = Encoded([], [])
    learned = learned or [True] * len(pairs)
    length = sum(len(source) + len(target) for source, target in pairs) + (not closed[-1])
    order = range(len(pairs))[::-1] if settings.mask_history else range(len(pairs))
    room = settings.cutoff_len - (not closed[-1])
    left_out = False
    for place, index in enumerate(order):
        if room <= 0:
            left_out = True
            break
        source, target = pairs[index]
        kept_source, kept_target = shares(len(source), len(target), room)
        room -= kept_source + kept_target
        source, target = source[:kept_source], target[:kept_target]
        labels = list(source) if settings.train_on_prompt else [IGNORE] * len(source)
        if index and not closed[index - 1] and source and not settings.train_on_prompt and not settings.mask_history:
            labels[0] = eos if learned[index - 1] else IGNORE  # the template leaves the end of an answer to the next turn
        labels += target if learned[index] and (not settings.mask_history or place == 0) else [IGNORE] * len(target)
        if settings.mask_history:
            row.input_ids, row.labels = source + target + row.input_ids, labels + row.labels
        else:
            row.input_ids += source + target
            row.labels += labels
    if not closed[-1]:
        row.input_ids.append(eos)
        row.labels.append(eos if learned[-1] else IGNORE)
    if length > settings.cutoff_len:
        report.count(f"cut to {settings.cutoff_len} tokens", where)
    if left_out:
        report.count("turns left out by the cut", where)
    return row


def encode(tokenizer: Any, rows: Sequence[tuple[str, Conversation]], settings: Settings, report: Report) -> list[Encoded]:
    """Encodes a batch of (where, conversation). Question and answer are tokenized apart, as they are when the model is asked."""
    cut: list[tuple[str, list[Turn]]] = []
    for where, conversation in rows:
        try:
            cut.append((where, turns(tokenizer, conversation, settings)))
        except ValueError as error:
            report.count(str(error), where)
    texts = [text for _, parts in cut for turn in parts for text in (turn.source, turn.target)]
    ids = tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"] if texts else []
    encoded: list[Encoded] = []
    at = 0
    for where, parts in cut:
        pairs = [(ids[at + 2 * number], ids[at + 2 * number + 1]) for number in range(len(parts))]
        at += 2 * len(parts)
        row = assemble(pairs, [turn.closed for turn in parts], tokenizer.eos_token_id, settings, report, where,
                       [turn.learned for turn in parts])  # fmt: skip
        if all(label == IGNORE for label in row.labels[1:]):  # nothing foretells the first token
            report.count(NOTHING_LEFT, where)
        else:
            encoded.append(row)
    return encoded
