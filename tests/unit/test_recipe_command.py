"""`fl recipe check | show | list | schema`, through the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from fl import cli, matrix, paths
from fl.recipe_keys import all_keys
from fl.recipe_launcher import LAUNCHER_KEYS

RECIPES = Path(__file__).parents[1] / "data" / "recipes"
LANES = {"cuda", "rocm", "ascend", "xpu", "cpu"}


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        cli.main(["recipe", *arguments])
    captured = capsys.readouterr()
    code = ended.value.code
    assert code is None or isinstance(code, int)
    return code or 0, captured.out, captured.err


def checked(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(run(capsys, "check", *arguments, "--json")[1])
    return document


@pytest.fixture(autouse=True)
def in_recipes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(RECIPES)


def test_check_prints_every_key_and_lane(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "check", "lora_sft.yaml")
    assert code == 0
    rows = {line.split()[0]: line for line in out.splitlines() if line.strip()}
    assert "translated" in rows["warmup_ratio"]
    assert "warmup_steps" in rows["warmup_ratio"]
    assert "ignored" in rows["image_max_pixels"]
    assert "handled" in rows["lora_rank"]
    assert set(rows) >= LANES


def test_check_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    document = checked(capsys, "lora_sft.yaml", "flash_attn=fa2")
    assert document["recipe"] == str(RECIPES / "lora_sft.yaml")
    assert set(document) == {"recipe", "keys", "lanes"}
    keys = {entry["key"]: entry for entry in document["keys"]}
    assert keys["flash_attn"] == {"key": "flash_attn", "value": "fa2", "verdict": "handled", "note": ""}
    assert set(document["lanes"]) == LANES
    known = {row.id: row for row in matrix.load().stacks}
    for lane, entry in document["lanes"].items():
        assert set(entry) == {"verdict", "stack", "notes"}
        row = known[entry["stack"]]
        assert row.lane == lane
        without = row.features.get("flash_attention") == "none"
        assert entry["verdict"] == ("adapted" if without else "runs")
        assert any("fa2 → sdpa" in note for note in entry["notes"]) == without


def test_check_opens_neither_model_nor_data(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "model_name_or_path: /nowhere/model\ndo_train: true\ndataset: unheard_of\noutput_dir: /nowhere/out\ndeepspeed: nothing.json\n"
    (tmp_path / "r.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    assert run(capsys, "check", "r.yaml")[0] == 0


def test_what_a_lane_cannot_do_is_refused_there_alone(capsys: pytest.CaptureFixture[str]) -> None:
    lanes = checked(capsys, "qlora.yaml")["lanes"]
    assert lanes["ascend"]["verdict"] == "refused"
    assert "bitsandbytes" in lanes["ascend"]["notes"][0]
    assert lanes["cuda"]["verdict"] != "refused"


def test_a_named_stack_is_the_one_that_is_asked(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [row for row in matrix.load().stacks if row.lane == "cuda" and row.status != "retired"]
    document = checked(capsys, "oft.yaml", f"fl.stack={rows[-1].id}")
    assert document["lanes"]["cuda"]["stack"] == rows[-1].id


def test_refused_keys_end_with_5(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "check", "oft.yaml", "lora_rnak=3", "stage=ppo")
    assert code == 5
    assert "did you mean `lora_rank`?" in out
    assert "error: command line: lora_rnak: unknown key" in err
    code, out, _ = run(capsys, "check", "oft.yaml", "lora_rnak=3", "learning_rate=.nan", "--json")
    assert code == 5
    document = json.loads(out)
    assert {entry["key"]: entry["verdict"] for entry in document["keys"]}["lora_rnak"] == "refused"
    assert {lane["verdict"] for lane in document["lanes"].values()} == {"refused"}


def test_a_file_that_cannot_be_read_is_an_error_document(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("a: 1\na: 2\n")
    code, out, err = run(capsys, "check", str(path), "--json")
    assert code == 5
    assert json.loads(out)["error"]["message"].startswith(f"{path}:2:1: `a` stands here for the second time")
    assert err == ""
    code, out, err = run(capsys, "check", str(path))
    assert (code, out) == (5, "")
    assert "r.yaml:2:1" in err


def test_an_override_without_a_value_is_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "check", "oft.yaml", "lora_rank")[0] == 2


def test_show(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "show", "oft.yaml", "learning_rate=3e-4", "--json")
    assert code == 0
    document = json.loads(out)
    assert document["training"]["arguments"] == {"learning_rate": 3e-4}
    assert document["run"]["lane"] == "cpu"
    assert document["data"]["train"][0]["path"] == str(RECIPES / "data/greetings.json")
    code, out, _ = run(capsys, "show", "oft.yaml", "learning_rate=3e-4")
    shown = yaml.safe_load(out)
    assert shown["method"] == document["method"]


def test_show_for_another_lane(capsys: pytest.CaptureFixture[str]) -> None:
    document = json.loads(run(capsys, "show", "oft.yaml", "fl.hw=rocm", "--json")[1])
    assert document["run"]["lane"] == "rocm"
    row = matrix.load().stack(document["run"]["stack"])
    assert row.lane == "rocm"
    assert run(capsys, "show", "oft.yaml", "fl.stack=rocm99", "--json")[0] == 4


def test_show_needs_the_data(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "show", "oft.yaml", "dataset=greeting")
    assert code == 5
    assert "Did you mean 'greetings'" in err


def test_list(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "recipes", lambda: RECIPES)
    rows = json.loads(run(capsys, "list", "--json")[1])["recipes"]
    found = {row["name"]: row for row in rows}
    assert found["older"] == {"name": "older", "about": "Keys of transformers 4", "path": str(RECIPES / "older.yaml")}
    _, out, _ = run(capsys, "list")
    assert "older" in out


def test_shipped_recipes_are_accepted_on_every_lane(capsys: pytest.CaptureFixture[str]) -> None:
    rows = json.loads(run(capsys, "list", "--json")[1])["recipes"]
    assert "quickstart" in {row["name"] for row in rows}
    for row in rows:
        document = checked(capsys, row["name"])
        assert all(lane["verdict"] != "refused" for lane in document["lanes"].values()), row["name"]


def schema(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(run(capsys, "schema")[1])
    return document


def test_the_schema_knows_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    document = schema(capsys)
    assert set(document["properties"]) == {*all_keys(), "fl"}
    assert document["additionalProperties"] is False
    assert set(document["properties"]["fl"]["properties"]) == set(LAUNCHER_KEYS)
    assert all(entry["description"] for entry in document["properties"].values())
    assert document["properties"]["lora_rank"] == {"type": ["integer", "null"], "description": "Rank.", "default": 8, "minimum": 1}
    assert document["properties"]["use_mca"]["deprecated"] is True
    assert "sft" in document["properties"]["stage"]["enum"]


def fits(value: object, rule: dict[str, Any]) -> bool:
    """As much of JSON Schema as the schema uses."""
    if "enum" in rule:
        return value in rule["enum"]
    names = {"boolean": bool, "string": str, "array": list, "object": dict, "null": type(None)}
    numeric = isinstance(value, int | float) and not isinstance(value, bool)
    types = rule.get("type")
    if types is not None:
        types = [types] if isinstance(types, str) else types
        whole = numeric and float(str(value)).is_integer()
        if not any(numeric if t == "number" else whole if t == "integer" else isinstance(value, names[t]) for t in types):
            return False
    if isinstance(value, int | float) and numeric and not rule.get("minimum", value) <= value <= rule.get("maximum", value):
        return False
    if isinstance(value, dict) and "properties" in rule:
        return all(key in rule["properties"] and fits(item, rule["properties"][key]) for key, item in value.items())
    return all(fits(item, rule.get("items", {})) for item in value) if isinstance(value, list) else True


@pytest.mark.parametrize("name", sorted(p.name for p in RECIPES.glob("*.*") if p.name != "zero3.json"))
def test_recipes_satisfy_the_schema(capsys: pytest.CaptureFixture[str], name: str) -> None:
    from fl.recipe_yaml import load

    document = load((RECIPES / name).read_bytes(), name).values
    rules = schema(capsys)
    assert {key for key, value in document.items() if not fits(value, rules["properties"][key])} == set()
    assert not fits({"lora_rnak": 3}, rules)
    assert not fits({"lora_rank": "many"}, rules)
