"""What the templates of real models say of answers: run inside the training environment, whose TRL brings copies of their chat templates,
and for many a second one that marks the answers (`{% generation %}`), which transformers turns into a mask."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any

from fl_trainers import tiny
from fl_trainers.data import templates
from fl_trainers.data.encode import IGNORE, Settings, encode
from fl_trainers.data.formats import Conversation, Report

Talk = tuple[list[dict[str, Any]], list[Any] | None]
ADD = [{"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": {"type": "object", "properties": {
    "a": {"type": "integer", "description": "One."}}, "required": ["a"]}}}]  # fmt: skip


def _user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def _said(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


CALL = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}]}
RESULT = {"role": "tool", "content": "42", "name": "add"}
TALKS: dict[str, Talk] = {
    "one": ([_user("Q one"), _said("Answer one.")], None),
    "system": ([{"role": "system", "content": "Be kind."}, _user("Q one"), _said("Answer one.")], None),
    "turns": ([_user("Q one"), _said("Answer one."), _user("Q two"), _said("b > a"), _user("Same."), _said("Same.")], None),
    "thoughts": ([_user("Q one"), _said("<think>\nhm one\n</think>\n\nAnswer one."), _user("Q two"),
                  _said("<think>\nhm two\n</think>\n\nAnswer two.")], None),
    "calls": ([_user("Q one"), CALL, RESULT, _said("It is 42.")], ADD),
    "call": ([_user("Q one"), CALL], ADD),
}  # fmt: skip


def _tokenizer(text: str, more: str = "") -> Any:
    """Tokens are the template's tags and single bytes, so that no token lies across the border of an answer."""
    size, tiny.VOCABULARY = tiny.VOCABULARY, 0
    try:
        made = tiny.tokenizer([], text + more)
    finally:
        tiny.VOCABULARY = size
    made.chat_template = text
    return made


def _folder() -> Path:
    import trl

    return Path(trl.__file__).parent / "chat_templates"


def _runs(tokenizer: Any, ids: list[int], counts: list[bool]) -> list[str]:
    return [tokenizer.decode([ids[at] for at, _ in run]) for wanted, run in groupby(enumerate(counts), lambda pair: pair[1]) if wanted]


def _ours(tokenizer: Any, talk: Talk, thinking: bool) -> list[str]:
    messages, tools = talk
    report = Report()
    made = encode(tokenizer, [("row", Conversation([dict(message) for message in messages], tools))],
                  Settings(10**6, enable_thinking=thinking), report)  # fmt: skip
    return _runs(tokenizer, made[0].input_ids, [label != IGNORE for label in made[0].labels]) if made else [*report.counts]


def spans(name: str, talk: str, thinking: bool = True) -> list[str]:
    """What is trained of a conversation by the own template of a model."""
    return _ours(_tokenizer((_folder() / f"{name}.jinja").read_text(encoding="utf-8")), TALKS[talk], thinking)


def marked(names: list[str]) -> dict[str, dict[str, list[list[str]]]]:
    """By model and conversation: what is trained of it by the model's own template, and the answers that its marked template has, without
    what the model is given (its header, `<think>`) and line breaks at their end. Conversations that the two write otherwise, or that one
    refuses, are left out."""
    from jinja2.exceptions import TemplateError

    found: dict[str, dict[str, list[list[str]]]] = {}
    for name in names:
        own, other = ((_folder() / f"{name}{kind}.jinja").read_text(encoding="utf-8") for kind in ("", "_training"))
        for key, talk in TALKS.items():
            messages, tools = talk
            tokenizer = _tokenizer(own, other)
            asked = {"tools": tools, "enable_thinking": True}
            try:
                text = tokenizer.apply_chat_template(messages, tokenize=False, **asked)
            except (TemplateError, TypeError):
                continue
            given = [tokenizer.apply_chat_template(messages[:at], tokenize=False, add_generation_prompt=True, **asked)
                     for at, message in enumerate(messages) if message["role"] == "assistant"]  # fmt: skip
            asked |= {"chat_template": other, "return_assistant_tokens_mask": True, "return_dict": True}
            wanted = tokenizer.apply_chat_template(messages, **asked)
            if tokenizer.decode(wanted["input_ids"]) != text:
                continue
            marks = groupby(enumerate(wanted["assistant_masks"]), lambda pair: pair[1])
            places = [[at for at, _ in run] for mark, run in marks if mark]
            answers = []
            for before, place in zip(given, places, strict=True):
                begin, end = (len(tokenizer.decode(wanted["input_ids"][:at])) for at in (place[0], place[-1] + 1))
                answers.append(text[max(begin, _shared(before, text)) : end].rstrip("\n"))
            found.setdefault(name, {})[key] = [_ours(tokenizer, talk, True), answers]
    return found


def _shared(first: str, second: str) -> int:
    return next((at for at, (one, other) in enumerate(zip(first, second, strict=False)) if one != other), min(len(first), len(second)))


def bundled(pairs: list[tuple[str, str, str]]) -> dict[str, list[str]]:
    """By bundled format and conversation: the text by it and by the model's own template, whose end token is the third of the pair."""
    found = {}
    for name, own, end in pairs:
        theirs, ours = (_folder() / f"{own}.jinja").read_text(encoding="utf-8"), templates.jinja(templates.find(name))
        tokenizer = _tokenizer(theirs, ours)
        tokenizer.eos_token = end
        for key in ("one", "system", "turns"):
            last = len([message for message in TALKS[key][0] if message["role"] != "system"]) - 1
            asked = {"tokenize": False, "enable_thinking": True, "thought_from": last}
            texts = [tokenizer.apply_chat_template(TALKS[key][0], chat_template=text, **asked) for text in (theirs, ours)]
            found[f"{name} {key}"] = [text.rstrip("\n") for text in texts]
    return found
