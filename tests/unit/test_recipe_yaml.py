"""Reading recipe text: numbers, traps, and hostile files."""

from __future__ import annotations

import json
import time
import tracemalloc

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from fl.errors import RecipeError
from fl.recipe_yaml import MAX_BYTES, load, load_value, scalar


def values(text: str) -> object:
    return load(text.encode(), "r.yaml").values


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2e-5", 2e-5),
        ("1E5", 1e5),
        ("1.5e+3", 1500.0),
        (".5", 0.5),
        ("-3.", -3.0),
        ("+1.0e-4", 1e-4),
        (".5e1", 5.0),
        ("1_000", 1000),
        ("-7", -7),
        ("0", 0),
        ("0x1F", 31),
        ("true", True),
        ("No", False),
        ("on", True),
        ("~", None),
        ("null", None),
        ("", None),
        ("0123", "0123"),
        ("1:30", "1:30"),
        ("2026-01-02", "2026-01-02"),
        ("e5", "e5"),
        ("1e", "1e"),
        ("Qwen/Qwen3-4B", "Qwen/Qwen3-4B"),
        ("1.2.3", "1.2.3"),
        ("0000:1a:00.0", "0000:1a:00.0"),
    ],
)
def test_plain_scalars(text: str, value: object) -> None:
    found = scalar(text)
    assert found == value
    assert type(found) is type(value)
    assert values(f"a: {text}\n") == {"a": value}


def test_quoted_text_stays_text() -> None:
    assert values("a: '2e-5'\nb: \"true\"\nc: !!str 7\n") == {"a": "2e-5", "b": "true", "c": "7"}


def test_places_of_keys() -> None:
    document = load(b"# c\nstage: sft\nfl:\n  hw: cpu\n", "r.yaml")
    assert {key: str(place) for key, place in document.places.items()} == {"stage": "r.yaml:2:1", "fl": "r.yaml:3:1", "fl.hw": "r.yaml:4:3"}


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"a: 1\nb: 2\na: 3\n", "r.yaml:3:1: `a` stands here for the second time, first on line 1."),
        (b"fl:\n  hw: cpu\n  hw: cuda\n", "r.yaml:3:3: `hw` stands here for the second time, first on line 2."),
        (b"fl:\n\thw: cpu\n", "r.yaml:2:1: a tab is used for indentation"),
        (b"a: 1\nb: \xc3\xa9\xff\n", "r.yaml:2:5: not UTF-8 text (byte 0xff)"),
        (b"a: x\x01\n", "r.yaml:1:5: the control character U+0001"),
        (b"a: b: c\n", "r.yaml:1:5: mapping values are not allowed"),
        (b"- 1\n- 2\n", "r.yaml:1:1: a recipe is a mapping of keys to values (`stage: sft`), this file holds a list."),
        (b"just text\n", "this file holds the str 'just text'"),
        (b"a: 1\n---\nb: 2\n", "r.yaml:2:1: a second document starts here"),
        (b"1: 2\n", "r.yaml:1:1: a key must be a name, found '1'."),
        (b"no: 2\n", "r.yaml:1:1: a key must be a name, found 'no'."),
        (b"? [a, b]\n: 2\n", "a key must be a name, not a list"),
        (b"a: !!python/object/apply:os.system [ls]\n", "r.yaml:1:4: the tag"),
        (b"a: !!python/name:os.system x\n", "r.yaml:1:4: the tag"),
        (b"a: !!int x\n", "r.yaml:1:4: the tag"),
        (b"a: &x [*x]\n", "the alias *x has no anchor before it"),
        (b"a: 'open\n", "unexpected end of stream"),
    ],
)
def test_broken_files_say_where(raw: bytes, message: str) -> None:
    with pytest.raises(RecipeError) as error:
        load(raw, "r.yaml")
    assert message in error.value.message


@pytest.mark.parametrize("raw", [b"", b"\n\n", b"# nothing\n", b"---\n", b"\xef\xbb\xbf"])
def test_empty_files_are_empty_mappings(raw: bytes) -> None:
    assert load(raw, "r.yaml").values == {}


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-8"])
def test_byte_order_marks(encoding: str) -> None:
    raw = "system: Grüße\r\nb: 2\r\n".encode(encoding)
    if encoding == "utf-16-le":
        raw = b"\xff\xfe" + raw
    assert load(raw, "r.yaml").values == {"system": "Grüße", "b": 2}


