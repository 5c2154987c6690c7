"""Reward functions of the stages grpo and ppo: built in, or from a Python file of the user's.

A function is what TRL calls: `f(completions, answer, prompts, …) -> list of numbers`, one a completion; completions are lists of messages
(`completion[0]["content"]` is the text), `answer` holds the answers of the data set's rows. A None leaves that completion out.
"""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fl_trainers.errors import InputError, TrainingError
from fl_trainers.progress import Events

Reward = Callable[..., list[float | None]]
_THOUGHT = re.compile(r"\A\s*<think>.+?</think>\s*\S", re.DOTALL)
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def text(completion: Any) -> str:
    """The text of one completion."""
    return str(completion[0]["content"]) if isinstance(completion, list) else str(completion)


def final(answer: str) -> str:
    """What is compared: without the thought, and the last number where the wanted answer is one."""
    return answer.split("</think>")[-1].strip()


def exact(completions: Sequence[Any], answer: Sequence[str], **_: Any) -> list[float | None]:
    """1 where the completion, without its thought, is the row's answer."""
    return [float(final(text(made)) == final(wanted)) for made, wanted in zip(completions, answer, strict=True)]


def contains(completions: Sequence[Any], answer: Sequence[str], **_: Any) -> list[float | None]:
    """1 where the row's answer stands in the completion, behind its thought."""
    return [float(final(wanted) in final(text(made))) for made, wanted in zip(completions, answer, strict=True)]


def number(completions: Sequence[Any], answer: Sequence[str], **_: Any) -> list[float | None]:
    """1 where the last number of the completion is the last one of the row's answer; rows whose answer has none are left out."""
    found: list[float | None] = []
    for made, wanted in zip(completions, answer, strict=True):
        right, said = _NUMBER.findall(final(wanted)), _NUMBER.findall(final(text(made)))
        found.append(float(bool(said) and _value(said[-1]) == _value(right[-1])) if right else None)
    return found


def think_format(completions: Sequence[Any], **_: Any) -> list[float | None]:
    """1 where a thought in <think> stands first and something follows it."""
    return [float(bool(_THOUGHT.match(text(made)))) for made in completions]


def brief(completions: Sequence[Any], **_: Any) -> list[float | None]:
    """1 for nothing said, 1/2 for a hundred characters, less for more: of use beside another reward, with a small weight."""
    return [100 / (100 + len(text(made))) for made in completions]


def _plain(value: Any) -> Any:
    """The number in an array or a tensor that holds one; all else as it is."""
    item = getattr(value, "item", None)
    if isinstance(value, int | float) or not callable(item):
        return value
    try:
        return item()
    except (ValueError, RuntimeError):  # it holds several
        return value


def _value(digits: str) -> float:
    return float(digits.replace(",", ""))


BUILT_IN: dict[str, Reward] = {"exact": exact, "contains": contains, "number": number, "think_format": think_format, "brief": brief}


def load(names: Sequence[str], events: Events) -> list[Reward]:
    """The functions by name: one of BUILT_IN, or `FILE.py:FUNCTION`. Raises InputError with the nearest name."""
    return [checked(name, _find(name), events) for name in names]


def _find(name: str) -> Reward:
    path, colon, function = name.rpartition(":")
    if not colon:
        if name not in BUILT_IN:
            near = difflib.get_close_matches(name, BUILT_IN, 1, 0.4)
            also = f"did you mean {near[0]}? " if near else ""
            raise InputError(f"reward_funcs: there is no {name}", f"{also}{', '.join(BUILT_IN)}, or FILE.py:FUNCTION")
        return BUILT_IN[name]
    file = Path(path)
    if not file.is_file():
        raise InputError(f"reward_funcs: {file} is not there", "FILE.py:FUNCTION, from the folder you start fl in")
    module = _module(file)
    found = getattr(module, function, None)
    if not callable(found):
        names = [key for key, value in vars(module).items() if inspect.isfunction(value)]
        near = difflib.get_close_matches(function, names, 1, 0.4)
        hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(names) or 'no function'}"
        raise InputError(f"reward_funcs: {file.name} has no function {function}", hint)
    return found  # type: ignore[no-any-return]


def _module(file: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"rewards_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise InputError(f"reward_funcs: {file} is no Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the user's own code may raise anything
        where = f" line {error.lineno}" if isinstance(error, SyntaxError) else ""
        raise InputError(f"reward_funcs: {file.name}{where}: {type(error).__name__}: {error}") from error
    return module


def checked(name: str, function: Reward, events: Events) -> Reward:
    """The function with what it gives back looked at: one finite number or None a completion, else the run ends with its name."""
    empty = {"said": False}

    def reward(completions: Sequence[Any], **columns: Any) -> list[float | None]:
        blank = sum(not text(made).strip() for made in completions)
        if blank and not empty["said"]:
            empty["said"] = True
            events.warn("completions", f"{blank} of {len(completions)} completions are empty (told once)", count=blank)
        try:
            values = list(function(completions=completions, **columns))
        except Exception as error:  # the user's own code may raise anything
            raise TrainingError(
                f"reward {name} failed: {type(error).__name__}: {error}", "it takes completions, answer and **kwargs"
            ) from error
        if len(values) != len(completions):
            raise TrainingError(
                f"reward {name} gave {len(values)} values for {len(completions)} completions", "one number or None for each"
            )
        values = [_plain(value) for value in values]
        for value in values:
            if value is not None and not (isinstance(value, int | float) and math.isfinite(value)):
                raise TrainingError(f"reward {name} gave {value!r}", "finite numbers, or None to leave a completion out")
        return values

    reward.__name__ = name.rpartition(":")[2]
    return reward
