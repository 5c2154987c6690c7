"""The set of `fl conform` and its numbers; the runs themselves are in tests/training/test_conform.py."""

from __future__ import annotations

import hashlib
import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from fl import conform, conform_set, ledger, ledger_sources, matrix, recipe, run_image
from fl import conform_numbers as numbers
from fl.conform_set import CASES, Case
from fl.errors import EvidenceError, UsageError

Fl = Callable[..., "subprocess.CompletedProcess[str]"]
ROWS = matrix.load()
BY_NAME = {case.name: case for case in CASES}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_recipe_is_one(case: Case) -> None:
    read = recipe.parse(case.recipe(), file=f"{case.name}.yaml", shipped=True)
    assert [note.problem for note in read.refused] == []
    assert [note.key for note in read.keys if note.verdict == "ignored"] == []
    assert case.twin in BY_NAME and BY_NAME[case.twin].precision == "fp32"


def test_the_set_stands_for_everything() -> None:
    assert len(BY_NAME) == len(CASES)
    for stage in ("pt", "sft", "rm", "dpo", "orpo", "simpo", "kto", "ppo", "grpo"):
        assert {"full", "freeze", "lora"} <= {c.keys["finetuning_type"] for c in CASES if c.keys["stage"] == stage}
    models = {str(case.keys["model_name_or_path"]) for case in CASES}
    assert len([name for name in models if name.startswith("builtin/tiny-")]) >= 8 and "builtin/smollm2-135m" in models
    quick = [case for case in CASES if case.quick]
    assert len({c.keys["model_name_or_path"] for c in quick}) >= 8 and len(quick) < len(CASES) / 3


def test_references_are_of_these_recipes() -> None:
    """A case that is changed needs a new curve: `fl conform --write-references`."""
    curves = numbers.read(numbers.CPU)
    run = [case for case in CASES if conform_set.declared(case, ROWS.stack(numbers.CPU)) is not False]
    assert sorted(curves) == sorted(case.name for case in run)
    for case in run:
        assert curves[case.name].recipe_sha256 == hashlib.sha256(case.recipe()).hexdigest(), case.name
        assert numbers.fault(curves[case.name].loss) is None


def test_names_and_patterns() -> None:
    assert [c.name for c in conform_set.chosen("sft-lora-b*", quick=False)] == ["sft-lora-bf16"]
    assert conform_set.chosen("kto", quick=False) == tuple(c for c in CASES if "kto" in c.name)
    with pytest.raises(UsageError, match="no case of fl conform is called 'sft-lroa'") as raised:
        conform_set.chosen("sft-lroa", quick=False)
    assert raised.value.remedy.startswith("--only sft-")


def test_what_a_stack_claims() -> None:
    cpu = ROWS.stack("cpu-torch213")
    assert conform_set.declared(BY_NAME["sft-lora-fp32"], cpu) is True
    assert conform_set.declared(BY_NAME["sft-lora-liger"], cpu) is False
    assert conform_set.declared(BY_NAME["sft-lora-liger"], cpu.model_copy(update={"features": {}})) is None
    more = cpu.model_copy(update={"features": {**cpu.features, "fp8": True}})
    assert conform_set.not_covered(cpu) == [] and conform_set.not_covered(more) == ["fp8"]


CASE = BY_NAME["sft-lora-bf16"]
FP32 = numbers.Curve("r" * 64, (5.0, 4.0))
OWN = numbers.Curve("o" * 64, (5.01, 4.0))


def test_tight() -> None:
    curves = {CASE.name: OWN}
    same = numbers.tight(CASE, OWN.recipe_sha256, [5.013, 4.0], "cuda130-torch214", curves)
    assert same is not None and same.name == f"cuda130-torch214/{CASE.name}"
    assert same.difference == pytest.approx(0.003) and same.allowed == pytest.approx(0.00501) and same.holds
    off = numbers.tight(CASE, OWN.recipe_sha256, [5.016, 4.0], "x", curves)
    assert off is not None and not off.holds
    assert numbers.tight(CASE, "other", [5.0, 4.0], "x", curves) is None
    short = numbers.tight(CASE, OWN.recipe_sha256, [5.01], "x", curves)
    assert short is not None and math.isinf(short.difference) and not short.holds


def test_the_band() -> None:
    assert numbers.band(CASE, FP32, None) == pytest.approx(8 * 2**-9 * 5.0)
    assert numbers.band(CASE, FP32, numbers.Curve("", (5.1, 4.0))) == pytest.approx(0.4)
    assert numbers.band(BY_NAME["sft-lora-fp32"], FP32, FP32) == pytest.approx(0.005)
    cpu = {"sft-lora-fp32": FP32, CASE.name: OWN}
    held = numbers.against_cpu(CASE, [5.07, 4.0], cpu)
    assert held is not None and held.name == "cpu-torch213/sft-lora-fp32" and held.holds
    off = numbers.against_cpu(CASE, [5.09, 4.0], cpu)
    assert off is not None and not off.holds
    for name in ("grpo-lora-fp32", "rm-full-fp32", "sft-neftune"):  # random numbers of the device enter them
        assert numbers.against_cpu(BY_NAME[name], [0.1], {name: FP32}) is None
    assert numbers.against_cpu(replace(CASE, twin="nobody"), [5.0], cpu) is None