def test_merge_keys_and_aliases() -> None:
    assert values("x: &x {a: 1, b: 2}\ny:\n  <<: *x\n  b: 3\n") == {"x": {"a": 1, "b": 2}, "y": {"a": 1, "b": 3}}


def bomb() -> bytes:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"{chr(n)}: &{chr(n)} [{', '.join(['*' + chr(n - 1)] * 10)}]" for n in range(ord("b"), ord("k"))]
    return "\n".join(lines).encode()


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("r.yaml", b"a: 1\n" * 2_000_000),
        ("r.yaml", b"#" + b" " * 10_000_000),
        ("r.yaml", b"a: " + b"[" * 100_000),
        ("r.yaml", b"a: " + b"[" * 100_000 + b"]" * 100_000),
        ("r.yaml", b"a: " + b"{a: " * 50_000),
        ("r.yaml", "\n".join(" " * n + "a:" for n in range(600)).encode()),
        ("r.yaml", bomb()),
        ("r.yaml", b"a: [" + b"1," * 100_000 + b"]"),
        ("r.json", b'{"a": ' + b"[" * 100_000),
        ("r.json", b'{"a": ' + b"[" * 50 + b"]" * 50 + b"}"),
        ("r.json", b'{"a": ' + b"9" * 100_000 + b"}"),
    ],
)
def test_hostile_files_are_refused_fast(name: str, raw: bytes) -> None:
    started = time.process_time()
    with pytest.raises(RecipeError):
        load(raw, name)
    assert time.process_time() - started < 0.5


def test_an_alias_bomb_takes_little_memory() -> None:
    tracemalloc.start()
    with pytest.raises(RecipeError, match="aliases counted as often"):
        load(bomb(), "r.yaml")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000_000


def test_the_largest_accepted_file_is_fast() -> None:
    raw = b"".join(b"key_%05d: some text of a usual length\n" % n for n in range(6000))
    assert len(raw) < MAX_BYTES
    started = time.process_time()
    assert len(load(raw, "r.yaml").values) == 6000
    assert time.process_time() - started < 0.5


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b'{"a": 1,\n "a": 2}', "r.json:2:2: `a` stands here for the second time, first on line 1."),
        (b"[1]", "this file holds a JSON list"),
        (b'{"a": NaN}', "NaN is not a JSON number"),
        (b'{"a" 1}', "r.json:1:6: Expecting ':' delimiter."),
        (b'{"a": "\\ud800"}', "surrogate"),
    ],
)
def test_broken_json(raw: bytes, message: str) -> None:
    with pytest.raises(RecipeError) as error:
        load(raw, "r.json")
    assert message in error.value.message


def test_json_with_tabs_and_places() -> None:
    document = load(b'{\n\t"stage":\t"sft",\n\t"fl": {"hw": "cpu"}\n}\n', "r.json")
    assert document.values == {"stage": "sft", "fl": {"hw": "cpu"}}
    assert str(document.places["stage"]) == "r.json:2:2"
    assert str(document.places["fl.hw"]) == "r.json:3:9"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("", None),
        ("[a, b]", ["a", "b"]),
        ("{a: 1}", {"a": 1}),
        ('"1"', "1"),
        ("a: b", "a: b"),
        ("you are: x # y", "you are: x # y"),
        ("*x", "*x"),
    ],
)
def test_values_of_overrides(text: str, value: object) -> None:
    assert load_value(text, "x") == value


_PLAIN = st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20)
_KEYS = st.from_regex(r"[a-z][a-z_]{2,8}", fullmatch=True).filter(lambda key: not isinstance(scalar(key), bool) and scalar(key) is not None)
_NESTED = st.recursive(_PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=3), max_leaves=8)


class Quoting(yaml.SafeDumper):
    """PyYAML itself leaves text such as `0E0` unquoted, which is a number here."""


Quoting.add_representer(str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"'))


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(_KEYS, _NESTED, max_size=6))
def test_what_yaml_and_json_write_is_read_back(document: dict[str, object]) -> None:
    written = yaml.dump(document, Dumper=Quoting, allow_unicode=True)
    assert load(written.encode(), "r.yaml").values == document
    assert load(json.dumps(document).encode(), "r.json").values == document


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200) | st.text(alphabet="ab:-[]{}&*!|>'\"#%@\t\n ?,<~1.e", max_size=80).map(str.encode))
def test_any_bytes_are_read_or_refused(raw: bytes) -> None:
    for name in ("r.yaml", "r.json"):
        try:
            found = load(raw, name).values
        except RecipeError as error:
            assert error.message.startswith(name)
        else:
            assert isinstance(found, dict)
