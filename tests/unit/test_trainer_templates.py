"""Bundled chat templates: the Jinja text says what the format's parts say, for every format."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from fl_trainers.data import templates
from fl_trainers.data.encode import IGNORE, Settings, encode, turns
from fl_trainers.data.formats import Conversation, Report
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
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)

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


class Characters:
    """A tokenizer whose tokens are characters."""

    eos_token_id = 0

    def __init__(self, template: str) -> None:
        self.template = self.chat_template = template

    def apply_chat_template(self, messages: list[dict[str, Any]], **more: Any) -> str:
        assert more.pop("tokenize") is False
        return render(self.template, messages, **more)

    def __call__(self, texts: list[str], **more: Any) -> dict[str, list[list[int]]]:
        return {"input_ids": [[ord(letter) for letter in text] for text in texts]}


def pieces(chat: templates.Format, talk: list[dict[str, Any]], thinking: bool | None, *, last_only: bool) -> list[tuple[str, bool]]:
    """The conversation as (text, whether it counts), put together from the format's parts."""
    found: list[tuple[str, bool]] = [(fill(chat.prefix, ""), False)]
    if chat.default_system and not chat.inline_system:
        found.append((fill(chat.system, chat.default_system), False))
    for number, message in enumerate(talk):
        content = message["content"]
        if message["role"] == "user":
            first = fill(chat.system, chat.default_system) if number == 0 and chat.default_system and chat.inline_system else ""
            found.append((fill(chat.user, first + content), False))
            continue
        is_last = number == len(talk) - 1
        if chat.thinking and last_only and not is_last:
            content = content.split(chat.thinking[1])[-1]
        elif chat.thinking:
            content = content.split(chat.thinking[1])[-1] if thinking is False else content
            if chat.thinking[0].strip() not in content and chat.thinking[1].strip() not in content:
                empty = chat.empty if chat.empty is not None else "".join(chat.thinking)
                found.append((empty, thinking is True and (is_last or not last_only)))
        found.append((fill(chat.assistant, content), is_last or not last_only))
    return found


@pytest.mark.parametrize("name", templates.names())
def test_what_counts_is_what_the_formats_parts_say_an_answer_is(name: str) -> None:
    """Labels come from rendering every beginning of a conversation; here the spans are put together from the parts instead."""
    chat = templates.find(name)
    tokenizer = Characters(templates.jinja(chat))
    opened, closed = chat.thinking or ("<think>", "</think>")
    thoughtful = [{**message, "content": f"{opened}hm{closed}{message['content']}"} if message["role"] == "assistant" else message
                  for message in TALK]  # fmt: skip
    for talk in (TALK, thoughtful, [TALK[0], thoughtful[1], *TALK[2:]]):
        for thinking in (True, False, None):
            for last_only in (False, True):
                settings = Settings(10**6, mask_history=last_only, enable_thinking=thinking, chat=chat, one_thought=last_only)
                (row,) = encode(tokenizer, [("row", Conversation(list(talk)))], settings, Report())
                wanted = pieces(chat, talk, thinking, last_only=last_only)
                ids = row.input_ids[:-1] if chat.open else row.input_ids
                assert "".join(map(chr, ids)) == "".join(text for text, _ in wanted)
                counted = "".join(chr(label) for label in row.labels if label not in (IGNORE, tokenizer.eos_token_id))
                assert counted == "".join(text for text, counts in wanted if counts)
                ends = [label for label in row.labels if label == tokenizer.eos_token_id]
                assert len(ends) == (0 if not chat.open else 1 if last_only else 2)  # mask_history: the end of one answer


def test_the_tokenizers_own_template_counts_answers_as_far_as_their_end_token() -> None:
    tokenizer = Characters(templates.jinja(templates.find("chatml")))
    (row,) = encode(tokenizer, [("row", Conversation(TALK))], Settings(10**6), Report())
    assert "".join(chr(label) for label in row.labels if label != IGNORE) == "Two.<|im_end|>Four.<|im_end|>"


@pytest.mark.parametrize("answer", [">", "|>", "<|im_end|>", "m", "assistant\n"])
def test_an_answer_that_ends_as_its_end_token_does_is_ended_once(answer: str) -> None:
    tokenizer = Characters(templates.jinja(templates.find("chatml")))
    talk = Conversation([TALK[0], {"role": "assistant", "content": answer}])
    (row,) = encode(tokenizer, [("row", talk)], Settings(10**6), Report())
    assert "".join(chr(label) for label in row.labels if label != IGNORE) == answer + "<|im_end|>"
    assert "".join(map(chr, row.input_ids)).endswith(f"assistant\n{answer}<|im_end|>")


