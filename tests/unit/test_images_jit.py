"""The jit variant: nvcc of the toolkit that torch was built with, from a lock beside the stack's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import package_folder
import pytest
from click.testing import CliRunner

from fl import matrix as rows
from fl import paths
from fl.commands.images import images
from fl.errors import MatrixError, UsageError
from fl.images import jit, lock, publish, tags

MATRIX = rows.load()
ROW = MATRIX.stack("cuda130-torch214")
AMD = "linux/amd64"


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project's images folder, to be damaged."""
    shutil.copytree(paths.IMAGES, tmp_path / "images")
    (tmp_path / "pyproject.toml").write_text("")
    monkeypatch.setattr(paths, "IMAGES", tmp_path / "images")
    return tmp_path / "images"


def test_the_compiler_is_of_the_toolkit_that_torch_s_wheels_name() -> None:
    have = {(stack.id, platform) for stack in MATRIX.stacks for platform in stack.hosts.platforms if jit.toolkit(stack, platform)}
    assert {name for name, _ in have} == {"cuda130-torch214", "cuda132-torch215", "cuda130-torch211"}
    assert len(list(paths.IMAGES.glob("*/locks/jit/*.txt"))) == len(have)
    for name, platform in have:
        stack = MATRIX.stack(name)
        found = jit.packages(stack, platform)
        assert {"nvidia-cuda-nvcc", "nvidia-cuda-crt", "nvidia-nvvm"} <= found.keys()
        assert all(version.startswith(f"{stack.runtime['cuda']}.") for version in found.values()), found
        assert list(jit.findings(stack, platform)) == []


def test_a_stack_without_one_says_so_before_anything_starts() -> None:
    done = CliRunner().invoke(images, ["build", "cuda130-torch213-rollout", "--jit"])
    assert isinstance(done.exception, UsageError)
    assert "cuda130-torch213-rollout has no jit variant" in done.exception.message
    assert "no other toolkit's parts" in done.exception.message
    with pytest.raises(UsageError, match="cuda128-torch210 has no jit variant"):
        jit.need(MATRIX.stack("cuda128-torch210"), "train", AMD)
    with pytest.raises(UsageError, match="one of training images, not of serve"):
        jit.need(ROW, "serve", AMD)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text.replace("nvidia-nvvm==13.0.88", "nvidia-nvvm==13.5.37"), "nvidia-nvvm: changed by hand"),
        (lambda text: text.replace("# base: ", "# base: 0"), "the stack's own lock is another one by now"),
        (lambda text: text[: text.index("# sums")], "its header is broken"),
        (lambda text: text + "torch==2.14.0 \\\n    --hash=sha256:" + "a" * 64 + "\n", "torch: the stack has it already"),
        (lambda _: None, "no lock of nvcc"),
    ],
)
def test_a_lock_that_is_not_the_resolver_s_builds_nothing(change: object, said: str, copy: Path) -> None:
    file = jit.place(ROW, AMD)
    assert file.is_relative_to(copy)
    text = change(file.read_text())  # type: ignore[operator]
    file.unlink() if text is None else file.write_text(text)
    assert said in list(jit.findings(ROW, AMD))
    with pytest.raises(MatrixError, match="is not what the resolver wrote") as caught:
        jit.need(ROW, "train", AMD)
    assert said in caught.value.message
    assert caught.value.remedy == "fl images lock --jit cuda130-torch214"
    done = CliRunner().invoke(images, ["lock", "--check"])
    assert isinstance(done.exception, MatrixError)
    assert f"cuda130-torch214 jit linux/amd64: {said}" in done.exception.message


def test_locking_leaves_the_stack_s_packages_as_they_are(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An index of this machine: the newest code generator is of another toolkit than nvcc, and is not taken."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    for name, version, requires in [
        ("cuda-toolkit", "13.0.3.0", [f"nvidia-cuda-{part}==13.0.*; extra == '{part}'" for part in ("nvcc", "crt", "cccl")]),
        ("nvidia-cuda-nvcc", "13.0.88", ["nvidia-nvvm", "nvidia-cublas"]), ("nvidia-cuda-nvcc", "13.5.37", []),
        ("nvidia-cuda-crt", "13.0.88", []), ("nvidia-cuda-cccl", "13.0.85", []), ("nvidia-nvvm", "13.0.88", []),
        ("nvidia-nvvm", "13.5.37", []), ("nvidia-cublas", lock.parse(base_text())["nvidia-cublas"], []),
    ]:  # fmt: skip
        package_folder.wheel(folder, name, version, requires=requires)
    for name, value in {"PIP_CONFIG_FILE": "/dev/null", "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder)}.items():
        monkeypatch.setenv(name, value)
    jit.place(ROW, AMD).unlink()
    done = CliRunner().invoke(images, ["lock", "--jit", ROW.id, "--platform", AMD, "--json"], catch_exceptions=False)
    (told,) = json.loads(done.stdout)["jit"]
    assert told["packages"] == {
        "nvidia-cuda-cccl": "13.0.85", "nvidia-cuda-crt": "13.0.88", "nvidia-cuda-nvcc": "13.0.88", "nvidia-nvvm": "13.0.88",
    }  # fmt: skip
    assert list(jit.findings(ROW, AMD)) == []


def base_text() -> str:
    file = lock.path(ROW.id, "train", AMD)
    assert file is not None
    return file.read_text()


def test_the_variant_has_names_of_its_own() -> None:
    assert tags.reference(ROW.id, version="1.2", variant="jit") == "fl-train:cuda130-torch214-1.2-jit"
    assert tags.moving(ROW.id, variant="jit") == "fl-train:cuda130-torch214-jit"
    assert publish.names(ROW, "train", "r.example", True, "jit") == ("r.example/fl-train:cuda130-torch214-jit",)
    for label, variant in ((None, None), ("plain", None), ("jit", "jit")):
        assert publish.variant_of({"Config": {"Labels": {"fl.variant": label} if label else {}}}) == variant
