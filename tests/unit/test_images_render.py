"""Dockerfiles: as reviewed (golden), clean, offline, and the same bytes every time."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from fl import matrix as rows
from fl import paths
from fl.commands.images import images
from fl.errors import UsageError
from fl.images import render, tags

MATRIX = rows.load()
GOLDEN = Path(__file__).parents[1] / "golden" / "dockerfiles"
IDS = [stack.id for stack in MATRIX.stacks if stack.status != "retired"]
REFRESH = "look at the difference; if it is meant: fl images render --output DIR, then copy DIR/*/*.Dockerfile to tests/golden/dockerfiles/"
REGISTRIES = re.compile(r"\b(pypi|pythonhosted|debian|npmjs)\.(org|com|net)\b")


IMAGES = [(name, flavor) for name in IDS for flavor in render.flavors(MATRIX.stack(name))]


def text_of(name: str, flavor: rows.Flavor = "train") -> str:
    return render.dockerfile(MATRIX, MATRIX.stack(name), flavor)


@pytest.mark.parametrize(("name", "flavor"), IMAGES)
def test_the_dockerfile_is_the_reviewed_one(name: str, flavor: rows.Flavor) -> None:
    golden = GOLDEN / f"{name}.{flavor}.Dockerfile"
    assert golden.is_file(), f"no golden file for {name}: {REFRESH}"
    assert text_of(name, flavor) == golden.read_text(), REFRESH


def test_no_golden_file_is_left_over() -> None:
    assert {file.name for file in GOLDEN.iterdir()} == {f"{name}.{flavor}.Dockerfile" for name, flavor in IMAGES}


def test_a_serving_image_is_rendered_where_a_row_pins_an_engine_and_its_lane_has_a_template() -> None:
    assert {name for name, flavor in IMAGES if flavor == "serve"} == {
        "cuda130-torch214", "cuda130-torch211", "cuda128-torch210", "cuda128-torch28", "cuda126-torch27", "cuda124-torch26",
        "rocm72-torch210", "cann91-torch210", "cann91-torch210-a3",
    }
    text = text_of("cuda130-torch214", "serve")
    assert 'org.opencontainers.image.description="vllm 0.33.0, CUDA 13.0, torch 2.14.0, Python 3.13"' in text
    assert 'fl.flavor="serve"' in text
    assert "VLLM_NO_USAGE_STATS=1" in text
    assert render.flavors(MATRIX.stack("rocm72-torch214").model_copy(update={"serve": {"vllm": "0.33.0"}})) == ("train",)


@pytest.mark.parametrize(
    ("name", "base", "told"),
    [
        ("rocm72-torch210", "vllm/vllm-openai-rocm:v0.31.0", "vllm 0.31.0, ROCM 7.2.4, torch 2.13.0, Python 3.12"),
        ("cann91-torch210-a3", "quay.io/ascend/vllm-ascend:v0.23.0-a3", "vllm-ascend 0.23.0, CANN 9.1.0, torch 2.10.0, Python 3.12"),
    ],
)
def test_a_vendor_s_serving_image_is_a_base_whose_engine_stays(name: str, base: str, told: str) -> None:
    text, train = text_of(name, "serve"), text_of(name)
    assert f"FROM {base} AS os" in text
    assert f'org.opencontainers.image.base.name="{base}"' in text
    assert f'image.description="{told}"' in text
    assert base not in train
    assert f"FROM {MATRIX.stack(name).base.image} AS os" in train
    for unwanted in ("pip sync", "uv venv", "apt-get", "/opt/venv"):
        assert unwanted not in text
    for package, version in MATRIX.packages(MATRIX.stack(name), "serve").items():
        assert f"{package}=={version}" in text, "looked at before anything is added"
    installs = re.findall(r"/mnt/uv pip install(?:[^;]|\n)*;", text)
    assert len(installs) == 2
    assert all("--no-deps" in one and ("--require-hashes" in one or "--no-index" in one) for one in installs)
    assert ("ASCEND_TOOLKIT_HOME" in text) is name.startswith("cann")


def install(site: Path, name: str, version: str, *requires: str) -> None:
    """A distribution with metadata only."""
    folder = site / f"{name}-{version}.dist-info"
    folder.mkdir()
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {one}" for one in requires)]
    (folder / "METADATA").write_text("\n".join(lines) + "\n")
    (folder / "WHEEL").write_text("Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """site-packages of an empty environment, in `venv`: it stands for a vendor's interpreter."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    (found,) = (tmp_path / "venv/lib").glob("python*/site-packages")
    return found