@pytest.mark.parametrize("name", [name for name in templates.names() if templates.find(name).thinking] + ["qwen", "llama3"])
def test_a_thought_beside_an_answer_is_written_as_the_format_writes_thoughts(name: str) -> None:
    chat = templates.find(name)
    opened, closed = chat.thinking or ("<think>\n", "\n</think>\n\n")
    tokenizer = Characters(templates.jinja(chat))
    beside = {"role": "assistant", "content": "Two.", "reasoning_content": "hm"}
    before = {"role": "assistant", "content": f"{opened}hm{closed}Two."}
    rows = [encode(tokenizer, [("row", Conversation([TALK[0], last]))], Settings(10**6, enable_thinking=True, chat=chat), Report())
            for last in (beside, before)]  # fmt: skip
    assert rows[0] == rows[1] and "hm" in "".join(chr(label) for label in rows[0][0].labels if label > 0)


def test_a_template_of_the_tokenizer_that_knows_thoughts_beside_answers_is_given_them() -> None:
    asks = "{% for message in messages %}{{ message.reasoning_content }}|{{ message.content }}|{% endfor %}"
    plain = "{% for message in messages %}{{ message.content }}|{% endfor %}"
    for text, wanted in ((asks, "hm|Two.|"), (plain, "<think>\nhm\n</think>\n\nTwo.|")):
        tokenizer = Characters(text)
        talk = Conversation([TALK[0], {"role": "assistant", "content": "Two.", "reasoning_content": "hm"}])
        (row,) = encode(tokenizer, [("row", talk)], Settings(10**6), Report())
        assert "".join(chr(label) for label in row.labels if label > 0) == wanted


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


ADD = {"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": {
    "type": "object", "properties": {"left": {"type": "integer", "description": "One."}, "how": {"type": "string", "enum": ["up", "down"]}},
    "required": ["left"]}}}  # fmt: skip


def call(*numbers: int) -> dict[str, Any]:
    calls = [{"type": "function", "function": {"name": "add", "arguments": {"left": number, "how": "up"}}} for number in numbers]
    return {"role": "assistant", "content": "", "tool_calls": calls}


@pytest.mark.parametrize("name", templates.names())
def test_tools_calls_and_results_in_every_format(name: str) -> None:
    """The tool is described before the question, calls count and are ended as answers are, results do not count."""
    chat = templates.find(name)
    tokenizer = Characters(templates.jinja(chat))
    several = 1 if chat.tools == "glm4" else 2
    talk = [TALK[0], call(*range(471, 471 + several)), {"role": "tool", "content": "ZEBRA"}, {"role": "tool", "content": "YAK"}, TALK[3]]
    settings = Settings(10**6, enable_thinking=False, chat=chat)
    (row,) = encode(tokenizer, [("row", Conversation(talk, [ADD]))], settings, Report())
    said = "".join(map(chr, row.input_ids))
    counted = "".join(chr(label) for label in row.labels if label > 0)
    described = said[: said.index("One?")] if chat.prefix or not chat.inline_system else said
    assert "add" in described and "Adds." in described and "left" in described
    assert counted.count("471") == 1 and counted.count("472") == several - 1 and counted.count("up") == several
    assert "ZEBRA" in said and "ZEBRA" not in counted and "YAK" not in counted
    assert counted.endswith(fill(chat.assistant, "Four."))
    between = said[said.index("ZEBRA") + 5 : said.index("YAK")]
    assert between in ("\n", "\n</tool_response>\n<tool_response>\n")


def test_a_format_for_one_call_refuses_several() -> None:
    with pytest.raises(ValueError, match="template glm4 writes one call an answer, found several"):
        render(templates.jinja(templates.find("glm4")), [TALK[0], call(1, 2)])


CALLS = {
    "glm4": 'add\n{"left": 1, "how": "up"}',
    "glm4_moe": "\n<tool_call>add\n<arg_key>left</arg_key>\n<arg_value>1</arg_value>\n"
    "<arg_key>how</arg_key>\n<arg_value>up</arg_value>\n</tool_call>",
    "gemma4": '<|tool_call>call:add{how:<|"|>up<|"|>,left:1}<tool_call|>',
    "lfm2": '<|tool_call_start|>[add(left=1, how="up")]<|tool_call_end|>',
    "llama3": '{"name": "add", "parameters": {"left": 1, "how": "up"}}',
    "minimax2": '<minimax:tool_call>\n<invoke name="add">\n<parameter name="left">1</parameter>\n'
    '<parameter name="how">up</parameter>\n</invoke>\n</minimax:tool_call>',
    "mistral": '[{"name": "add", "arguments": {"left": 1, "how": "up"}}]',
    "qwen": '<tool_call>\n{"name": "add", "arguments": {"left": 1, "how": "up"}}\n</tool_call>',
    "qwen3_5": "<tool_call>\n<function=add>\n<parameter=left>\n1\n</parameter>\n"
    "<parameter=how>\nup\n</parameter>\n</function>\n</tool_call>",
    "seed_oss": "\n<seed:tool_call>\n<function=add>\n<parameter=left>1</parameter>\n"
    "<parameter=how>up</parameter>\n</function>\n</seed:tool_call>",
    "vicuna": 'Action: add\nAction Input: {"left": 1, "how": "up"}',
}


@pytest.mark.parametrize("name", CALLS)
def test_calls_as_the_models_write_them(name: str) -> None:
    assert CALLS[name] in render(templates.jinja(templates.find(name)), [TALK[0], call(1)])


