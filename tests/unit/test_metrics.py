"""BLEU and ROUGE: the figures of nltk 3.10.4, rouge_chinese 1.0.3 and jieba 0.42.1, which LLaMA-Factory uses."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_trainers import metrics

# (predicted, wanted), (bleu-4, rouge-1, rouge-2, rouge-l) as those libraries give them.
ENGLISH = [
    (("The cat sat on the mat.", "A cat sits on a mat, doesn't it?"), (30.3625, 31.5789, 0.0, 31.5789)),
    (("Paris is the capital of France.", "The capital of France is Paris."), (83.0239, 85.7143, 33.3333, 57.1429)),
    (("It costs 3.14% more than $5.00.", "It costs 3.14% more; e-mail me!"), (61.4549, 44.4444, 37.5, 44.4444)),
    (("the the the", "the cat"), (24.8084, 66.6667, 0.0, 40.0)),
    (("Hello\n\nworld.\n\nBye", "Hello\n\nBye world"), (69.5258, 88.8889, 50.0, 60.0)),
    (("x", "Quite another answer"), (0, 0.0, 0.0, 0.0)),
    (("", "Something"), (0, 0.0, 0.0, 0.0)),
    (("Same text.", "Same text."), (100.0, 100.0, 100.0, 100.0)),
    (("foo.bar(x)[1] = {'a': 2}", "foo.baz(x)[2]"), (30.8301, 64.0, 33.3333, 53.8462)),
    (("Wait...... what? Yes!", "Wait...... yes?"), (52.7102, 60.0, 25.0, 60.0)),
    (("Well....... I do not know....... why?", "Well....... I know......... it"), (67.3442, 62.5, 50.0, 63.1579)),
    (("He said “yes！”and left…… then", "He said “no！”then left……"), (57.8305, 84.2105, 52.6316, 76.1905)),
]
# Here the libraries were given single characters as words.
CHINESE = [
    (("今天天气很好，我们去公园。", "今天的天气不错！我们去公园吧？"), (31.7828, 61.5385, 46.1538, 64.2857)),
    (("机器学习", "机器翻译和学习"), (21.3416, 72.7273, 44.4444, 72.7273)),
]


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether jieba happens to be here makes no difference."""
    monkeypatch.setattr(metrics, "_cutter", lambda: metrics.plain_words)


@pytest.mark.parametrize(("pair", "wanted"), [*ENGLISH, *CHINESE])
def test_figures_are_those_of_the_libraries(pair: tuple[str, str], wanted: tuple[float, ...]) -> None:
    found = metrics.similarity([pair])
    assert [found[name] for name in metrics.NAMES] == pytest.approx(wanted, abs=2e-4)


def test_words_of_what_is_not_chinese() -> None:
    assert metrics.plain_words("It's 3.5% of a.b") == ["It", "'", "s", " ", "3.5%", " ", "of", " ", "a", ".", "b"]
    assert metrics.plain_words("用Python3写") == ["用", "Python3", "写"]


def test_means_are_over_rows_and_no_rows_have_none() -> None:
    assert metrics.similarity([("a b", "a b"), ("x", "y")])["rouge-1"] == pytest.approx(50, abs=1e-3)
    assert metrics.similarity([]) == {}


@given(st.text(max_size=40), st.text(max_size=40))
def test_any_texts_have_figures_within_bounds(predicted: str, wanted: str) -> None:
    assert all(0 <= value <= 100.0001 for value in metrics.similarity([(predicted, wanted)]).values())
    assert metrics.rouge(predicted, wanted) == pytest.approx(metrics.rouge(wanted, predicted))


@given(st.lists(st.sampled_from("abc"), max_size=12), st.lists(st.sampled_from("abc"), max_size=12))
def test_common_is_the_longest_common_subsequence(first: list[str], second: list[str]) -> None:
    def slow(one: tuple[str, ...], other: tuple[str, ...]) -> int:
        if not one or not other:
            return 0
        if one[0] == other[0]:
            return 1 + slow(one[1:], other[1:])
        return max(slow(one[1:], other), slow(one, other[1:]))

    short, other = tuple(first[:7]), tuple(second[:7])
    assert metrics.common(short, other) == slow(short, other)
