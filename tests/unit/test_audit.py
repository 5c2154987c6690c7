"""The audit: states of cells as a table, pages that nothing escapes from, and the command."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ledger_records import record

from fl import audit, audit_pages, conform_set, ledger
from fl.commands.audit import STATES
from fl.evidence import row_sha256
from fl.ledger_index import entry_of
from fl.matrix import Matrix, load

ROWS = load()
LOCK, TRAINER, EXTRAS = "l" * 64, "t" * 64, "e" * 64


def now(**more: Any) -> audit.Now:
    return audit.now(more.get("matrix", ROWS), TRAINER, lambda stack: frozenset({LOCK}), lambda stack: frozenset({EXTRAS}))


def of(*records: dict[str, Any], current: audit.Now | None = None, types: tuple[str, ...] = ("llama",)) -> audit.Cell:
    return audit.cell("acme/one", types, ROWS.stack("cpu-torch213"), [entry_of(one) for one in records], current or now())


ROW = row_sha256(ROWS, ROWS.stack("cpu-torch213"))
BROKE = {"type": "NaN", "message": "x"}
LATER = {"time": "2026-11-25T00:00:00Z"}


@pytest.mark.parametrize(
    ("records", "state", "why"),
    [
        ([record()], "proven", "loss 1.5"),
        ([record(outcome="failed", failure={"type": "OutOfMemory", "message": "no room"})], "failed", "OutOfMemory: no room"),
        ([record(), record(outcome="failed", failure={"type": "NaN", "message": "at step 3"}, **LATER)], "failed", "NaN"),
        ([record(outcome="failed"), record(**LATER)], "proven", "2026-11-25"),
        ([record(outcome="refused", failure={"type": "Refused", "message": "needs bf16"})], "failed", "needs bf16"),
        ([record(trainer_sha256="x")], "stale", "changed since: trainer"),
        ([record(environment={"lock_sha256": "x"})], "stale", "changed since: lock"),
        ([record(environment={"versions": {"torch": "2.12.0"}})], "stale", "torch 2.12.0 → 2.13.0"),
        ([record(matrix_sha256=ROWS.sha256, environment={"versions": {"torch": "2.12.0"}})], "proven", "loss"),
        ([record(trainer_sha256="x"), record(outcome="failed", **LATER)], "failed", "failed"),
        ([record(environment={"matches_lock": False})], "declared", "not the lock's"),
        ([record(row_sha256=ROW, environment={"versions": {"torch": "2.12.0"}})], "proven", "loss 1.5"),
        ([record(row_sha256="x" * 64)], "stale", "changed since: matrix row"),
        ([record(environment={"extras": [{"name": "galore", "lock_sha256": "x"}]})], "stale", "changed since: lock of its extras"),
        ([record(environment={"extras": [{"name": "galore", "lock_sha256": EXTRAS}]})], "proven", "loss 1.5"),
        ([record(environment={"extras": "odd"}), record(environment={"extras": ["odd"]}, **LATER)], "proven", "loss 1.5"),
        ([record(), record(outcome="failed", recipe_sha256="o", failure=BROKE, **LATER)], "proven", "another recipe: NaN"),
        ([record(), record(outcome="failed", failure={"type": "Interrupted", "message": "x"}, **LATER)], "proven", "loss 1.5"),
        ([record(outcome="failed", failure={"type": "EngineError", "message": "x"})], "declared", "llama"),
        ([], "declared", "llama is in transformers since"),
    ],
)
def test_states(records: list[dict[str, Any]], state: str, why: str) -> None:
    found = of(*records)
    assert (found.state, why in found.why) == (state, True), found


def test_metadata_says_what_is_impossible_and_what_nobody_knows() -> None:
    old = ROWS.model_copy(update={"layers": {**ROWS.layers, "current": {**ROWS.layers["current"], "transformers": "4.57.0"}}})
    types = [(name, known.transformers or "") for family in ROWS.models.values() for name, known in family.types.items()]
    new = next(name for name, first in types if first.startswith("5.1"))
    found = of(types=(new,), current=now(matrix=old))
    assert found.state == "impossible"
    assert "first in transformers 5.1" in found.why
    assert "this stack has 4.57.0" in found.why
    assert of(types=("nobody_knows_this",)).state == "unknown"
    assert of(types=()).state == "unknown"
    never = next(name for family in ROWS.models.values() for name, t in family.types.items() if t.transformers is None)
    assert of(types=(never,)).state == "unknown"
    assert of(types=("nobody_knows_this", "llama")).state == "declared"


def test_every_family_and_every_stack_has_a_cell_and_none_is_proven_without_evidence() -> None:
    found = audit.cells([], now())
    assert len(found) == len(ROWS.models) * len(ROWS.stacks)
    assert {cell.state for cell in found} <= {"declared", "impossible", "unknown"}


def test_a_lane_has_the_state_of_its_best_stack_and_differences_are_cells() -> None:
    entries = [entry_of(record())]
    found = audit.cells(entries, now(), models={"acme/one": ["llama"]})
    assert audit.lanes(found)["acme/one"]["cpu"].state == "proven"
    assert {cell.state for cell in audit.cells([entry_of(record(stack="gone"))], now()) if cell.stack == "gone"} == {"stale"}
    assert audit.lanes(found)["acme/one"]["rocm"].state == "declared"
    before = audit.cells([], now(), models={"acme/one": ["llama"]})
    ((left, right),) = audit.difference(before, found)
    assert (left and left.state, right and right.state) == ("declared", "proven")
    assert [a and a.stack for a, b in audit.difference(found, found)] == []
    stale = audit.cells([entry_of(record(trainer_sha256="x"))], now())
    first = audit.needs(stale, ROWS, {"acme/one", "acme/two"})[0]
    assert (first.stack.id, first.again, first.proves) == ("cpu-torch213", 1, 2)
    last = audit.needs(found, ROWS, {"acme/one"})[-1]  # a stack whose conformance is proven is not to be run again
    assert (last.stack.id, last.proves) == ("cpu-torch213", 0)
    assert first.types[0][1] >= first.types[-1][1] > 0


HOSTILE = '<script>alert(1)</script>"\'><img src=x onerror=y>\x1b[31m|`[a](javascript:x)'


def test_hostile_names_stay_text() -> None:
    made = record(model={"name": HOSTILE}, accelerator={"name": HOSTILE})
    entry = entry_of(made)
    cells = audit.cells([entry], now(), models={entry.model: ["llama"]})
    page = audit_pages.page(cells, {made["id"]: made}, [s.id for s in ROWS.stacks], "t")
    assert "<script>alert" not in page
    assert "<img" not in page
    assert "\x1b" not in page
    assert f'href="#{made["id"]}"' in page
    assert f'id="{made["id"]}"' in page
    text = audit_pages.markdown(audit.lanes(cells), ["cpu"])
    assert "<script>" not in text
    assert "\x1b" not in text
    assert "\\[a\\](javascript" in text


def fl(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "fl", "audit", *arguments], capture_output=True, text=True, check=False, cwd=tmp_path)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    ledger.add(tmp_path / "evidence", record())
    ledger.add(tmp_path / "evidence", record(model={"name": HOSTILE}))
    return tmp_path


def test_the_command_prints_a_table_json_markdown_and_a_page(place: Path) -> None:
    shown = fl(place)
    assert shown.returncode == 0, shown.stderr
    assert "acme/one" in shown.stdout
    assert "\x1b" not in shown.stdout
    document = json.loads(fl(place, "--json", "--lane", "cpu").stdout)
    cell = next(c for c in document["cells"] if c["model"] == "acme/one")
    assert cell["state"] == "stale"
    assert (cell["lane"], cell["stack"], len(cell["evidence"])) == ("cpu", "cpu-torch213", 1)
    assert "| acme/one |" in fl(place, "--md").stdout
    assert fl(place, "--html", "page.html").returncode == 0
    assert "acme/one" in (place / "page.html").read_text()
    assert "fl conform --hw cpu --stack cpu-torch213" in fl(place, "--needs").stdout
    needs = json.loads(fl(place, "--needs", "--json").stdout)["needs"]
    assert {one["proves"] for one in needs} == {len({case.keys["model_name_or_path"] for case in conform_set.CASES})}
    only = json.loads(fl(place, "--needs", "--json", "--model", "acme/one", "--lane", "cpu").stdout)["needs"]
    assert {one["lane"] for one in only} == {"cpu"}
    assert {(one["proves"], one["command"].split(" --")[0]) for one in only} == {(0, "fl run quickstart")}


def test_a_model_folder_of_today_is_answered_by_its_config(place: Path) -> None:
    (place / "new").mkdir()
    (place / "new" / "config.json").write_text('{"model_type": "qwen3"}')
    found = json.loads(fl(place, "--model", "new", "--json").stdout)["cells"]
    assert {cell["state"] for cell in found} == {"declared"}
    for broken in ("{}", "[]", "", "[" * 100_000):
        (place / "new" / "config.json").write_text(broken)
        assert fl(place, "--model", "new").returncode == 5


@pytest.mark.parametrize(
    ("config", "state", "why"),
    [
        ({"model_type": "qwen2", "quantization_config": {"quant_method": "awq"}}, "impossible", "needs the package gptqmodel"),
        ({"model_type": "qwen2", "quantization_config": {"quant_method": "fp8"}}, "declared", "its weights are quantized (fp8)"),
        ({"model_type": "qwen2", "quantization_config": []}, "declared", "is in transformers since"),
        ({"model_type": "brandnew", "transformers_version": "99.0"}, "unknown", "written by transformers 99.0, this stack has"),
        ({"model_type": "brandnew", "transformers_version": "\x1b[2J"}, "unknown", "does not know the model type brandnew"),
        ({"model_type": "brandnew", "auto_map": {"AutoModel": "m.M"}}, "unknown", "comes with code of its own"),
    ],
)
def test_what_a_folder_says_of_itself_counts(place: Path, config: dict[str, Any], state: str, why: str) -> None:
    (place / "new").mkdir()
    (place / "new" / "config.json").write_text(json.dumps(config))
    for asked in ("new", "new/config.json"):
        (cell,) = json.loads(fl(place, "--model", asked, "--stack", "cpu-torch213", "--json").stdout)["cells"]
        assert (cell["model"], cell["state"], why in cell["why"]) == ("new", state, True), cell


def test_a_record_of_another_model_in_a_folder_of_that_name_is_no_proof(place: Path) -> None:
    """What a folder's name says: nothing. Same type and one config are its runs; anything else is told apart."""
    (place / "new").mkdir()
    (place / "new" / "config.json").write_text('{"model_type": "qwen3"}')
    other = {"name": "new", "model_type": "llama", "config_sha256": "a" * 64}
    ledger.add(place / "evidence", record(model=other))

    def evidence() -> list[int]:
        found = json.loads(fl(place, "--model", "new", "--stack", "cpu-torch213", "--json").stdout)["cells"]
        return [len(cell["evidence"]) for cell in found]

    assert evidence() == [0]
    ledger.add(place / "evidence", record(model={**other, "model_type": "qwen3", "config_sha256": "b" * 64}))
    assert evidence() == [1]
    ledger.add(place / "evidence", record(model={**other, "model_type": "qwen3", "config_sha256": "c" * 64}))
    assert evidence() == [0]
    named = {cell["model"] for cell in json.loads(fl(place, "--json", "--lane", "cpu").stdout)["cells"] if cell["evidence"]}
    assert named >= {"new (aaaaaaaa)", "new (bbbbbbbb)", "new (cccccccc)", "acme/one"}


