"""evidence.py: the id is the hash of the rest."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any

import pytest

from fl import evidence, matrix
from fl.evidence_private import Owner, image_reference, without


def test_the_id_is_the_hash_of_the_canonical_rest() -> None:
    record = evidence.identified({"schema": 1, "b": [1.5, None], "a": "ü"})
    rest = {key: value for key, value in record.items() if key != "id"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert record["id"] == hashlib.sha256(text.encode()).hexdigest()
    assert evidence.identified(record) == record


def test_any_change_changes_the_id() -> None:
    one, two = evidence.identified({"schema": 1, "loss": [1.0]}), evidence.identified({"schema": 1, "loss": [1.0000001]})
    assert one["id"] != two["id"]


def test_what_is_no_number_is_no_evidence() -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        evidence.identified({"schema": 1, "loss": [float("nan")]})


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\x00"])
def test_broken_files_leave_their_fields_null(tmp_path: Path, text: str) -> None:
    for name in ("plan.json", "config.json", "hardware.json", "record.json"):
        (tmp_path / name).write_text(text)
    record = evidence.of_run(tmp_path, "failed", {"type": "Orphaned", "message": "x"})
    assert record["outcome"] == "failed"
    assert record["model"]["name"] is None
    assert record["environment"]["matches_lock"] is False
    assert record["metrics"]["loss"] == []


def test_a_loss_that_is_no_number_is_null(tmp_path: Path) -> None:
    (tmp_path / "record.json").write_text('{"metrics": {"loss": [1.0, NaN, Infinity]}}')
    assert evidence.of_run(tmp_path, "failed", None)["metrics"] == {"loss": [1.0, None, None]}


def test_devices_and_driver_are_those_of_the_plan(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(json.dumps({"lane": "cuda", "accelerators": [1]}))
    devices = [{"lane": "cuda", "index": n, "name": f"GPU {n}", "arch": "sm_90"} for n in (0, 1)]
    hardware = {"accelerators": devices, "drivers": {"amdgpu": {"version": "6"}, "nvidia": {"version": "580.1"}}}
    (tmp_path / "hardware.json").write_text(json.dumps(hardware))
    accelerator = evidence.of_run(tmp_path, "passed", None)["accelerator"]
    assert (accelerator["name"], accelerator["count"], accelerator["driver"]) == ("GPU 1", 1, "580.1")


PULLED = {"id": "sha256:1", "digest": "sha256:2"}


@pytest.mark.parametrize(("source", "seen", "image", "lock", "matches"), [
    ("local", {"id": "sha256:1", "digest": None, "lock_sha256": "a"}, {"reference": "x:1", "digest": None, "id": "sha256:1"}, "a", True),
    ("pull", PULLED | {"lock_sha256": "a"}, {"reference": "x:1", **PULLED}, "a", True),
    ("pull", PULLED | {"lock_sha256": "b"}, {"reference": "x:1", **PULLED}, "b", False),
    ("pull", {"id": "sha256:1", "lock_sha256": None}, {"reference": "x:1", "digest": None, "id": "sha256:1"}, "a", False),
    ("local", {"id": "/home/carla/x.sif", "digest": "sha256:2"}, {"reference": "x:1", "digest": "sha256:2"}, "a", True),
    ("pull", {}, {"reference": "x:1", "digest": None}, "a", False),
])  # fmt: skip
def test_the_image_is_the_one_that_was_there_when_the_run_began(
    tmp_path: Path, source: str, seen: dict[str, Any], image: dict[str, Any], lock: str, matches: bool
) -> None:
    plan = {"image": {"reference": "x:1", "digest": None, "source": source}, "lock_sha256": "a", "matches_lock": source == "local"}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    (tmp_path / "image.json").write_text(json.dumps(seen))
    made = evidence.of_run(tmp_path, "passed", None)
    environment = made["environment"]
    assert (made["image"], environment["lock_sha256"], environment["matches_lock"]) == (image, lock, matches)


SECRETS = ("/home/carla", "carla", "box-17", "10.1.2.3", "example.org", "/mnt/lab", "My Models")


def test_a_record_tells_nothing_of_its_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/carla")
    monkeypatch.setenv("USER", "carla")
    monkeypatch.setattr("socket.gethostname", lambda: "box-17.example.org")
    model = "/home/carla/My Models/tuned-llama"
    rows = matrix.load()
    plan = {
        "lane": "cpu", "stack": "cpu-torch213", "engine": "docker", "matrix_sha256": rows.sha256,
        "image": {"reference": "registry.example.org:5000/fl-train:cpu-torch213", "digest": "sha256:1"},
        "mounts": [{"source": "/mnt/lab/My Models", "target": "/mnt/lab/My Models"}],
    }  # fmt: skip
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    (tmp_path / "config.json").write_text(json.dumps({"model": {"name": model, "path": model, "kind": "folder"}}))
    message = (
        f"the model folder {model} is broken\n  | File \"/home/carla/.cache/x/site-packages/transformers/models/a.py\", line 3\n"
        "  | carla@box-17: connect to [box-17.example.org]:29500 (10.1.2.3) failed, see https://box-17.example.org/x?token=1\n"
        "  | no /mnt/lab/My Models/data.json, ~/secret.yaml, ../../carla/x; 12 tokens/s on torch 2.13.0, driver 580.159.04"
    )
    record = evidence.of_run(tmp_path, "failed", {"type": "RecipeError", "message": message})
    text = json.dumps(record)
    assert [word for word in (*SECRETS, str(tmp_path)) if word in text] == []
    assert record["model"]["name"] == "tuned-llama"
    assert record["image"] == {"reference": "fl-train:cpu-torch213", "digest": "sha256:1"}
    assert record["row_sha256"] == evidence.row_sha256(rows, rows.stack("cpu-torch213"))
    for kept in ("is broken", "transformers/models/a.py", "12 tokens/s", "torch 2.13.0", "580.159.04"):
        assert kept in record["failure"]["message"], record["failure"]["message"]


@pytest.mark.parametrize("name", ["org/model-7b", "builtin/smollm2-135m"])
def test_names_of_models_that_everyone_can_get_are_kept(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model": {"name": name, "kind": "gguf" if "builtin" in name else "hub"}}))
    assert evidence.of_run(tmp_path, "passed", None)["model"]["name"] == name


def test_a_name_that_is_no_text_still_leaves_evidence(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model": {"name": "/data/m\\udcff", "kind": "folder"}}')
    assert evidence.of_run(tmp_path, "failed", {"type": "RecipeError", "message": "no \udcff"})["model"]["name"] == "m?"


def test_texts_without_an_owner_stay_as_they_are() -> None:
    text = "loss is NaN at step 3/10: lower learning_rate (1e-4), q_proj/v_proj, and/or bf16: false; ratio 1:2"
    assert without(text, Owner(users=("carla",))) == text


@pytest.mark.parametrize(("reference", "kept"), [
    ("127.0.0.1:5000/team/a:1", "team/a:1"), ("localhost/a:1", "a:1"), ("fl-train:x", "fl-train:x"), ("rocm/pytorch:1", "rocm/pytorch:1"),
    ("ghcr.io/carla/a:1", "(user)/a:1"), ("carla/a:1", "(user)/a:1"),
])  # fmt: skip
def test_the_host_of_a_registry_is_left_out(reference: str, kept: str) -> None:
    assert image_reference(reference, Owner(users=("carla",))) == kept


CARLA = Owner(folders=("/mnt/lab/My Models",), users=("carla", "mm"), hosts=("box-17.example.org", "box-17"))


@pytest.mark.parametrize(("text", "kept"), [
    ("C:\\Users\\Carla\\x.json is missing", "(path) is missing"),
    ("file:///mnt/lab/My Models/a", "(address) Models/a"),
    ("no /mnt/c/Users/Jane Roe/x.json there", "no (path) there"),
    ("CARLA's carla_tuned-llama on BOX-17", "(user)'s (user)_tuned-llama on (host)"),
    ("connect to node12:29500, then gpu-a.cluster.local<34567>", "connect to (address), then (address)<34567>"),
    ("from fe80::1%eth0 and 2001:db8:0:0:0:0:dead:beef, 00:1a:2b:3c:4d:5e", "from (address) and (address), (address)"),
    ("GPU-8f3c1a2b-1111-2222-3333-444455556666 fell off", "(device) fell off"),
    ("HF_TOKEN=hf_abcdefghijklm, 'password': 'x', token: abcdefgh", "HF_TOKEN=(secret), 'password': (secret), token: (secret)"),
])  # fmt: skip
def test_what_else_would_tell_of_somebody(text: str, kept: str) -> None:
    assert without(text, CARLA) == kept


@pytest.mark.parametrize("piece", ["a-", "a.", "_", "1.", "GPU-", "/a a a ", "0:", "token=", "\\\\"])
def test_a_text_of_any_form_is_cleaned_at_once(piece: str) -> None:
    began = time.process_time()
    assert len(without(piece * 500_000, CARLA)) < 50_000
    assert time.process_time() - began < 5


@pytest.mark.parametrize("text", [
    "c10::cuda::CUDAException at::native at 12:34:56, GPU 0000:1a:00.0, modeling_llama.py:1234, loss:12345",
    "eos_token='</s>', pad_token: <pad>, max_tokens=512, {'token': None}, token: int, mm-projector, model.layers.0.self_attn.q_proj",
])  # fmt: skip
def test_what_tells_of_nobody_stays(text: str) -> None:
    assert without(text, CARLA) == text


def test_the_hash_of_a_row_follows_what_is_installed_and_not_what_is_claimed() -> None:
    rows = matrix.load()
    row = rows.stack("cpu-torch213")
    before = evidence.row_sha256(rows, row)
    assert evidence.row_sha256(rows, row.model_copy(update={"status": "lts", "notes": ("x",), "sources": {}})) == before
    for change in ({"python": "3.12"}, {"train": {**row.train, "torch": "2.12.0"}}, {"features": {**row.features, "bf16": False}}):
        assert evidence.row_sha256(rows, row.model_copy(update=change)) != before
    newer = rows.model_copy(update={"layers": {"current": {**rows.layers["current"], "peft": "0.0.1"}}})
    assert evidence.row_sha256(newer, row) != before