def test_another_way_to_write_tools() -> None:
    chat = templates.chosen("vicuna", "qwen")
    assert chat is not None
    assert "<tool_call>\n" in render(templates.jinja(chat), [TALK[0], call(1)], tools=[ADD])
    assert templates.chosen(None, None) is None
    with pytest.raises(InputError, match="tool_format yaml is unknown"):
        templates.chosen("vicuna", "yaml")


def test_the_launcher_knows_the_same_names() -> None:
    from fl.recipe_table import TEMPLATES, TOOL_FORMATS

    assert sorted(TEMPLATES) == templates.names() and sorted(TOOL_FORMATS) == templates.tool_formats()


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(InputError) as caught:
        templates.find("qwen3_nothing")
    assert "qwen3_nothink" in caught.value.remedy


@pytest.mark.parametrize(("given", "wanted"), [(None, "You are Qwen"), ("Be brief.", "Be brief."), ("", None)])
def test_the_recipes_system_text_is_the_formats_and_so_what_is_served(given: str | None, wanted: str | None) -> None:
    chat = templates.chosen("qwen", None, given)
    assert chat is not None
    text = render(templates.jinja(chat), TALK[:1])
    assert ("<|im_start|>system\n" in text) is (wanted is not None) and (wanted is None or wanted in text)
    assert "Other." in render(templates.jinja(chat), [{"role": "system", "content": "Other."}, *TALK[:1]])


def test_preserve_thinking_keeps_earlier_answers_as_they_are() -> None:
    chat = templates.find("qwen3")
    tokenizer = Characters(templates.jinja(chat))
    talk = [TALK[0], {"role": "assistant", "content": "<think>\nhm\n</think>\n\nTwo."}, *TALK[2:]]
    for preserve, first in ((True, "<think>\nhm\n</think>\n\nTwo."), (False, "Two.")):
        settings = Settings(10**6, enable_thinking=False, chat=chat, one_thought=True, preserve_thinking=preserve)
        (row,) = encode(tokenizer, [("row", Conversation(talk))], settings, Report())
        said = "".join(map(chr, row.input_ids))
        assert [part.split("<|im_end|>")[0] for part in said.split("assistant\n")[1:]] == [
            first, "<think>\n\n</think>\n\nFour."]


@pytest.mark.parametrize("name", ["kimi_vl", "seed_oss", "qwen3", "gemma4"])
def test_a_call_follows_its_thought_at_once(name: str) -> None:
    chat = templates.find(name)
    opened, closed = chat.thinking or ("", "")
    said = render(templates.jinja(chat), [TALK[0], {**call(1), "content": f"{opened}hm{closed}"}])
    plain = render(templates.jinja(chat), [TALK[0], call(1)])
    begin = len(render(templates.jinja(chat), TALK[:1]))
    assert said.replace(f"{opened}hm{closed}", "", 1) == plain and said[begin:].count(f"hm{closed}") == 1


def test_a_call_in_the_history_is_not_cut_into() -> None:
    """The question alone is asked with an empty thought; what an answer has in common with its tag is the answer's."""
    chat = templates.find("qwen3")
    talk = Conversation([TALK[0], call(1), {"role": "tool", "content": "3"}, TALK[3]])
    settings = Settings(10**6, mask_history=True, enable_thinking=False, chat=chat, one_thought=True)
    first, last = turns(Characters(templates.jinja(chat)), talk, settings)
    assert first.source.endswith("<|im_start|>assistant\n") and first.target.startswith("<tool_call>\n")
    assert last.source.endswith("<think>\n\n</think>\n\n") and last.target == "Four.<|im_end|>\n"


def test_arguments_are_given_as_text_to_a_template_that_joins_them() -> None:
    calls = "{% for one in message.tool_calls or [] %}{{ one.function.name + ' ' + one.function.arguments }}{% endfor %}"
    text = "{% for message in messages %}{{ message.role + ':' + message.content }}" + calls + ";{% endfor %}"
    (row,) = encode(Characters(text), [("row", Conversation([TALK[0], call(1)]))], Settings(10**6), Report())
    assert "".join(map(chr, row.input_ids)).endswith('assistant:add {"left": 1, "how": "up"};')


@pytest.mark.parametrize(("name", "wanted"), [("chatml", "Four.<|im_end|>\n"), ("glm4", "\nFour.\0")])
def test_an_answer_of_weight_0_is_not_learned(name: str, wanted: str) -> None:
    chat = templates.find(name)
    talk = Conversation([TALK[0], {**TALK[1], "weight": 0}, *TALK[2:]])
    (row,) = encode(Characters(templates.jinja(chat)), [("row", talk)], Settings(10**6, chat=chat), Report())
    assert "".join(chr(label) for label in row.labels if label != IGNORE) == wanted
    report = Report()
    assert encode(Characters(templates.jinja(chat)), [("row", Conversation(talk.messages[:2]))], Settings(10**6, chat=chat), report) == []
    assert report.counts == {"nothing to learn from is left": 1}
