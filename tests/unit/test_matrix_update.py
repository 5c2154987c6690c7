"""`fl matrix update` through the program's entry, with the real resolver and a local index of small wheels as the only one."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from package_folder import sdist, served, wheel, wheels
from packaging.requirements import Requirement

from fl import matrix_edit, paths
from fl import wheel as packing
from fl.cli import main
from fl.errors import MatrixError
from fl.images import lock, lock_check
from fl.matrix import load, parse
from fl.matrix_check import check
from fl.matrix_update import loosened

TEXT = """\
# The first comment.
schema: 1

layers:
  current: {transformers: "5.24.0", trl: "1.12.0"}  # shared

stacks:

# --- CPU
- id: cpu-torch213
  lane: cpu
  status: stable   # proven
  runtime: {}
  hosts: {platforms: [linux/amd64]}
  python: "3.11"
  base: {image: "debian:bookworm-slim", digest: null}
  layer: current
  exclude_newer: "2026-11-22"
  train: {torch: "2.13.0", deepspeed: "0.19.8", gguf: "0.19.0", matplotlib: '3.11.2', pydantic: "2.14.4"}  # the pins
  features: {bf16: true, fp16: true, fp8: false, flash_attention: none, bnb_4bit: null, bnb_8bit: null, deepspeed: true, fsdp2: true, liger: false, triton: false}
  sources:
    pins: "installed and trained with"
    gguf: "the wheel of 0.19.0"
  confidence: verified

- id: cpu-torch214
  lane: cpu
  status: edge
  runtime: {}
  hosts: {platforms: [linux/amd64]}
  python: "3.11"
  base: {image: "debian:bookworm-slim", digest: null}
  layer: current
  train: {torch: "2.14.0", gguf: "0.20.1", matplotlib: "3.11.2", pydantic: "2.14.4"}
  features: {bf16: true, fp16: true, fp8: false, flash_attention: none, bnb_4bit: null, bnb_8bit: null, deepspeed: null, fsdp2: true, liger: false, triton: false}
  sources: {pins: "resolved"}
  confidence: inferred

claims:
  layers.current: {source: "resolved together", confidence: documented}
  models: {source: "the wheels", confidence: documented}

models:
  Newcomer: {sizes: "1B", types: {newcomer: {transformers: "5.25.0"}}}
  Oldtimer: {sizes: "1B", types: {oldtimer: {transformers: "5.1.0"}}}