def test_a_ledger_with_broken_files_still_answers_and_says_so(place: Path) -> None:
    ledger.add(place / "evidence", record(outcome="failed")).write_text("{")
    shown = fl(place)
    assert (shown.returncode, "1 files in" in shown.stderr, "fl audit verify" in shown.stderr) == (0, True, True)


def test_a_ledger_that_the_settings_name_and_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "fl").mkdir()
    (tmp_path / "fl" / "config.yaml").write_text(f"ledger: {tmp_path}/site\n")
    missing = fl(tmp_path)
    assert (missing.returncode, "config.yaml names" in missing.stderr) == (9, True)
    ledger.add(tmp_path / "site", record())
    assert "acme/one" in fl(tmp_path).stdout


def test_a_full_disk_leaves_the_page_as_it_was(place: Path) -> None:
    (place / "page.html").write_text("before")
    full = subprocess.run(
        ["bash", "-c", f"ulimit -f 8; trap '' XFSZ; exec {sys.executable} -m fl audit --html page.html"],
        capture_output=True, text=True, check=False, cwd=place,
    )  # fmt: skip
    assert (full.returncode, "cannot be written" in full.stderr) == (9, True), full.stderr
    assert (place / "page.html").read_text() == "before"
    assert not list(place.glob(".*.part"))