def test_a_vendor_s_image_with_another_engine_than_the_row_says_stops_the_build(tmp_path: Path, site: Path) -> None:
    (loop,) = re.findall(r"for pin in .*?done;", text_of("rocm72-torch210", "serve"), re.S)
    script = f"set -euo pipefail; python={tmp_path}/venv/bin/python; {loop}"
    install(site, "torch", "2.13.0+git733fca1")
    install(site, "transformers", "5.14.1")
    install(site, "vllm", "0.31.0+rocm723")
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    shutil.rmtree(site / "vllm-0.31.0+rocm723.dist-info")
    install(site, "vllm", "0.30.0+rocm723")
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "the base has vllm 0.30.0, the row says 0.31.0\n")


def test_what_an_added_package_breaks_in_a_vendor_s_image_is_seen(tmp_path: Path, site: Path) -> None:
    """The step of the Dockerfile, with uv's own words for a requirement that is not met."""
    from uv import find_uv_bin

    def step(file: str) -> list[str]:
        (line,) = re.findall(rf"/mnt/uv pip check .* > /tmp/{file} .*true;", text_of("rocm72-torch210", "serve"))
        here = line.replace("/tmp", str(tmp_path)).replace("/mnt/uv", find_uv_bin())
        script = f"set -euo pipefail; python={tmp_path}/venv/bin/python; {here}"
        subprocess.run(["bash", "-c", script], check=True)
        return (tmp_path / file).read_text().splitlines()

    install(site, "engine", "0.1", "click<9")
    install(site, "click", "8.0")
    assert step("before") == []
    shutil.rmtree(site / "click-8.0.dist-info")
    install(site, "click", "9.0")
    (line,) = step("after")
    assert "engine" in line
    assert "click<9" in line


@pytest.mark.parametrize(("name", "flavor"), IMAGES)
def test_every_rule_that_is_ignored_has_its_reason_above(name: str, flavor: rows.Flavor) -> None:
    lines = text_of(name, flavor).splitlines()
    ignored = [number for number, line in enumerate(lines) if "hadolint ignore" in line]
    assert ignored
    for number in ignored:
        assert re.fullmatch(r"# hadolint ignore=DL\d{4}", lines[number]), "one rule, for one step"
        reason, above = lines[number - 1], lines[number - 2]
        told = {"DL3002": "the stages before", "DL3006": "without a tag", "DL3008": "without versions"}[lines[number][-6:]]
        assert reason.startswith(f"# {told}"), (above, reason)