incompatibilities:
- {id: gguf-torch, when: {torch: "<2.14"}, requires: {gguf: "<0.20.1"}, why: "gguf 0.20.1 needs torch 2.14", source: "tried"}
"""  # noqa: E501

FOUND = {
    "transformers": ["5.24.0", "5.25.0", "6.0.0"], "trl": ["1.12.0"], "torch": ["2.13.0", "2.13.1", "2.14.0"],
    "gguf": ["0.19.0", "0.20.0", "0.20.1", "0.20.2"], "matplotlib": ["3.11.2", "4.0.0"], "pydantic": ["2.14.4"],
    **{name: ["2"] for name in ("einops", "hjson", "msgpack", "ninja", "numpy", "psutil", "py-cpuinfo", "tqdm")},
}  # fmt: skip


TOMORROW = time.strftime("%Y-%m-%d", time.gmtime(time.time() + 86400))


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """What makes an index with newer and with unfit versions the only one."""
    folder = tmp_path_factory.mktemp("wheels")
    wheels(folder, FOUND)
    for version in ("0.19.8", "0.19.9"):
        sdist(folder, "deepspeed", version)
    for line in packing.requirements():
        one = Requirement(line)
        if lock.normalize(one.name) not in FOUND:
            wheel(folder, one.name, next(iter(one.specifier)).version)
    with served(folder) as address:
        yield {"PIP_CONFIG_FILE": "/dev/null", "PIP_INDEX_URL": address, "UV_CACHE_DIR": str(tmp_path_factory.mktemp("uv"))}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, index: dict[str, str]) -> Path:
    """A checkout with two rows of the cpu lane."""
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "matrix.yaml").write_text(TEXT, encoding="utf-8")
    (tmp_path / "images").mkdir()
    for name in ("common", "cpu"):
        (tmp_path / "images" / name).mkdir()
        for file in (paths.IMAGES / name).iterdir():
            if file.is_file():
                (tmp_path / "images" / name / file.name).write_bytes(file.read_bytes())
    monkeypatch.setattr(paths, "MATRIX", tmp_path / "matrix.yaml")
    monkeypatch.setattr(paths, "IMAGES", tmp_path / "images")
    for name in [name for name in os.environ if name.startswith(("PIP_", "UV_"))]:
        monkeypatch.delenv(name)
    for name, value in index.items():
        monkeypatch.setenv(name, value)
    return tmp_path


def update(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as raised:
        main(["matrix", "update", *arguments])
    captured = capsys.readouterr()
    return int(raised.value.code or 0), captured.out, captured.err


def proposal(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    code, out, _ = update(capsys, *arguments, "--json")
    document = json.loads(out)
    assert code == 0, out
    assert (document["schema"], len(document["proposals"])) == (1, 1)
    return dict(document["proposals"][0])


def pairs(changes: list[dict[str, str]]) -> dict[str, tuple[str, str]]:
    return {c["name"]: (c["before"], c["after"]) for c in changes}


def test_newer_versions_are_found_within_the_row_s_releases_and_the_rules(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = proposal(capsys, "cpu-torch213")
    # torch stays in 2.13, matplotlib in 3; deepspeed is source only; the next lower gguf is taken where a rule forbids the newest.
    assert pairs(found["changes"]) == {"torch": ("2.13.0", "2.13.1"), "gguf": ("0.19.0", "0.20.0")}
    assert [(held["name"], held["version"]) for held in found["held"]] == [("gguf", "0.20.2")]
    assert "gguf 0.20.1 needs torch 2.14" in found["held"][0]["reason"]
    assert [(one["platform"], one["new"]) for one in found["locks"]] == [("linux/amd64", True)]
    assert "-      org.opencontainers.image.description=\"torch 2.13.0" in found["dockerfiles"]
    assert "+      org.opencontainers.image.description=\"torch 2.13.1" in found["dockerfiles"]
    assert found["look_at"] == ["cpu-torch213.sources.gguf: the wheel of 0.19.0"]


def test_nothing_is_written_without_write(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = update(capsys, "cpu-torch213")
    assert code == 0
    assert "torch 2.13.0 → 2.13.1" in out
    assert "nothing is written" in err
    assert (project / "matrix.yaml").read_text(encoding="utf-8") == TEXT
    assert not (project / "images" / "cpu" / "locks").exists()


def test_write_keeps_comments_and_takes_proof_back(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = update(capsys, "cpu-torch213", "--write")
    assert code == 0
    text = (project / "matrix.yaml").read_text(encoding="utf-8")
    assert check(text) == []
    before, after = TEXT.splitlines(), text.splitlines()
    assert len(before) == len(after)
    changed = [new.strip() for old, new in zip(before, after, strict=True) if old != new]
    assert [line.split(":")[0] for line in changed] == ["status", "exclude_newer", "train", "pins", "confidence"]
    assert changed[0] == "status: edge   # proven"
    assert changed[1] == f'exclude_newer: "{TOMORROW}"'
    assert changed[2].endswith("pydantic: \"2.14.4\"}  # the pins")
    assert "matplotlib: '3.11.2'" in changed[2]
    assert "not run yet" in changed[3]
    row = load(project / "matrix.yaml").stack("cpu-torch213")
    file = lock.path(row.id, "train", "linux/amd64")
    assert file is not None
    assert str(file) in err
    assert lock_check.findings(load(project / "matrix.yaml"), row, "train", "linux/amd64", file.read_text()) == []
    assert update(capsys, "cpu-torch213")[1].startswith("cpu-torch213: nothing newer that fits")


def test_a_layer_moves_with_all_its_rows_and_says_what_became_possible(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = proposal(capsys, "--layer", "current")
    assert pairs(found["changes"]) == {"transformers": ("5.24.0", "5.25.0")}
    assert {one["stack"] for one in found["locks"]} == {"cpu-torch213", "cpu-torch214"}
    assert [(m["model"], m["stack"], m["before"], m["after"]) for m in found["models"]] == [
        ("Newcomer", "cpu-torch213", "impossible", "declared"), ("Newcomer", "cpu-torch214", "impossible", "declared"),
    ]


def test_a_row_that_cannot_be_resolved_is_said_with_the_resolver_s_words(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = TEXT.replace('gguf: "0.19.0"', 'gguf: "0.30.0"')
    (project / "matrix.yaml").write_text(text, encoding="utf-8")
    code, _, err = update(capsys, "cpu-torch213", "--write")
    assert code == 8
    assert "gguf>=0.30.0" in err
    assert (project / "matrix.yaml").read_text(encoding="utf-8") == text
    code, out, _ = update(capsys, "cpu-torch213", "--json")
    assert (code, json.loads(out)["proposals"][0]["outcome"]) == (8, "refused")


def test_a_new_row_is_written_with_its_lock_and_the_old_one_stays(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = TEXT.replace("  features: {bf16", '  notes: ["slow"]\n  serve: {torch: "2.13.0"}\n  features: {bf16', 1)
    text = text[: text.index("- id: cpu-torch214")] + text[text.index("claims:") :]
    (project / "matrix.yaml").write_text(text, encoding="utf-8")
    code, out, _ = update(capsys, "--lane", "cpu", "--torch", "2.14.0", "--json")
    document = json.loads(out)
    assert (code, document["stack"], document["sibling"], document["written"]) == (0, "cpu-torch214", "cpu-torch213", [])
    assert (project / "matrix.yaml").read_text(encoding="utf-8") == text
    assert update(capsys, "cpu-torch213", "--torch", "2.14.0", "--write")[0] == 0
    written = (project / "matrix.yaml").read_text(encoding="utf-8")
    assert check(written) == []
    row, old = load(project / "matrix.yaml").stack("cpu-torch214"), load(project / "matrix.yaml").stack("cpu-torch213")
    assert (row.status, row.confidence, row.train["torch"], row.serve) == ("edge", "inferred", "2.14.0", {})
    assert row.sources["gguf"] == "not checked, taken over from cpu-torch213: the wheel of 0.19.0"
    assert row.notes == ("not checked, taken over from cpu-torch213: slow",)
    assert (old.status, old.confidence, old.serve) == ("stable", "verified", {"torch": "2.13.0"})
    assert written.replace(document["row"] + "\n", "", 1) == text
    assert lock.path("cpu-torch214", "train", "linux/amd64") is not None


def test_a_torch_that_no_row_has_is_told_with_the_command_that_proposes_one(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert json.loads(update(capsys, "--json")[1])["torch"] == [], "there is a row for the newest"
    text = TEXT[: TEXT.index("- id: cpu-torch214")] + TEXT[TEXT.index("claims:") :]
    (project / "matrix.yaml").write_text(text, encoding="utf-8")
    code, out, _ = update(capsys)
    assert code == 0
    assert "cpu: torch 2.14.0 is there, the newest row has 2.13.0: a row for it: fl matrix update cpu-torch213 --torch 2.14.0" in out
    rule = '- {id: x, when: {torch: ">=2.14"}, requires: {gguf: "<0.1"}, why: "no gguf there", source: "tried"}\n'
    (project / "matrix.yaml").write_text(text + rule, encoding="utf-8")
    (told,) = json.loads(update(capsys, "--json")[1])["torch"]
    assert (told["torch"], told["command"]) == ("2.14.0", None)
    assert "no gguf there" in told["refused"][0]
    assert json.loads(update(capsys, "cpu-torch213", "--json")[1])["torch"] == [], "a named row is asked for itself only"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["cpu-torch213", "--torch", "2.14.1"], 2, "the matrix has a row cpu-torch214 already"),
        (["--lane", "cpu", "--torch", "new"], 2, "'new' is not a version of torch"),
        (["--lane", "cpu", "--torch", "2.13.x"], 2, "'2.13.x' is not a version of torch"),
        (["--lane", "cpi", "--torch", "2.15.0"], 2, "Did you mean cpu?"),
        (["cpu-torch213", "--torch", "2.15.0", "--runtime", "13.2"], 2, "has no runtime"),
        (["cpu-torch213", "cpu-torch214", "--torch", "2.15.0"], 2, "a new row is the copy of one"),
        (["--runtime", "13.2"], 2, "--runtime is for a new row"),
        (["cpu-torch214", "--torch", "2.99.0"], 8, "cpu-torch299 cannot be resolved on any platform, and is not written"),
    ],
)
def test_a_new_row_that_cannot_be(project: Path, capsys: pytest.CaptureFixture[str], words: list[str], code: int, said: str) -> None:
    found, _, err = update(capsys, *words, "--write")
    assert (found, said in err) == (code, True), err
    assert (project / "matrix.yaml").read_text(encoding="utf-8") == TEXT


def test_unknown_names(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = update(capsys, "cpu-torch21")
    assert (code, "Did you mean cpu-torch21" in err) == (4, True)
    code, _, err = update(capsys, "--layer", "curent")
    assert (code, "Did you mean current?" in err) == (8, True)
    code, _, err = update(capsys, "--layer", "current", "cpu-torch213")
    assert (code, "takes no STACK" in err) == (2, True)


def test_what_the_resolver_is_asked_for() -> None:
    pins = {"torch": "2.13.0+cpu", "gguf": "0.19.0", "trl": "1.12.0"}
    assert loosened(pins, ["torch", "gguf"], {"gguf": {"!=0.20.1"}}) == {
        "torch": "2.13.*,>=2.13.0", "gguf": "0.*,>=0.19.0,!=0.20.1", "trl": "1.12.0",
    }
    assert loosened({"vllm": "0.33.0", "torch": "2.14.0"}, ["vllm", "torch"], {}, "serve") == {
        "vllm": "0.*,>=0.33.0", "torch": "2.*,>=2.14.0",
    }


def test_an_edit_that_would_say_something_else_is_refused() -> None:
    text = "a: &x {b: \"1\"}\nc: *x\n"
    with pytest.raises(MatrixError, match="says something else"):
        matrix_edit.replace(text, {("a", "b"): "2"})
    with pytest.raises(MatrixError, match="no plain text"):
        matrix_edit.replace("a: |\n  one\n  two\n", {("a",): "2"})
    assert parse(matrix_edit.replace("a: ['é', \"1\"]  # ü\n", {("a", 1): 'x"y'})) == {"a": ["é", 'x"y']}
