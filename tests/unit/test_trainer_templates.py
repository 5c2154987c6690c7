"""Bundled chat templates: the Jinja text says what the format's parts say, for every format."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from fl_trainers.data import templates
from fl_trainers.errors import InputError

BOS, EOS = "<BOS>", "<EOS>"
SYSTEM = {"role": "system", "content": "Be brief."}
TALK = [
    {"role": "user", "content": "One?"},
    {"role": "assistant", "content": "Two."},
    {"role": "user", "content": "Three?"},
    {"role": "assistant", "content": "Four."},
]


@cache
def compiled(text: str) -> Any:
    """As transformers does it: its sandbox and settings."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = lambda value, **_: json.dumps(value, ensure_ascii=False)

    def raise_exception(message: str) -> None:
        raise ValueError(message)

    environment.globals["raise_exception"] = raise_exception
    return environment.from_string(text)


def render(text: str, messages: list[dict[str, Any]], **more: Any) -> str:
    given = {"add_generation_prompt": False, "tools": None, **more}
    return str(compiled(text).render(messages=messages, bos_token=BOS, eos_token=EOS, **given))


def fill(text: str, content: str) -> str:
    return text.replace("{{bos}}", BOS).replace("{{eos}}", EOS).replace("{{content}}", content)


def by_hand(chat: templates.Format, system: str, talk: list[dict[str, Any]]) -> str:
    said = fill(chat.prefix, "")
    if system and not chat.inline_system:
        said += fill(chat.system, system)
    for number, message in enumerate(talk):
        content = str(message["content"])
        if number == 0 and system and chat.inline_system:
            content = fill(chat.system, system) + content
        said += fill(chat.user if message["role"] == "user" else chat.assistant, content)
    return said


@pytest.mark.parametrize("name", templates.names())
def test_every_format_renders_as_its_parts_say(name: str) -> None:
    chat = templates.find(name)
    text = templates.jinja(chat)
    assert render(text, [SYSTEM, *TALK]) == by_hand(chat, "Be brief.", TALK)
    assert render(text, TALK) == by_hand(chat, chat.default_system, TALK)


@pytest.mark.parametrize("name", templates.names())
def test_a_question_is_the_beginning_of_its_answer(name: str) -> None:
    """What the model is asked at the end is exactly what it was trained to go on from."""
    text = templates.jinja(templates.find(name))
    for thinking in ({}, {"enable_thinking": True}, {"enable_thinking": False}):
        whole = render(text, TALK, **thinking)
        assert whole.startswith(render(text, TALK[:3], add_generation_prompt=True, **thinking))
        assert whole.startswith(render(text, TALK[:1], add_generation_prompt=True, **thinking))


def test_known_formats_as_their_models_write_them() -> None:
    assert render(templates.jinja(templates.find("llama2")), [SYSTEM, *TALK[:2]]) == (
        "<BOS>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nOne? [/INST]Two.<EOS>"
    )
    assert render(templates.jinja(templates.find("llama3")), TALK[:1], add_generation_prompt=True) == (
        "<BOS><|start_header_id|>user<|end_header_id|>\n\nOne?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert render(templates.jinja(templates.find("gemma")), TALK[:2]) == (
        "<BOS><start_of_turn>user\nOne?<end_of_turn>\n<start_of_turn>model\nTwo.<end_of_turn>\n"
    )


def test_an_answer_that_shall_think_gets_an_empty_thought_and_one_that_shall_not_loses_its_own() -> None:
    text = templates.jinja(templates.find("qwen3"))
    head = "<|im_start|>user\nOne?<|im_end|>\n<|im_start|>assistant\n"
    assert render(text, TALK[:2], enable_thinking=True) == head + "<think>\n\n</think>\n\nTwo.<|im_end|>\n"
    thought = [TALK[0], {"role": "assistant", "content": "<think>\nhm\n</think>\n\nTwo."}]
    assert render(text, thought, enable_thinking=True) == head + "<think>\nhm\n</think>\n\nTwo.<|im_end|>\n"
    assert render(text, thought, enable_thinking=False) == head + "<think>\n\n</think>\n\nTwo.<|im_end|>\n"
    assert render(text, TALK[:1], add_generation_prompt=True, enable_thinking=False) == head + "<think>\n\n</think>\n\n"


def test_tools_and_calls_where_the_format_has_a_way_to_write_them() -> None:
    text = templates.jinja(templates.find("qwen"))
    tool = {"type": "function", "function": {"name": "add", "parameters": {}}}
    call = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}]}
    said = render(text, [TALK[0], call, {"role": "tool", "content": "3"}], tools=[tool])
    assert '<tools>\n{"type": "function", "function": {"name": "add", "parameters": {}}}\n</tools>' in said
    assert '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call><|im_end|>\n' in said
    assert "<tool_response>\n3\n</tool_response>" in said
    with pytest.raises(ValueError, match="no way to describe tools"):
        render(templates.jinja(templates.find("vicuna")), TALK, tools=[tool])


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(InputError) as caught:
        templates.find("qwen3_nothing")
    assert "qwen3_nothink" in caught.value.remedy
