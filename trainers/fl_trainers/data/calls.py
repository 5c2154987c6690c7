"""The tools of a row and the calls of its answers, in the ways in which data sets write them."""

from __future__ import annotations

import contextlib
import json
import re
from typing import Any

from fl_trainers.config import Dataset
from fl_trainers.data.sources import Row, describe
from fl_trainers.errors import InputError

Message = dict[str, Any]
TAGGED = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)


def of_turn(turn: Row) -> list[dict[str, Any]]:
    """The calls of a message of OpenAI's: `tool_calls`, or the one `function_call` of before."""
    given = turn.get("tool_calls") or ([turn["function_call"]] if isinstance(turn.get("function_call"), dict) else [])
    return [call(one) for one in given if isinstance(one, dict)]


def call(given: dict[str, Any]) -> dict[str, Any]:
    """One call as chat templates take it, with its id where it has one."""
    function = given.get("function", given)
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        with contextlib.suppress(json.JSONDecodeError):  # a template prints what it is given
            arguments = json.loads(arguments)
    made = {"type": "function", "function": {"name": function.get("name", ""), "arguments": arguments}}
    return {**made, "id": given["id"]} if isinstance(given.get("id"), str) else made


def as_text(message: Message) -> Message:
    """The message with the arguments of its calls as JSON texts."""
    if "tool_calls" not in message:
        return message
    functions = [(one, one["function"]) for one in message["tool_calls"]]
    texts = [{**one, "function": {**function, "arguments": _text(function["arguments"])}} for one, function in functions]
    return {**message, "tool_calls": texts}


def _text(arguments: Any) -> str:
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def spoken(content: str) -> Message | str:
    """The answer that ShareGPT's `function_call` writes as JSON text, one object or a list of them, with a thought or other words before it
    and with or without <tool_call> around it; or the reason why it is none."""
    before, written = _parted(content)
    try:
        calls = [one for text in written for one in _listed(json.loads(text))]
    except (json.JSONDecodeError, RecursionError):
        return "a function call that is not JSON"
    if not calls or not all(isinstance(one, dict) and "name" in one for one in calls):
        return "a function call without a name"
    return {"role": "assistant", "content": before, "tool_calls": [call(one) for one in calls]}


def _parted(content: str) -> tuple[str, list[str]]:
    """What stands before the calls, and their JSON texts."""
    tagged = TAGGED.findall(content)
    if tagged:
        begin = content.index("<tool_call>")
        behind = TAGGED.sub("", content[begin:])
        return content[:begin] + (behind if behind.strip() else ""), tagged
    for start in (match.start() for match in re.finditer(r"[\[{]", content)):
        with contextlib.suppress(json.JSONDecodeError, RecursionError):
            json.loads(content[start:])
            return content[:start], [content[start:]]
    return "", [content]


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def tools(row: Row, dataset: Dataset, where: str) -> list[Any] | None:
    """The tools of a row, as chat templates take them. Raises InputError where they are no list of tools."""
    value = row.get(dataset.columns.tools or "")
    if not value:
        return None
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else []
        except json.JSONDecodeError as error:
            raise InputError(f"{where}: column {dataset.columns.tools} is not JSON: {error}") from error
    value = [value] if isinstance(value, dict) else value
    if not isinstance(value, list):
        raise InputError(f"{where}: column {dataset.columns.tools} is {describe(value)}, a list of tools is needed")
    for tool in value:
        about = tool.get("function", tool) if isinstance(tool, dict) else None
        if not isinstance(about, dict) or "name" not in about:
            raise InputError(f"{where}: a tool of column {dataset.columns.tools} is {describe(tool)}, an object with a name is needed")
    return [tool if "function" in tool else {"type": "function", "function": tool} for tool in value]
