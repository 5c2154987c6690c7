"""How near answers are to the wanted ones: BLEU-4 and ROUGE-1, -2 and -L by LLaMA-Factory's rules. Pure functions over texts.

It has them from nltk, rouge_chinese and jieba. The first two are a page of arithmetic, written out here. jieba, which finds the words of
Chinese, is used where it is installed (it comes as source only, so no lock has it); elsewhere every Chinese character is a word.
"""

from __future__ import annotations

import functools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

NAMES = ("bleu-4", "rouge-1", "rouge-2", "rouge-l")
_TINY = 1e-8
_BLOCK = re.compile(r"([\u4E00-\u9FD5a-zA-Z0-9+#&._%\-]+)")
_WORD = re.compile(r"([a-zA-Z0-9]+(?:\.\d+)?%?)")
_SPACE = re.compile(r"(\r\n|\s)")
_HAN = re.compile(r"([\u4E00-\u9FD5])")
_SENTENCE_ENDS = tuple(map(re.compile, (r"([。！？?])([^”’])", r"(\.{6})([^”’])", r"(…{2})([^”’])", r"([。！？?][”’])([^，。！？?])")))


def similarity(pairs: Iterable[tuple[str, str]]) -> dict[str, float]:
    """Means over (predicted, wanted), in percent; empty for no pairs."""
    scores: dict[str, list[float]] = {name: [] for name in NAMES}
    for predicted, wanted in pairs:
        found = {"bleu-4": bleu4(predicted, wanted), **rouge(predicted, wanted)}
        for name in NAMES:
            scores[name].append(round(found[name] * 100, 4))
    return {name: sum(values) / len(values) for name, values in scores.items() if values}


def bleu4(predicted: str, wanted: str) -> float:
    """BLEU over characters up to groups of four; a group size without any match counts half, then a quarter of one match, and so on."""
    logs, halves = [], 0
    for size in range(1, 5):
        made, meant = _groups(predicted, size), _groups(wanted, size)
        hits, total = sum((made & meant).values()), max(1, sum(made.values()))
        if not hits and size == 1:
            return 0.0
        if not hits:
            halves += 1
        logs.append(math.log((hits or 0.5**halves) / total))
    shorter = min(0.0, 1 - len(wanted) / len(predicted))
    return math.exp(shorter + math.fsum(logs) / 4)


def _groups(text: Sequence[str], size: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(text[at : at + size]) for at in range(len(text) - size + 1))


def rouge(predicted: str, wanted: str) -> dict[str, float]:
    """F-measures over words: of the different words, of the different pairs of words, of the longest common subsequence."""
    made, meant = _flat(words(predicted)), _flat(words(wanted))
    if not any(made) or not any(meant):
        return {"rouge-1": 0.0, "rouge-2": 0.0, "rouge-l": 0.0}
    one, two = ({*_groups(made, size)} for size in (1, 2))
    one_meant, two_meant = ({*_groups(meant, size)} for size in (1, 2))
    return {
        "rouge-1": _f(len(one & one_meant), len(one), len(one_meant)),
        "rouge-2": _f(len(two & two_meant), len(two), len(two_meant)),
        "rouge-l": _f(common(made, meant), len(made), len(meant)),
    }


def _f(hits: int, made: int, meant: int) -> float:
    precision, recall = hits / made if made else 0.0, hits / meant if meant else 0.0
    return 2 * precision * recall / (precision + recall + _TINY)


def common(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(second) + 1)
    for one in first:
        before = 0
        for at, other in enumerate(second, 1):
            above = row[at]
            row[at] = before + 1 if one == other else max(above, row[at - 1])
            before = above
    return row[-1]


def _flat(found: Sequence[str]) -> list[str]:
    """The words of all lines. A line without any is one empty word: so it is there, and the figures are meant to be the same."""
    text = " ".join(found)
    for end in _SENTENCE_ENDS:
        text = end.sub(r"\1\n\2", text)
    text = text.rstrip()
    return [word for line in text.split("\n") if line for word in " ".join(line.split()).split(" ")]


def words(text: str) -> list[str]:
    """A text cut into words and marks, white space included."""
    return _cutter()(text)


@functools.cache
def _cutter() -> Callable[[str], list[str]]:
    import importlib
    import logging

    try:
        jieba = importlib.import_module("jieba")
    except ImportError:
        return plain_words
    jieba.setLogLevel(logging.WARNING)
    return lambda text: list(jieba.cut(text))


def plain_words(text: str) -> list[str]:
    """As jieba cuts what is not Chinese; a Chinese character is a word."""
    found: list[str] = []
    for block in _BLOCK.split(text):
        if _BLOCK.match(block):
            found += [word for part in _HAN.split(block) for word in ([part] if _HAN.match(part) else _WORD.split(part)) if word]
        else:
            found += [mark for part in _SPACE.split(block) for mark in ([part] if _SPACE.match(part) else part)]
    return found
