"""matrix.yaml itself, and loading it."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fl import paths
from fl.errors import MatrixError, StackError
from fl.images import lock
from fl.matrix import load
from fl.matrix_check import FEATURES, check
from fl.versions import driver_below, driver_fits, driver_key, fits

LAYER = {"transformers": "5.24.0", "trl": "1.12.0", "peft": "0.21.2", "accelerate": "1.15.0", "datasets": "5.2.0"}


def test_the_shipped_matrix_holds_together() -> None:
    assert check(paths.MATRIX) == []


def test_every_lane_has_a_row_and_only_what_was_trained_with_is_stable() -> None:
    stacks = load().stacks
    assert {s.lane for s in stacks} == {"cuda", "rocm", "ascend", "xpu", "cpu"}
    assert [s.id for s in stacks if s.status == "stable"] == ["cpu-torch213"]
    assert [s.id for s in stacks if s.confidence == "verified"] == ["cpu-torch213"]


def test_the_cpu_row_pins_what_was_installed_and_trained_with() -> None:
    matrix = load()
    stack = matrix.stack("cpu-torch213")
    assert (stack.python, stack.base.image, stack.hosts.platforms) == ("3.11", "debian:bookworm-slim", ("linux/amd64",))
    assert matrix.packages(stack) == {
        **LAYER, "torch": "2.13.0+cpu", "deepspeed": "0.19.8", "bitsandbytes": "0.50.2", "gguf": "0.19.0", "matplotlib": "3.11.2",
        "pydantic": "2.14.4",
    }


@pytest.mark.parametrize("stack", [s.id for s in load().stacks])
def test_every_row_has_the_layer_the_trainers_packages_and_every_feature(stack: str) -> None:
    matrix = load()
    row = matrix.stack(stack)
    packages = matrix.packages(row)
    assert packages.items() >= LAYER.items()
    assert {"torch", "gguf", "matplotlib", "pydantic"} <= packages.keys()
    assert None not in packages.values()
    assert tuple(row.features) == FEATURES
    assert row.sources


def test_serving_takes_nothing_from_the_layer() -> None:
    matrix = load()
    assert matrix.packages(matrix.stack("cuda130-torch214"), "serve") == {"torch": "2.14.0", "transformers": "5.20.2", "vllm": "0.33.0"}
    assert matrix.packages(matrix.stack("cpu-torch213"), "serve") == {}


def test_chips_may_differ_between_platforms() -> None:
    hosts = load().stack("cuda130-torch214").hosts
    assert "sm_75" in hosts.arches_of("linux/amd64")
    assert "sm_75" not in hosts.arches_of("linux/arm64")
    assert "sm_110" in hosts.arches_of("linux/arm64")


def test_an_unknown_id_names_the_nearest() -> None:
    with pytest.raises(StackError, match=r"no stack is called 'cpu-torch123'\. Did you mean cpu-torch213\?"):
        load().stack("cpu-torch123")


def test_models_know_the_first_version_of_each_library() -> None:
    matrix = load()
    assert len(matrix.models) == 96
    qwen3 = matrix.model_type("qwen3")
    assert qwen3 is not None
    assert (qwen3.transformers, qwen3.vllm) == ("4.51.0", "0.8.4")
    chatglm = matrix.model_type("chatglm")
    assert chatglm is not None
    assert chatglm.transformers is None
    assert matrix.model_type("nonesuch") is None


def test_a_model_type_says_the_same_in_every_family() -> None:
    seen: dict[str, object] = {}
    for family in load().models.values():
        for name, known in family.types.items():
            assert seen.setdefault(name, known) == known


@pytest.mark.parametrize(
    ("runtime", "release", "floor"),
    [
        ("cuda", "13.0", "580.65.06"), ("cuda", "13.5", "580.65.06"), ("cuda", "12.8", "525.60.13"), ("cuda", "14.0", None),
        ("cann", "9.1.0", "25.2"), ("cann", "8.2.RC1", "24.1.rc2"), ("cann", "8.4", None), ("rocm", "7.2", None),
    ],
)
def test_driver_floors(runtime: str, release: str, floor: str | None) -> None:
    assert load().drivers[runtime].floor(release) == floor


def test_the_hash_is_that_of_the_file() -> None:
    matrix = load()
    assert matrix.sha256 == hashlib.sha256(paths.MATRIX.read_bytes()).hexdigest()
    assert matrix.text == paths.MATRIX.read_text(encoding="utf-8")


def test_no_ordinary_index_is_named() -> None:
    assert not re.search(r"pypi\.org|pythonhosted|deb\.debian|npmjs", load().text)


def test_loading_is_fast_enough_for_a_dry_run() -> None:
    load()
    begin = time.process_time()
    load()
    assert time.process_time() - begin < 0.3, "0.02 s on the machine this was written on"


def test_fl_matrix_check_ends_within_a_second_of_processor_time() -> None:
    code = "import time, fl.cli\ntry: fl.cli.main(['matrix', 'check'])\nexcept SystemExit as e: print(time.process_time(), e.code)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout.split()[-2]) < 2.0, "0.4 s on the machine this was written on"


def test_a_broken_file_names_its_lines(tmp_path: Path) -> None:
    file = tmp_path / "matrix.yaml"
    file.write_text("schema: 1\nlayers: {}\nstacks:\n- id: x\n  lain: cuda\n", encoding="utf-8")
    with pytest.raises(MatrixError) as raised:
        load(file)
    assert "line 5, stacks.x.lain: unknown field 'lain'. Did you mean lane?" in raised.value.message
    assert raised.value.exit_code == 8
    file.write_bytes(b"schema: \xff")
    with pytest.raises(MatrixError, match="not UTF-8"):
        load(file)
    with pytest.raises(MatrixError, match="cannot be read"):
        load(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(
    ("version", "specifier", "expected"),
    [
        ("580.95.05", ">=580.65.06", True), ("580.65.06", ">=580.65.06", True), ("580.65.05", ">=580.65.06", False),
        ("580.126", ">=580.95.05", True),
        ("580", ">=580.0.0", True), ("1000.1", ">=580.65.06", True), ("99.99.99", ">=580.65.06", False),
        ("24.1.rc3.7", ">=24.1.rc2", True), ("24.1.RC1", ">=24.1.rc2", False), ("24.1.0", ">=24.1.rc3", True),
        ("25.2.rc1", ">=25.2", False),
        ("25.2.0", ">=25.2", True), ("26.0.rc1", ">=25.2,<27", True), ("27.0", ">=25.2,<27", False), ("25.2", "==25.2.0", True),
        ("25.2.1", ">25.2", True), ("25.2.0", "<=25.2", True), ("GRID 580", ">=580", None), ("", ">=580", None),
    ],
)
def test_drivers_are_compared_part_by_part(version: str, specifier: str, expected: bool | None) -> None:
    assert driver_fits(version, specifier) is expected


def test_driver_keys() -> None:
    assert driver_key("580.65.06") == driver_key("580.65.6")
    assert driver_key("25.2") == driver_key("25.2.0")
    assert driver_below("24.1.rc3", "24.1")
    assert not driver_below("25.2.0", "25.2")


@pytest.mark.parametrize(
    ("version", "specifier", "expected"),
    [
        ("0.15.2", "==0.15.2 || >=0.18.0", True), ("0.17.1", "==0.15.2 || >=0.18.0", False), ("0.21.2", "==0.15.2 || >=0.18.0", True),
        ("2.13.0+cpu", "==2.13.0", True), ("8.2.RC1", "==8.2.RC1", True), ("2.10.0.post4", "==2.10.0", False), ("1.0", "*", True),
    ],
)
def test_specifiers_have_alternatives(version: str, specifier: str, expected: bool) -> None:
    assert fits(version, specifier) is expected


FACTS = Path(__file__).resolve().parents[3] / "shared" / "facts"


@pytest.mark.skipif(not FACTS.is_dir(), reason="the collected facts are not beside this checkout")
def test_drivers_and_models_say_what_the_collected_facts_say() -> None:
    import yaml

    matrix = load()
    toolkits = yaml.safe_load((FACTS / "cuda.yaml").read_text(encoding="utf-8"))["toolkits"]
    assert {t["cuda"]: matrix.drivers["cuda"].floor(t["cuda"]) for t in toolkits} == {t["cuda"]: t["minor_compat_floor"] for t in toolkits}
    families = yaml.safe_load((FACTS / "models.yaml").read_text(encoding="utf-8"))["families"]
    assert list(matrix.models) == [f["family"] for f in families]
    for family in families:
        known = matrix.models[family["family"]]
        assert (known.sizes, known.multimodal) == (family["sizes"], family["multimodal"])
        for one in family["types"]:
            first = one["transformers_first"]
            vllm = one["vllm"] if isinstance(one["vllm"], dict) else {}
            expected = (None if first.startswith("none") else first, vllm.get("first"), vllm.get("last"))
            found = known.types[one["model_type"]]
            assert (found.transformers, found.vllm, found.vllm_last) == expected


CANDIDATES = {
    "cuda124-lts": "cuda124-torch26", "cuda126-stable": "cuda126-torch27", "cuda128-stable": "cuda128-torch28",
    "cuda128-last": "cuda128-torch210", "cuda130-stable": "cuda130-torch211", "cuda130-new": "cuda130-torch214",
    "cuda130-rl": "cuda130-torch213-rollout", "cuda129-bridge": "cuda129-torch213", "cuda132-edge": "cuda132-torch215",
    "cuda126-legacygpu": "cuda126-torch214", "rocm63-lts": "rocm63-torch27", "rocm64-stable": "rocm64-torch27",
    "rocm72-stable": "rocm72-torch210", "rocm714-new": "rocm714-torch212", "rocm100-edge": "rocm100-torch213",
    "cann82-lts": "cann82-torch26", "cann851-stable": "cann85-torch28", "cann851-vllm018": "cann85-torch29",
    "cann910-new": "cann91-torch210", "cann911-train": "cann91-torch212", "cann920-edge": "cann92-torch214-950",
    "cpu-lts": "cpu-torch26", "cpu-new": "cpu-torch214", "xpu-new": "xpu-torch212",
}  # fmt: skip
"""Collected candidate → the row that declares it."""
OTHER_TORCH = {
    "cann82-lts": "2.5.1 is older than the layer takes",
    "rocm64-stable": "the candidate names this image and its torch 2.7.1 as the other way",
}


def test_every_candidate_has_a_row_of_its_own_with_a_lock() -> None:
    matrix = load()
    assert len(CANDIDATES) == len(set(CANDIDATES.values())) == 24
    for id_ in CANDIDATES.values():
        row = matrix.stack(id_)
        assert row.status in ("stable", "lts", "edge")
        for platform in row.hosts.platforms:
            assert lock.path(id_, "train", platform, partial=True), f"{id_} has no lock for {platform}"


@pytest.mark.skipif(not FACTS.is_dir(), reason="the collected facts are not beside this checkout")
def test_the_rows_are_what_the_candidates_are() -> None:
    import yaml

    matrix = load()
    candidates = yaml.safe_load((FACTS / "candidates.yaml").read_text(encoding="utf-8"))["stacks"]
    assert {one["id"] for one in candidates} == CANDIDATES.keys()
    for one in candidates:
        row = matrix.stack(CANDIDATES[one["id"]])
        assert row.lane == one["lane"]
        for runtime, release in row.runtime.items():
            assert str(one[runtime]).split(".")[:2] == release.split(".")[:2], one["id"]
        if one["id"] not in OTHER_TORCH:
            assert str(row.train["torch"]).partition("+")[0].split(".")[:2] == one["pins"]["torch"].split(".")[:2], one["id"]
