"""Rules of streaming, of rows kept as token ids, and of how tools are written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any


def rule(get: Callable[[str], Any]) -> Iterator[tuple[str, str]]:
    """The key to blame and what is wrong."""
    for key in ("streaming", "tokenized_path"):
        if get(key) and get("stage") in ("grpo", "ppo"):
            yield key, f"not with `stage: {get('stage')}`, which asks its rows anew"
    if get("streaming") and get("tokenized_path"):
        yield "tokenized_path", "keeps all rows, and streaming never has them all: one of the two"
    if get("streaming") and get("max_steps") < 1:
        yield "streaming", "nobody knows how long an epoch is: set max_steps"
    if get("streaming") and 0 < get("val_size") < 1:
        yield "val_size", "a share of a stream is not known: a whole number of rows"
    if get("tool_format") and not get("template"):
        yield "tool_format", "a bundled template can be told how tools are written, a tokenizer's own cannot: name a template"
