"""Locks of extras: beside a stack's own lock, which they leave as it is; made from an index of this machine, installed from one too."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import package_folder
import pytest

from fl import extras as choosing
from fl import matrix as rows
from fl import paths
from fl.cli import main
from fl.engines import extras as folders
from fl.errors import Interrupted, MatrixError
from fl.images import extras, extras_resolve, lock

MATRIX = rows.load()
HASH = "--hash=sha256:" + "a" * 64


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project's images folder, to be damaged."""
    shutil.copytree(paths.IMAGES, tmp_path / "images")
    (tmp_path / "pyproject.toml").write_text("")
    monkeypatch.setattr(paths, "IMAGES", tmp_path / "images")
    return tmp_path / "images"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder whose wheels are the only ones there are."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    for name in [name for name in os.environ if name.startswith(("PIP_", "UV_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    with package_folder.served(folder) as address:
        (tmp_path / "pip.conf").write_text(f"[global]\nindex-url = {address}\n")
        monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
        yield folder


def extra(**changes: object) -> rows.Extra:
    made = {"title": "x", "packages": {"pace": "1.0"}, "asked_by": {"optim": "pace"}, "source": "x", "confidence": "unknown", **changes}
    return rows.Extra.model_validate(made)


def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, **wanted: rows.Extra) -> tuple[rows.Matrix, rows.Stack]:
    """A matrix with one row, whose lock holds torch, of a vendor's index, and numpy 2.5."""
    monkeypatch.setattr(paths, "IMAGES", tmp_path / "images")
    (tmp_path / "pyproject.toml").touch()
    row = MATRIX.stack("cpu-torch213").model_copy(update={"exclude_newer": None, "train": {"torch": "2.13.0+cpu"}})
    own = paths.IMAGES / "cpu" / "locks" / lock.filename(row.id, "train", "linux/amd64")
    own.parent.mkdir(parents=True)
    own.write_text(f"# its header\nnumpy==2.5.0 \\\n    {HASH}\ntorch==2.13.0+cpu \\\n    {HASH}\n")
    return MATRIX.model_copy(update={"stacks": (row,), "layers": {"current": {}}, "extras": wanted}), row


def published(folder: Path) -> None:
    """torch of the ordinary index asks for a runtime; the stack's own does not, and nothing may bring it."""
    for name, version, *requires in (
        ("torch", "2.13.0", "nvidia-cublas"), ("nvidia-cublas", "13.0"), ("numpy", "2.5.0"), ("numpy", "2.6.0"),
        ("pace", "1.0", "torch", "numpy>=2", "common"), ("common", "1.0"), ("common", "2.0"), ("track", "3.0", "common<2"),
        ("old", "1.0", "numpy<2"), ("stuck", "1.0", "numpy>=2.6"),
    ):  # fmt: skip
        package_folder.wheel(folder, name, version, requires)