def test_only_cells_of_a_state(place: Path) -> None:
    found = json.loads(fl(place, "--json", "--state", "stale", "--state", "unknown").stdout)["cells"]
    assert {cell["state"] for cell in found} == {"stale", "unknown"}
    shown = fl(place, "--state", "stale").stdout
    assert "acme/one" in shown and "declared" not in shown
    assert fl(place, "--state", "good").returncode == 2
    assert STATES == audit.ORDER


def test_a_model_that_nobody_knows_is_to_be_tried(place: Path) -> None:
    (place / "new").mkdir()
    (place / "new" / "config.json").write_text('{"model_type": "brandnew"}')
    assert "nobody knows before it is tried" in fl(place, "--model", "new").stderr
    assert "nobody knows" not in fl(place, "--model", "acme/one").stderr


def test_what_is_asked_wrongly_is_told(place: Path) -> None:
    assert "neither a folder of records nor a matrix file" in fl(place, "--diff", "nowhere", "evidence").stderr
    assert fl(place, "--model", " ").returncode == 2
    for two in (("--json", "--md"), ("--json", "--html", "x.html"), ("--diff", "a", "b", "--needs")):
        assert fl(place, *two).returncode == 2
    unknown = fl(place, "--model", "lamma 3")
    assert unknown.returncode == 9
    assert "did you mean" in unknown.stderr
    assert fl(place, "--lane", "tpu").returncode == 2
    assert fl(place, "--stack", "cuda1").returncode == 4
    assert fl(place, "--ledger", "nowhere").returncode == 9
    missing = json.loads(fl(place, "--ledger", "nowhere", "--json").stdout)
    assert missing["error"]["exit"] == 9


