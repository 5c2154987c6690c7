"""Locks: exact, hashed, without a host name, and what their rows say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fl import matrix as rows
from fl import paths
from fl.errors import MatrixError
from fl.images import context, lock

MATRIX = rows.load()
LOCKS = sorted(paths.IMAGES.glob("*/locks/*.txt"))
HASH = "--hash=sha256:" + "a" * 64


def stack(**changes: object) -> rows.Stack:
    return MATRIX.stack("cpu-torch213").model_copy(update=changes)


def entry(name: str, version: str) -> str:
    return f"{name}=={version} \\\n    {HASH} \\\n    {HASH}\n"


@pytest.mark.parametrize("file", LOCKS, ids=lambda file: file.stem)
def test_every_lock_agrees_with_its_row(file: Path) -> None:
    name, flavor, platform = file.name.removesuffix(".txt").rsplit(".", 2)
    row = MATRIX.stack(name)
    assert platform.replace("-", "/") in row.hosts.platforms
    assert file.parent.parent.name == row.lane
    assert flavor == "train"
    assert lock.problems(file.read_text(), MATRIX.packages(row, "train"), row) == []
    assert lock.path(name, flavor, platform.replace("-", "/")) == file


@pytest.mark.parametrize("file", LOCKS, ids=lambda file: file.stem)
def test_every_lock_holds_what_fl_needs_inside_an_image(file: Path) -> None:
    from packaging.requirements import Requirement

    from fl import wheel

    held = lock.parse(file.read_text())
    for line in wheel.requirements():
        wanted = Requirement(line)
        assert wanted.specifier.contains(held[lock.normalize(wanted.name)]), line


def test_the_cpu_stack_has_a_lock_with_one_hash_for_torch() -> None:
    file = lock.path("cpu-torch213", "train", "linux/amd64")
    assert file is not None
    torch = lock.entries(file.read_text())["torch"]
    assert torch.startswith("torch==2.13.0+cpu ")
    assert len(re.findall("--hash=", torch)) == 1


def test_build_dependencies_are_hashed() -> None:
    text = lock.BUILD_CONSTRAINTS.read_text()
    assert "setuptools" in lock.parse(text)
    assert all("--hash=sha256:" in one for one in lock.entries(text).values())


def test_names_and_versions_are_read() -> None:
    marked = f"torch==2.13.0+cpu ; sys_platform == 'linux' \\\n    {HASH}\n"
    text = "# a comment\n" + entry("Jinja2", "3.1.6") + entry("ruamel.yaml", "1.0") + marked
    assert lock.parse(text) == {"jinja2": "3.1.6", "ruamel-yaml": "1.0", "torch": "2.13.0+cpu"}


@pytest.mark.parametrize(
    ("text", "pins", "row", "found"),
    [
        (entry("torch", "2.13.0"), {"torch": "2.13.0+cpu"}, {}, "torch: the row says 2.13.0+cpu, the lock 2.13.0"),
        (entry("peft", "1"), {"peft": "1", "trl": "2"}, {}, "trl: the row says 2, the lock nothing"),
        ("peft==1\n", {}, {}, "peft: no hash"),
        (entry("peft", "1") + "-e .\n", {}, {}, "not a pinned package: -e ."),
        ("torch @ https://wheels.example/torch.whl " + HASH + "\n", {}, {}, "it names a URL"),
        (entry("torch", "2"), {"torch": "2"}, {"torch_from": "base"}, "torch: comes with the base image, and the lock would replace it"),
        (entry("triton", "3"), {}, {"torch_from": "base"}, "triton: comes with the base image, and the lock would replace it"),
        (entry("nvidia-cublas", "13"), {}, {"index": "pytorch-xpu"}, "CUDA build; the row wants that of pytorch-xpu"),
    ],
)
def test_what_is_wrong_is_told(text: str, pins: dict[str, str], row: dict[str, object], found: str) -> None:
    assert any(found in one for one in lock.problems(text, pins, stack(**{"index": None, **row})))


def test_a_local_version_of_the_row_s_index_is_its_release() -> None:
    text = entry("torch", "2.12.1+xpu") + entry("nvidia-ml-py", "13")
    assert lock.problems(text, {"torch": "2.12.1"}, stack(index="pytorch-xpu")) == []
    assert lock.problems(text, {"torch": "2.12.1"}, stack(index=None)) != []


def test_torch_and_its_runtime_are_one_layer() -> None:
    text = "".join(entry(name, "1") for name in ["click", "nvidia-cublas", "nvidia-ml-py", "torch", "torch-npu", "triton", "trl"])
    first, second = lock.split(text)
    assert set(lock.parse(first)) == {"nvidia-cublas", "torch", "torch-npu", "triton"}
    assert set(lock.parse(second)) == {"click", "nvidia-ml-py", "trl"}
    assert lock.parse(first) | lock.parse(second) == lock.parse(text)


def test_a_stack_without_a_lock_is_refused_with_the_index_named() -> None:
    assert lock.path("xpu-torch212", "train", "linux/amd64") is None
    with pytest.raises(MatrixError, match=r"xpu-torch212 has no lock for linux/amd64.*pytorch-xpu") as caught:
        context.need_lock(MATRIX.stack("xpu-torch212"), "train", "linux/amd64")
    assert caught.value.exit_code == 8
    assert caught.value.remedy == "fl images lock xpu-torch212"


def test_an_installed_fl_writes_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "IMAGES", tmp_path / "images")
    with pytest.raises(MatrixError, match="this fl is an installed one"):
        lock.write(stack(), "train", "linux/amd64", "")
    assert not (tmp_path / "images").exists()