def test_hadolint_finds_nothing() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    if not hadolint.exists():
        pytest.skip("hadolint is not installed beside this Python")
    done = subprocess.run([hadolint, *sorted(GOLDEN.iterdir())], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


def test_another_process_renders_the_same_bytes() -> None:
    code = """from fl import matrix; from fl.images import render; m = matrix.load()
for s in m.stacks: print(render.dockerfile(m, s), end="\\0")"""
    told = []
    for seed in ("1", "2"):
        environment = {"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        told.append(done.stdout)
    assert told[0] == told[1] == "".join(render.dockerfile(MATRIX, stack) + "\0" for stack in MATRIX.stacks)


@pytest.mark.parametrize("file", [*sorted(paths.IMAGES.rglob("*.*"))], ids=lambda file: file.name)
def test_nothing_names_a_package_registry(file: Path) -> None:
    assert not REGISTRIES.search(file.read_text())


@pytest.mark.parametrize("name", IDS)
def test_house_rules_of_every_dockerfile(name: str) -> None:
    text = text_of(name)
    lines = text.splitlines()
    stages = [line.split()[-1] for line in lines if line.startswith("FROM ")]
    variants = ["plain", "jit", "own"] if "ARG VARIANT" in text else []
    assert stages == ["wheels", "os", "packages", *variants, "run"]
    assert not re.search(r"^#\s*syntax=", text, re.M)
    assert not REGISTRIES.search(text)
    assert "NVIDIA_VISIBLE_DEVICES" not in text
    assert "ADD " not in text
    assert "curl" not in text
    last = text[text.rindex("FROM ") :]
    assert "USER 1000:1000" in last
    assert "ENTRYPOINT []" in last
    assert last.rstrip().splitlines()[-1].strip().startswith("fl.matrix.sha256=")
    assert last.index("LABEL") > last.index("ENV HOME")
    assert "--require-hashes" in text
    assert "--build-constraints /usr/src/build-constraints.txt" in text
    assert "/opt/fl/lock.txt" in text
    for install in re.findall(r"/mnt/uv pip (?:install|sync)(?:[^;]|\n)*;", text):
        assert "--require-hashes" in install or "--no-index" in install, install


def test_the_jit_variant_is_the_same_image_with_a_compiler_before_our_own_layer() -> None:
    text = text_of("cuda130-torch214")
    assert text.startswith("# cuda130-torch214") and "\nARG VARIANT=plain\nFROM scratch AS wheels" in text
    compiler, own = text[text.index("AS jit") : text.index("FROM ${VARIANT}")], text[text.index("FROM ${VARIANT}") :]
    assert "g++" in compiler and "source=jit" in compiler
    assert "CUDA_HOME=/opt/venv/lib/python3.13/site-packages/nvidia/cu13 " in compiler
    assert "source=own" in own and "FROM own AS run" in own and 'fl.variant="${VARIANT}"' in own
    for name in ("cpu-torch213", "cuda128-torch210", "rocm72-torch214"):
        assert "VARIANT" not in text_of(name)


def test_the_vendor_s_torch_is_never_removed() -> None:
    text = text_of("rocm72-torch210")
    assert "pip sync" not in text
    assert "pip install --python" in text
    assert "cmp - /tmp/before" in text
    assert "apt-get" not in text


def test_a_row_that_takes_torch_from_an_index_gets_an_environment_of_its_own() -> None:
    text = text_of("rocm72-torch214")
    assert "pip sync" in text
    assert "libpython3.12-dev" in text


@pytest.mark.parametrize(
    ("driver", "told"),
    [(">=580.65.06", "driver>=580.65.06"), (">=525.60.13, <600", "driver>=525.60.13,driver<600")],
)
def test_the_driver_floor_is_the_row_s(driver: str, told: str) -> None:
    row = MATRIX.stack("cuda130-torch214")
    row = row.model_copy(update={"hosts": row.hosts.model_copy(update={"driver": {"nvidia": driver}})})
    assert f'NVIDIA_REQUIRE_CUDA="{told}"' in render.dockerfile(MATRIX, row)


def test_a_digest_is_part_of_from() -> None:
    row = MATRIX.stack("cpu-torch213")
    row = row.model_copy(update={"base": rows.Base(image="debian:bookworm-slim", digest="sha256:" + "0" * 64)})
    assert f"FROM debian:bookworm-slim@sha256:{'0' * 64} AS os" in render.dockerfile(MATRIX, row)
    assert "FROM mine:1 AS os" in render.dockerfile(MATRIX, row, base_image="mine:1")


def test_ascend_has_the_vendor_s_environment_without_an_entrypoint() -> None:
    text = text_of("cann91-torch210")
    for name in ("ASCEND_TOOLKIT_HOME", "ASCEND_HOME_PATH", "ASCEND_OPP_PATH", "ATB_HOME_PATH", "LD_LIBRARY_PATH", "PYTHONPATH"):
        assert re.search(rf"\b{name}=/usr/local/Ascend/", text), name
    assert "/usr/local/Ascend/driver/lib64/driver" in text
    assert "--system-site-packages" in text


def test_openeuler_s_cann_is_another_base_of_the_same_dockerfile() -> None:
    """The vendor has both systems under each release: nothing in it is Ubuntu's."""
    base = "quay.io/ascend/cann:9.1.0-a3-openeuler24.03-py3.12"
    done = CliRunner().invoke(images, ["render", "cann91-torch210-a3", "--base", base, "--json"], catch_exceptions=False)
    (train,) = json.loads(done.stdout)["dockerfiles"]
    assert f"FROM {base} AS os" in train["text"]
    assert train["text"] == text_of("cann91-torch210-a3").replace(MATRIX.stack("cann91-torch210-a3").base.image, base)
    assert not re.search(r"\b(apt|apt-get|dpkg|deb)\b", train["text"])
    with pytest.raises(UsageError, match="the base of one stack"):
        CliRunner().invoke(images, ["render", "--base", base], catch_exceptions=False)


def test_names_of_images() -> None:
    assert tags.reference("cpu-torch213", "train", "1.2.3") == "fl-train:cpu-torch213-1.2.3"
    assert tags.reference("cpu-torch213", "train", "1.2.3", "registry.example/team/") == "registry.example/team/fl-train:cpu-torch213-1.2.3"
    assert tags.moving("cpu-torch213", "serve", "registry.example") == "registry.example/fl-serve:cpu-torch213"


def test_render_writes_one_file_for_each_stack(tmp_path: Path) -> None:
    done = CliRunner().invoke(images, ["render", "--output", str(tmp_path), "cpu-torch213", "xpu-torch212"], catch_exceptions=False)
    assert done.exit_code == 0
    assert {str(f.relative_to(tmp_path)) for f in tmp_path.rglob("*.Dockerfile")} == {
        "cpu/cpu-torch213.train.Dockerfile", "xpu/xpu-torch212.train.Dockerfile",
    }  # fmt: skip
    assert (tmp_path / "cpu" / "cpu-torch213.train.Dockerfile").read_text() == text_of("cpu-torch213")
    assert "the lock of xpu-torch212 for linux/amd64 is partial: it is built there with --allow-unlocked only" in done.output


def test_render_without_output_prints() -> None:
    done = CliRunner().invoke(images, ["render", "cpu-torch213"], catch_exceptions=False)
    assert text_of("cpu-torch213").rstrip("\n") in done.output
