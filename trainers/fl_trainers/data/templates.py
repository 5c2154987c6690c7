"""The bundled chat templates: formats by name, written out as Jinja text. No torch: the launcher asks for the names."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from fl_trainers.errors import InputError

DEFAULT = "default"
"""For a tokenizer without a template of its own when the recipe names none."""
CONTENT, BOS, EOS = "{{content}}", "{{bos}}", "{{eos}}"
TOOL_TEXT = {
    "qwen": (
        "\n\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
        "You are provided with function signatures within <tools></tools> XML tags:\n<tools>",
        "\n</tools>\n\nFor each function call, return a json object with function name and arguments"
        " within <tool_call></tool_call> XML tags:\n"
        '<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>',
    ),
}
"""What stands before and after the list of tools in the system text, for the ways of calling that are written out here."""


@dataclass(frozen=True)
class Format:
    """One chat format: texts with {{content}}, {{bos}} and {{eos}} in them."""

    name: str
    prefix: str = ""
    system: str = CONTENT
    user: str = CONTENT
    assistant: str = CONTENT + EOS
    tool: str | None = None
    call: str | None = None
    tools: str | None = None
    default_system: str = ""
    end: tuple[str, ...] = ()
    eos: bool = False
    open: bool = False
    inline_system: bool = False
    thinking: tuple[str, str] | None = None
    empty: str | None = None
    """The empty thought, where it is not what opens and closes one."""

    @property
    def empty_thought(self) -> str:
        """What is written for an answer without a thought."""
        return self.empty if self.empty is not None else "".join(self.thinking or ())


@cache
def _table() -> dict[str, dict[str, Any]]:
    import yaml

    text = (Path(__file__).parent / "chat_formats.yaml").read_text(encoding="utf-8")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return dict(yaml.load(text, Loader=loader))


def names() -> list[str]:
    """Every name that `template:` takes."""
    return sorted(_table())


def find(name: str) -> Format:
    """The format of that name. Raises InputError with the nearest known one."""
    entry = _table().get(name)
    if entry is None:
        near = difflib.get_close_matches(name, names(), 1, 0.4)
        raise InputError(
            f"template {name} is unknown", f"did you mean {near[0]}?" if near else "leave `template:` out to use the model's own"
        )
    lists = {key: tuple(value) for key, value in entry.items() if isinstance(value, list)}
    return Format(name=name, **{**entry, **lists})


def jinja(chat: Format) -> str:
    """The format as a chat template in Jinja, as tokenizers keep them."""
    return "".join(_lines(chat))


def _lines(chat: Format) -> Iterator[str]:
    yield "{%- if messages and messages[0]['role'] == 'system' -%}"
    yield "{%- set system = messages[0]['content'] -%}{%- set turns = messages[1:] -%}"
    yield "{%- else -%}{%- set system = " + _quote(chat.default_system) + " -%}{%- set turns = messages -%}{%- endif -%}"
    yield from _tool_list(chat)
    if chat.prefix:
        yield _print(chat.prefix, "")
    if not chat.inline_system:
        yield "{%- if system -%}" + _print(chat.system, "system") + "{%- endif -%}"
    yield "{%- for message in turns -%}{%- set content = message['content'] or '' -%}"
    yield "{%- if message['role'] == 'user' -%}"
    if chat.inline_system:
        yield "{%- if loop.first and system -%}{%- set content = " + _expression(chat.system, "system") + " ~ content -%}{%- endif -%}"
    yield _print(chat.user, "content") + _no_thought(chat, "loop.last and add_generation_prompt")
    yield "{%- elif message['role'] == 'assistant' -%}" + _answer(chat)
    yield "{%- elif message['role'] == 'tool' -%}" + _print(chat.tool or chat.user, "content")
    yield _no_thought(chat, "loop.last and add_generation_prompt")
    yield "{%- else -%}{{- raise_exception('unknown role ' ~ message['role']) -}}{%- endif -%}{%- endfor -%}"


def _tool_list(chat: Format) -> Iterator[str]:
    if chat.tools in TOOL_TEXT:
        before, after = TOOL_TEXT[chat.tools]
        yield "{%- if tools -%}{%- set described = namespace(text=" + _quote(before) + ") -%}"
        yield "{%- for tool in tools -%}{%- set described.text = described.text ~ '\\n' ~ (tool | tojson) -%}{%- endfor -%}"
        yield "{%- set system = system ~ described.text ~ " + _quote(after) + " -%}{%- endif -%}"
    else:
        yield "{%- if tools -%}{{- raise_exception('template " + chat.name + " has no way to describe tools') -}}{%- endif -%}"


def _answer(chat: Format) -> str:
    """An assistant's turn. `enable_thinking`: false takes an answer's thought away and writes an empty one before it, true and null
    write an empty one before an answer that has none, and where the name is not given at all answers stay as they are."""
    parts = []
    if chat.thinking:
        opened, closed = (_quote(word.strip()) for word in chat.thinking)
        parts.append("{%- if enable_thinking is defined and (thought_from is undefined or loop.index0 >= thought_from) -%}")
        kept = "content.split(" + closed + ")[-1].lstrip('\\n')"
        parts.append("{%- if enable_thinking is false -%}{%- set content = " + kept + " -%}{%- endif -%}")
        parts.append("{%- if " + opened + " not in content and " + closed + " not in content -%}" + _print(chat.empty_thought, ""))
        parts.append("{%- endif -%}{%- endif -%}")
    call = chat.call or chat.assistant
    parts.append("{%- if message['tool_calls'] -%}")
    if chat.tools == "qwen":
        parts.append("{%- set calls = namespace(text=content) -%}{%- for item in message['tool_calls'] -%}")
        parts.append("{%- set call = item['function'] -%}{%- set given = call['arguments'] -%}")
        parts.append("{%- set given = given if given is string else (given | tojson) -%}")
        parts.append("{%- set body = '{\"name\": ' ~ (call['name'] | tojson) ~ ', \"arguments\": ' ~ given ~ '}' -%}")
        parts.append("{%- set calls.text = calls.text ~ ('\\n' if calls.text else '') ~ '<tool_call>\\n' ~ body ~ '\\n</tool_call>' -%}")
        parts.append("{%- endfor -%}{%- set content = calls.text -%}" + _print(call, "content"))
    else:
        parts.append("{{- raise_exception('template " + chat.name + " has no way to write tool calls') -}}")
    parts.append("{%- else -%}" + _print(chat.assistant, "content") + "{%- endif -%}")
    return "".join(parts)


def _no_thought(chat: Format, condition: str) -> str:
    """The empty thought behind the question where the model shall not think."""
    if not chat.thinking:
        return ""
    off = " and enable_thinking is defined and enable_thinking is false -%}"
    return "{%- if " + condition + off + _print(chat.empty_thought, "") + "{%- endif -%}"


def _print(text: str, variable: str) -> str:
    return "{{- " + _expression(text, variable) + " -}}"


def _expression(text: str, variable: str) -> str:
    """A text with placeholders as a Jinja expression."""
    parts: list[str] = []
    values = {CONTENT: variable, BOS: "bos_token", EOS: "eos_token"}
    while text:
        at, mark = min(((text.find(mark), mark) for mark in values if mark in text), default=(len(text), ""))
        if at:
            parts.append(_quote(text[:at]))
        if mark:
            parts.append(values[mark])
        text = text[at + len(mark) :]
    return " ~ ".join(parts) or "''"


def _quote(text: str) -> str:
    """A Jinja string: JSON's form is one, as long as what is not ASCII stays itself."""
    return json.dumps(text, ensure_ascii=False)
