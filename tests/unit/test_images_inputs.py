"""What an image is made from as one hash, and the steps of an image that need not be built."""

from __future__ import annotations

from pathlib import Path

import pytest

from fl import matrix as rows
from fl import wheel
from fl.images import context, inputs, render

MATRIX = rows.load()


def test_the_hash_knows_every_file_every_word_and_our_own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"full/lock.txt": "a", "Dockerfile": "b"}
    first = inputs.digest(files, "linux/amd64", [("FL_VERSION", "1")])
    assert first == inputs.digest(dict(reversed(files.items())), "linux/amd64", [("FL_VERSION", "1")])
    others = [
        inputs.digest({**files, "Dockerfile": "c"}, "linux/amd64", [("FL_VERSION", "1")]),
        inputs.digest({**files, "more": "c"}, "linux/amd64", [("FL_VERSION", "1")]),
        inputs.digest(files, "linux/arm64", [("FL_VERSION", "1")]),
        inputs.digest(files, "linux/amd64", [("FL_VERSION", "2")]),
    ]
    code = wheel.sha256()
    monkeypatch.setattr(wheel, "sha256", lambda: code[::-1])
    others.append(inputs.digest(files, "linux/amd64", [("FL_VERSION", "1")]))
    assert len({first, *others}) == 6


def test_what_the_wheel_holds_has_one_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = wheel.sha256()
    assert before == wheel.sha256()
    files = wheel._content()
    changed = tmp_path / "cli.py"
    changed.write_bytes(files["fl/cli.py"].read_bytes() + b"\n")
    monkeypatch.setattr(wheel, "_content", lambda: {**files, "fl/cli.py": changed})
    assert wheel.sha256() != before


def test_what_a_site_says_of_its_index_is_no_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for name, url in (("one", "https://user:first@index.test/simple"), ("two", "https://user:second@index.test/simple")):
        monkeypatch.setenv("PIP_INDEX_URL", url)
        stack = MATRIX.stack("cuda132-torch215")
        folder, folders = context.prepare(MATRIX, stack, "train", tmp_path / name, context.Site(base="mine:1"), "linux/amd64")
        found.append(inputs.files(folder, folders))
        assert (tmp_path / name / context.SECRET).is_file()
    assert found[0] == found[1]
    assert {"Dockerfile", "full/lock.txt", "torch/lock.txt", "own/trim.sh"} <= found[0].keys()


def test_a_base_that_only_a_registry_can_tell_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"mine:1": {"Id": "sha256:" + "1" * 64, "Os": "linux", "Architecture": "amd64"}}
    monkeypatch.setattr(inputs.daemon, "image", lambda address, name: there.get(name))
    assert inputs.base("mine:1", "linux/amd64") == "sha256:" + "1" * 64
    assert inputs.base("mine:1", "linux/arm64") is None, "the builder takes another one"
    assert inputs.base("other:1", "linux/amd64") is None
    digest = "other@sha256:" + "2" * 64
    assert inputs.base(digest, "linux/amd64") == digest


@pytest.mark.parametrize(
    ("stack", "arguments", "said"),
    [
        ("cpu-torch213", {}, ["RUN"] * 5 + ["WORKDIR"]),
        ("cuda132-torch215", {}, ["RUN"] * 6 + ["WORKDIR"]),
        ("cuda132-torch215", {"VARIANT": "jit"}, ["RUN"] * 8 + ["WORKDIR"]),
    ],
)
def test_the_steps_are_those_of_the_stages_that_the_image_rests_on(stack: str, arguments: dict[str, str], said: list[str]) -> None:
    dockerfile = render.dockerfile(MATRIX, MATRIX.stack(stack), "train", "mine:1")
    found = inputs.steps(dockerfile, arguments, "run")
    assert [one.name for one in found] == said
    assert all(one.cached and one.seconds == 0 for one in found)
