"""The bundled chat templates: formats by name, written out as Jinja text. No torch: the launcher asks for the names."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from fl_trainers.errors import InputError

DEFAULT = "default"
"""For a tokenizer without a template of its own when the recipe names none."""
CONTENT, BOS, EOS = "{{content}}", "{{bos}}", "{{eos}}"
GIVEN = (
    "{%- macro plain(value) -%}{{- value if value is string else (value | tojson) -}}{%- endmacro -%}"
    "{%- macro given(item) -%}{{- plain(item['function']['arguments']) -}}{%- endmacro -%}"
)
"""What the ways of writing calls share."""


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
    tools: str = "default"
    """The way in which tools are described and called, of tool_formats.yaml."""
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
def _table(file: str = "chat_formats.yaml") -> dict[str, dict[str, Any]]:
    import yaml

    text = (Path(__file__).parent / file).read_text(encoding="utf-8")
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


def tool_formats() -> list[str]:
    """Every name that `tool_format:` takes."""
    return sorted(_table("tool_formats.yaml"))


def chosen(name: str | None, tool_format: str | None = None, default_system: str | None = None) -> Format | None:
    """The recipe's format, with the system text for rows without one, and its own way to write tools where it names one; calls are then
    ended as LLaMA-Factory does it."""
    if name is None:
        return None
    chat = find(name) if default_system is None else replace(find(name), default_system=default_system)
    if tool_format is None:
        return chat
    if tool_format not in tool_formats():
        raise InputError(f"tool_format {tool_format} is unknown", f"one of {', '.join(tool_formats())}")
    return replace(chat, tools=tool_format, call=CONTENT if chat.open else CONTENT + EOS)


def jinja(chat: Format) -> str:
    """The format as a chat template in Jinja, as tokenizers keep them."""
    return "".join(_lines(chat))


def _tool_way(chat: Format, part: str) -> str:
    return "".join(_table("tool_formats.yaml")[chat.tools].get(part, ()))


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
    yield "{%- elif message['role'] == 'tool' -%}" + _results(chat)
    yield _no_thought(chat, "loop.last and add_generation_prompt")
    yield "{%- else -%}{{- raise_exception('unknown role ' ~ message['role']) -}}{%- endif -%}{%- endfor -%}"


def _results(chat: Format) -> str:
    """What tools gave back; several results of one answer become one turn."""
    slot = chat.tool or chat.user
    between = _quote("\n</tool_response>\n<tool_response>\n" if "<tool_response>" in slot else "\n")
    first = "{%- if loop.first or loop.previtem['role'] != 'tool' -%}{%- set results.text = content -%}"
    more = "{%- else -%}{%- set results.text = results.text ~ " + between + " ~ content -%}{%- endif -%}"
    return first + more + "{%- if loop.last or loop.nextitem['role'] != 'tool' -%}" + _print(slot, "results.text") + "{%- endif -%}"


def _tool_list(chat: Format) -> Iterator[str]:
    yield GIVEN + _tool_way(chat, "macros") + "{%- set results = namespace(text='') -%}"
    yield "{%- if tools -%}{%- set described -%}" + _tool_way(chat, "describe") + "{%- endset -%}"
    yield "{%- set system = system ~ described -%}{%- endif -%}"


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
    parts.append("{%- if message['tool_calls'] -%}")
    if _table("tool_formats.yaml")[chat.tools].get("single"):
        many = "{{- raise_exception('template " + chat.name + " writes one call an answer, found several') -}}"
        parts.append("{%- if message['tool_calls'] | length > 1 -%}" + many + "{%- endif -%}")
    parts.append("{%- set calls -%}" + _tool_way(chat, "call") + "{%- endset -%}")
    whole = _quote(chat.thinking[1].strip() if chat.thinking else "\n")
    between = "('\\n' if content and not content.endswith('\\n') and not content.endswith(" + whole + ") else '')"
    parts.append("{%- set content = content ~ " + between + " ~ calls -%}")
    parts.append(_print(chat.call or chat.assistant, "content") + "{%- else -%}" + _print(chat.assistant, "content") + "{%- endif -%}")
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