def test_what_stands_in_the_stack_s_lock_is_left_out_and_left_alone(index: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    published(index)
    matrix, row = small(monkeypatch, tmp_path, pace=extra(), track=extra(packages={"track": "3.0"}))
    text = extras_resolve.resolve(matrix, row, "linux/amd64")
    made = extras.parse(text)
    assert made is not None and extras.render(made) == text
    assert made.needs == {"pace": ("common", "pace"), "track": ("common", "track")}
    assert lock.parse(text)["common"] == "1.0", "one version for both, so that a recipe may ask for both"
    assert set(lock.parse(text)) == {"common", "pace", "track"} and "://" not in text
    assert set(lock.parse(made.requirements("track"))) == {"common", "track"}
    extras_resolve.write(row, "linux/amd64", text)
    assert extras.findings(matrix, row, "linux/amd64") == []
    own = lock.path(row.id, "train", "linux/amd64")
    assert own is not None
    own.write_text(own.read_text().replace("numpy==2.5.0", "numpy==2.6.0"))
    assert extras.findings(matrix, row, "linux/amd64") == ["the stack's own lock is another one by now"]


def test_one_that_does_not_fit_is_absent_with_the_reason(index: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    published(index)
    matrix, row = small(monkeypatch, tmp_path, pace=extra(), stuck=extra(packages={"stuck": "1.0"}))
    made = extras.parse(extras_resolve.resolve(matrix, row, "linux/amd64"))
    assert made is not None
    assert set(made.needs) == {"pace"}
    assert re.match(r"Because .*stuck depend.* on numpy>=2\.6", made.absent["stuck"])


def test_a_limit_that_the_matrix_loosens_does_not_count(index: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    published(index)
    loose = extra(packages={"old": "1.0"}, loosened={"numpy": "tried with 2.5"})
    matrix, row = small(monkeypatch, tmp_path, tight=extra(packages={"old": "1.0"}))
    made = extras.parse(extras_resolve.resolve(matrix, row, "linux/amd64"))
    assert made is not None and set(made.absent) == {"tight"}
    made = extras.parse(extras_resolve.resolve(matrix.model_copy(update={"extras": {"loose": loose}}), row, "linux/amd64"))
    assert made is not None and made.needs == {"loose": ("old",)}, "and numpy stays the stack's"


def test_extras_that_fit_only_one_by_one_are_no_lock(index: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    published(index)
    package_folder.wheel(index, "pull", "1.0", ["common>=2"])
    matrix, row = small(monkeypatch, tmp_path, pull=extra(packages={"pull": "1.0"}), track=extra(packages={"track": "3.0"}))
    with pytest.raises(MatrixError, match="common"):
        extras_resolve.resolve(matrix, row, "linux/amd64")


def test_every_complete_lock_has_its_extras_and_the_partial_ones_have_none(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["images", "lock", "--extras", "--check", "--json"])
    assert ended.value.code in (0, None)
    found = json.loads(capsys.readouterr().out)["extras"]
    complete = {
        (stack.id, platform) for stack in MATRIX.stacks for platform in stack.hosts.platforms if lock.path(stack.id, "train", platform)
    }
    assert {(one["stack"], one["platform"]) for one in found} == complete
    assert len(list(paths.IMAGES.glob("*/locks/extras/*.txt"))) == len(complete)
    for one in found:
        assert set(one["extras"]) | set(one["absent"]) == set(MATRIX.extras), one["stack"]
    here = next(one for one in found if one["stack"] == "cpu-torch213")
    assert set(here["extras"]) == set(MATRIX.extras)


FILE = "cpu/locks/extras/cpu-torch213.linux-amd64.txt"
DAMAGE: dict[str, tuple[Callable[[str], str], str]] = {
    "a version": (lambda text: text.replace("badam==1.4", "badam==1.3"), "badam: the matrix says badam 1.4, the lock 1.3"),
    "a hash": (lambda text: text.replace("--hash=sha256:5", "--hash=sha256:6", 1), ": changed by hand"),
    "no hashes": (lambda text: re.sub(r"badam==1.4 \\\n( +--hash=.*\n)+", "badam==1.4\n", text), "badam: no hash"),
    "an extra gone": (lambda text: re.sub(r"# extra: badam: badam\n", "", text), "badam: neither locked nor said to be absent"),
    "another extra": (lambda text: text.replace("# sums", "# extra: lomo:\n# sums", 1), "lomo: no extra of the matrix"),
    "the day": (lambda text: text.replace("# date: 2026-11-22", "# date: now"), "it was resolved with packages until now"),
    "the platform": (lambda text: text.replace("linux/amd64", "linux/arm64"), "its header says cpu-torch213 on linux/arm64"),
    "a package of the stack": (lambda text: text + f"numpy==2.4.6 \\\n    {HASH}\n", "numpy: the stack has it"),
    "a URL": (lambda text: text + "# https://wheels.example/\n", "it names a URL"),
    "a name that is nowhere": (lambda text: text.replace("# extra: badam: badam", "# extra: badam: badman"), "its header is broken"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_found_by_check(name: str, copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change, told = DAMAGE[name]
    (copy / FILE).write_text(change((copy / FILE).read_text()))
    with pytest.raises(SystemExit) as ended:
        main(["images", "lock", "--extras", "--check", "cpu-torch213"])
    assert ended.value.code == 8
    assert told in capsys.readouterr().err


def test_the_check_of_all_locks_looks_at_extras_too(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copy / FILE).unlink()
    with pytest.raises(SystemExit) as ended:
        main(["images", "lock", "--check"])
    assert ended.value.code == 8
    assert "cpu-torch213 extras linux/amd64: no lock of extras" in capsys.readouterr().err


def test_a_stack_whose_own_lock_is_partial_is_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["images", "lock", "--extras", "xpu-torch212"])
    assert ended.value.code == 8
    assert "fl images lock xpu-torch212" in capsys.readouterr().err


def chosen(index: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> choosing.Chosen:
    """An extra, locked and not installed yet."""
    published(index)
    matrix, row = small(monkeypatch, tmp_path, track=extra(packages={"track": "3.0"}))
    text = extras_resolve.resolve(matrix, row, "linux/amd64")
    made = extras.parse(text)
    assert made is not None
    return choosing.Chosen(
        name="track", packages=("track==3.0",), requirements=made.requirements("track"), lock_sha256="0" * 64, python="3.11",
        platform="linux/amd64",
    )  # fmt: skip


def test_a_folder_is_made_once_and_again_when_it_is_broken(index: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    one, told = chosen(index, monkeypatch, tmp_path), []
    assert not folders.ready(one)
    folders.ensure(one, told.append)
    assert folders.ready(one) and "track ready: 2 packages" in told[-1]
    assert {path.name for path in one.folder.glob("*.dist-info")} == {"track-3.0.dist-info", "common-1.0.dist-info"}
    said = len(told)
    folders.ensure(one, told.append)
    assert len(told) == said, "nothing was done"
    shutil.rmtree(one.folder / "common-1.0.dist-info")
    assert not folders.ready(one)
    folders.ensure(one, told.append)
    assert folders.ready(one)


def test_a_package_of_another_content_is_refused_and_leaves_nothing(index: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    one = chosen(index, monkeypatch, tmp_path)
    package_folder.wheel(index, "track", "3.0", ["common<2", "torch"])
    with pytest.raises(MatrixError, match="does not have the hash that the lock says"):
        folders.ensure(one, lambda text: None)
    assert [path.name for path in one.folder.parent.iterdir() if path.is_dir()] == []


def test_an_interrupted_installation_leaves_nothing(index: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def stop() -> None:
        raise Interrupted("now")

    one = chosen(index, monkeypatch, tmp_path)
    with pytest.raises(Interrupted):
        folders.ensure(one, lambda text: None, stop)
    assert [path.name for path in one.folder.parent.iterdir() if path.is_dir()] == []


BROKEN = {
    "packages: {badam: \"1.4\"}": ('packages: {badam: ">=1.4"}', "'>=1.4' is not a version"),
    "asked_by: {use_badam: \"true\"}": ('asked_by: {use_badman: "true"}', "no extra is asked for by 'use_badman'"),
    "asked_by: {report_to: wandb}": ("asked_by: {}", "an extra needs packages, and keys that ask for it"),
    "  adam-mini: {title": ("  Adam_mini: {title", "'Adam_mini' is not the name of an extra"),
    "loosened: {pillow: ": ("loosend: {pillow: ", "loosend"),
}


@pytest.mark.parametrize("text", BROKEN)
def test_the_table_of_the_matrix_is_checked(text: str) -> None:
    from fl.matrix_check import check

    whole = paths.MATRIX.read_text(encoding="utf-8")
    assert whole.count(text) == 1
    other, told = BROKEN[text]
    found = check(whole.replace(text, other))
    assert len(found) == 1 and told in found[0].message and "extras." in found[0].where