def test_add_merge_and_verify(place: Path) -> None:
    (place / "loose").mkdir()
    (place / "loose" / "a.json").write_text(json.dumps(record(outcome="failed")))
    assert "1 of 1 records are new" in fl(place, "add", "loose").stderr
    assert "0 of 1 records are new" in fl(place, "add", "loose/a.json").stderr
    assert fl(place, "verify").returncode == 0
    merged = fl(place, "--ledger", "other", "merge", "evidence")
    assert merged.returncode == 0, merged.stderr
    assert ledger.verify(place / "other") == (3, [])
    assert json.loads(fl(place, "--diff", "evidence", "other", "--json").stdout) == {"schema": 1, "changes": []}
    (place / "loose" / "a.json").write_text(json.dumps({**record(), "outcome": "failed"}))
    (place / "loose" / "good.json").write_text(json.dumps(record(recipe_sha256="1" * 64)))
    refused = fl(place, "add", "loose/good.json", "loose/a.json")
    assert (refused.returncode, "was changed" in refused.stderr, "nothing was added" in refused.stderr) == (9, True, True)
    assert ledger.verify(place / "evidence") == (3, [])
    (place / "loose" / "a.json").write_text(json.dumps({**record(), "schema": 2}))
    assert "upgrade fl" in fl(place, "add", "loose/a.json").stderr
    assert fl(place, "add", "no-such-run").returncode == 9
    victim = next((place / "other").rglob("*.json"))
    victim.write_text("{")
    assert fl(place, "--ledger", "other", "verify").returncode == 9
    assert fl(place, "--ledger", "third", "merge", "other").returncode == 9
    assert ledger.verify(place / "third") == (2, [])


def test_a_run_whose_launcher_died_leaves_its_evidence_when_it_is_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    run = tmp_path / "state" / "fl" / "runs" / "sft-1"
    run.mkdir(parents=True)
    gone = {"launcher": "4194305:1", "engine": "host", "ident": "4194305:1"}
    (run / "state.json").write_text(json.dumps({"schema": 1, "run": "sft-1", "state": "running", "created": 1.0, **gone}))
    (run / "plan.json").write_text(json.dumps({"lane": "cpu", "stack": "cpu-torch213", "matches_lock": True}))
    (run / "record.json").write_text(json.dumps({"metrics": {"loss": [2.0, 1.0]}, "model": {"model_type": "llama"}}))
    (run / "events.jsonl").write_text('{"time": 1, "event": "end", "outcome": "passed", "exit_code": 0}\n')
    assert fl(tmp_path, "add", "sft-1").returncode == 0
    (made,) = ledger.read(tmp_path / "evidence")
    assert (made["outcome"], made["metrics"]["loss"], made["stack"]) == ("passed", [2.0, 1.0], "cpu-torch213")
    assert "0 of 1 records are new" in fl(tmp_path, "add", "sft").stderr  # as for `fl logs`: the beginning of the name
    shutil.copytree(run, run.with_name("sft-2"))
    several = fl(tmp_path, "add", "sft")
    assert several.returncode == 9 and "2 runs begin with 'sft'" in several.stderr and "sft-2" in several.stderr


def test_a_filter_that_nothing_fits_is_said(place: Path) -> None:
    done = fl(place, "--state", "impossible", "--stack", "cpu-torch213")
    assert done.returncode == 0 and done.stdout == "" and "nothing matches" in done.stderr


def test_the_matrix_may_be_another_file(place: Path) -> None:
    done = fl(place, "--diff", "evidence", str(Path(load.__code__.co_filename).parents[2] / "matrix.yaml"))
    assert done.returncode == 0, done.stderr
    assert isinstance(ROWS, Matrix)