@pytest.mark.parametrize(("loss", "found"), [([], "no loss"), ([1.0, None], "step 2"), ([math.nan], "step 1"), ([1.0], None)])
def test_curves_that_are_none(loss: list[float | None], found: str | None) -> None:
    said = numbers.fault(loss)
    assert said is None if found is None else found in (said or "")


def test_references_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numbers.paths, "REFERENCES", tmp_path)
    assert numbers.read("cpu-torch213") == {}
    for text in ("{", "[]", '{"curves": {"a": {"loss": [1]}}}', '{"curves": {"a": 3}}'):
        (tmp_path / "cpu-torch213.json").write_text(text, encoding="utf-8")
        with pytest.raises(EvidenceError, match="cannot be read"):
            numbers.read("cpu-torch213")
    (tmp_path / "x.json").write_text(numbers.document("x", {"time": "t"}, {"b": OWN, "a": FP32}), encoding="utf-8")
    assert numbers.read("x") == {"a": FP32, "b": OWN}
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))["stack"] == "x"


def test_the_command_without_a_run(fl: Fl, tmp_path: Path) -> None:
    listed = fl("conform", "--list", "--quick")
    assert listed.returncode == 0 and "sft-lora-fp32-gemma3" in listed.stdout
    assert fl("conform", "--only", "nothing", cwd=tmp_path).returncode == 2
    wrong = fl("conform", "--stack", "cpu-torch212", "--engine", "host", cwd=tmp_path)
    assert wrong.returncode == 4 and not (tmp_path / "evidence").exists()
    file = tmp_path / "file"
    file.touch()
    full = fl("conform", "--engine", "host", "--only", "sft-lora-fp32", "--ledger", str(file / "x"), cwd=tmp_path)
    assert full.returncode == 9 and "takes no record" in full.stderr


def test_a_batch_of_processes_tells_how_each_ended(tmp_path: Path) -> None:
    """Runs that are no forks: they end at once here, where there is no torch, and the next ones start while others are waited for."""
    configs = []
    for number in range(9):
        place = tmp_path / f"case-{number}"
        place.mkdir()
        made = {
            "schema": 1, "run": {"name": "r", "lane": "cuda", "stack": "s", "events": str(place / "events.jsonl")},
            "model": {"name": "m", "path": "builtin/tiny-llama", "kind": "tiny"}, "data": {}, "method": {},
            "training": {"output_dir": str(place / "out")},
        }  # fmt: skip
        configs.append(place / "config.json")
        configs[-1].write_text(json.dumps(made))
    events = tmp_path / "events.jsonl"
    batch = tmp_path / "batch.json"
    batch.write_text(json.dumps({"configs": [str(path) for path in configs], "jobs": 3, "seconds": 60, "events": str(events)}))
    done = subprocess.run([sys.executable, "-m", "fl_trainers.batch", batch], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = [json.loads(line) for line in events.read_text().splitlines()]
    assert sorted(event["config"] for event in told if event["event"] == "case") == sorted(map(str, configs))
    assert all(event["exit"] not in (0, None) for event in told)


def test_the_image_that_a_batch_ran_in_is_in_the_record_of_each_case(tmp_path: Path) -> None:
    """One that was built here has no digest, and only what the engine said when it began tells which it was."""
    case = BY_NAME["sft-lora-fp32"]
    folder = tmp_path / "cases" / case.name
    folder.mkdir(parents=True)
    image = {"reference": "fl-train:cpu-torch213", "digest": None, "source": "local"}
    made = {"plan.json": {"lane": "cpu", "stack": "cpu-torch213", "engine": "docker", "image": image}, "record.json": {"outcome": "passed"}}
    for name, content in made.items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    seen = {"schema": 1, "id": f"sha256:{'a' * 64}", "digest": None, "lock_sha256": None}
    (tmp_path / run_image.NAME).write_text(json.dumps(seen), encoding="utf-8")
    prepared = conform._Prepared(case, folder, "0" * 64, cast(Any, object()))
    conform._judge(prepared, 1.0, ROWS.stack("cpu-torch213"), True, tmp_path / "evidence", [])
    (record,) = ledger.read(tmp_path / "evidence")
    assert record["image"]["id"] == seen["id"]


def test_a_ledger_that_becomes_full_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    run = tmp_path / "state" / "fl" / "runs" / "conform-1"
    unkept: list[EvidenceError] = []

    def full(place: Path, record: object) -> Path:
        raise EvidenceError("the ledger takes no record: No space left on device")

    monkeypatch.setattr(ledger, "add", full)
    for name in ("sft-lora-fp32", "sft-full-fp32"):
        folder = run / "cases" / name
        folder.mkdir(parents=True)
        (folder / "plan.json").write_text(json.dumps({"lane": "cpu", "stack": "cpu-torch213"}), encoding="utf-8")
        (folder / "record.json").write_text(json.dumps({"outcome": "passed"}), encoding="utf-8")
        prepared = conform._Prepared(BY_NAME[name], folder, "0" * 64, cast(Any, object()))
        conform._judge(prepared, 1.0, ROWS.stack("cpu-torch213"), True, tmp_path / "full", unkept)
    assert len(unkept) == 2
    monkeypatch.undo()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert len(ledger_sources.records("conform-1")) == len(ledger_sources.records(str(run))) == 2
