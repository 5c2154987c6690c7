"""Two images compared, and which images a change touches."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from fl import matrix as rows
from fl import paths
from fl.commands.images import images
from fl.errors import ImageError, StackError, UsageError
from fl.images import changed, diff, inside_list, inventory, lock

BEFORE = inventory.Inventory(
    name="a", kind="image", source="installed", packages={"torch": "2.13.0", "trl": "1.0", "old": "1"}, system={"gcc": "12"},
    layers=(("RUN x", 10), ("RUN y", 20)), size=30, labels={"fl.version": "1"},
)  # fmt: skip
AFTER = inventory.Inventory(
    name="b", kind="image", source="installed", packages={"torch": "2.13.0", "trl": "1.1", "new": "2"}, system={"gcc": "13"},
    layers=(("RUN x", 10), ("RUN y", 25), ("COPY z", 1)), size=36, labels={"fl.version": "2"},
)  # fmt: skip


def test_only_what_differs_is_told() -> None:
    document: Any = diff.document(BEFORE, AFTER)
    assert [(one["name"], one["from"], one["to"]) for one in document["packages"]] == [
        ("new", None, "2"), ("old", "1", None), ("trl", "1.0", "1.1"),
    ]  # fmt: skip
    assert document["system_packages"] == [{"name": "gcc", "from": "12", "to": "13"}]
    assert document["layers"] == [{"step": "RUN y", "from": 20, "to": 25}, {"step": "COPY z", "from": None, "to": 1}]
    assert document["labels"] == [{"name": "fl.version", "from": "1", "to": "2"}]
    assert (document["from"]["size"], document["to"]["size"]) == (30, 36)
    assert diff.changes(BEFORE.packages, BEFORE.packages) == []


def test_a_lock_has_no_layers_and_no_system_to_compare() -> None:
    told = inventory.Inventory(name="x", kind="lock", source="lock", packages={"torch": "2.13.0"})
    document: Any = diff.document(told, AFTER)
    assert (document["system_packages"], document["layers"], document["labels"]) == (None, None, [])


def test_a_layer_is_named_by_what_was_run() -> None:
    told = "RUN |2 SOURCE_DATE_EPOCH=1 UV_X=2 /bin/bash -euo pipefail -c touch /tmp/begin;     uv sync # buildkit"
    assert inventory.step(told) == "RUN uv sync"
    assert inventory.step("RUN --mount=type=bind,from=uv,target=/mnt     touch /tmp/begin; uv sync") == "RUN uv sync"
    assert inventory.step('/bin/sh -c #(nop)  CMD ["bash"]') == 'CMD ["bash"]'
    assert inventory.step("") == "the base image"


def test_dpkg_s_installed_packages_are_read() -> None:
    status = (
        "Package: gcc\nStatus: install ok installed\nVersion: 4:12.2\nDescription: x\n Status: no\n\n"
        "Package: gone\nStatus: deinstall ok config-files\nVersion: 1\n"
    )
    assert inventory.debian(status) == {"gcc": "4:12.2"}


def test_what_is_installed_is_listed_with_what_it_requires() -> None:
    found = {entry["name"].lower(): entry for entry in inside_list.installed()}
    assert found["click"]["version"]
    assert any("license" in str(key) and value for key, value in found["click"].items()), "click states its licence"
    assert any(line.startswith("click") for line in found["fl"]["requires"])


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository of its own with this matrix and these images, committed once."""
    shutil.copytree(paths.IMAGES, tmp_path / "images")
    shutil.copy(paths.MATRIX, tmp_path / "matrix.yaml")
    monkeypatch.setattr(paths, "IMAGES", tmp_path / "images")
    monkeypatch.setattr(paths, "MATRIX", tmp_path / "matrix.yaml")
    for words in (["init", "-q"], ["add", "."], ["-c", "user.name=x", "-c", "user.email=x@example.org", "commit", "-qm", "x"]):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True)
    return tmp_path


def listed(*words: str) -> list[dict[str, Any]]:
    done = CliRunner().invoke(images, ["list", "--json", *words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)["images"]  # type: ignore[no-any-return]


def edit(file: Path, change: Callable[[str], str]) -> None:
    before = file.read_text()
    after = change(before)
    assert after != before
    file.write_text(after)


def why(entries: list[dict[str, Any]]) -> dict[str, list[str]]:
    return {f"{entry['stack']} {entry['flavor']} {entry['platform']}": entry["changed"] for entry in entries}


def test_nothing_changed_is_nothing_listed(project: Path) -> None:
    assert listed("--changed-since", "HEAD") == []
    assert listed() != []


def test_a_row_concerns_its_images_and_words_about_it_none(project: Path) -> None:
    edit(project / "matrix.yaml", lambda text: text.replace('nvidia: ">=580.65.06"', 'nvidia: ">=580.65.07"', 1))
    found = listed("--changed-since", "HEAD")
    assert found and {entry["lane"] for entry in found} == {"cuda"}
    assert all(entry["changed"] == ["row"] for entry in found)
    edit(project / "matrix.yaml", lambda text: text.replace('nvidia: ">=580.65.07"', 'nvidia: ">=580.65.06"', 1))
    edit(project / "matrix.yaml", lambda text: text.replace("status: edge", "status: lts", 1).replace("  notes:", "  notes:\n  - more", 1))
    assert listed("--changed-since", "HEAD") == []


def test_a_lock_concerns_one_image_and_a_template_its_lane(project: Path) -> None:
    edit(project / "images/cuda/locks/cuda130-torch214.train.linux-arm64.txt", lambda text: text + "# x\n")
    assert why(listed("--changed-since", "HEAD")) == {"cuda130-torch214 train linux/arm64": ["lock"]}
    edit(project / "images/xpu/Dockerfile.j2", lambda text: text + "# x\n")
    found = why(listed("--changed-since", "HEAD"))
    assert {key.split("-")[0] for key in found} == {"cuda130", "xpu"} or {key.split("-")[0][:3] for key in found} == {"cud", "xpu"}
    subprocess.run(["git", "-C", str(project), "-c", "user.name=x", "-c", "user.email=x@example.org", "commit", "-qam", "y"], check=True)
    edit(project / "images/cuda/Dockerfile.serve.j2", lambda text: text + "# x\n")
    found = why(listed("--changed-since", "HEAD"))
    assert found and all(" serve " in key for key in found)
    edit(project / "images/common/base.j2", lambda text: text + "# x\n")
    everything = listed("--changed-since", "HEAD")
    assert len(everything) == len(listed())
    assert all("template" in entry["changed"] for entry in everything)


def test_a_new_lock_that_git_does_not_know_yet_counts(project: Path) -> None:
    stack = next(s for s in rows.load().stacks if s.lane == "xpu")
    name = lock.filename(stack.id, "train", "linux/amd64")
    (project / "images/xpu/locks").mkdir(exist_ok=True)
    file = project / "images/xpu/locks" / name
    file.write_text((file.read_text() if file.exists() else "") + "x==1 --hash=sha256:" + "0" * 64 + "\n")
    assert why(listed("--changed-since", "HEAD")) == {f"{stack.id} train linux/amd64": ["lock"]}


def test_another_version_of_fl_names_every_image_anew(project: Path) -> None:
    file = project / "launcher" / "fl" / "__init__.py"
    file.parent.mkdir(parents=True)
    for version, expected in ((changed.__version__, 0), ("0.0.1", len(listed()))):
        file.write_text(f'__version__ = "{version}"\n')
        for words in (["add", "."], ["-c", "user.name=x", "-c", "user.email=x@example.org", "commit", "-qm", "y"]):
            subprocess.run(["git", "-C", str(project), *words], check=True)
        assert len(listed("--changed-since", "HEAD")) == expected


@pytest.mark.parametrize("name", ["launcher/fl/cli.py", "trainers/fl_trainers/recipes/tiny.yaml"])
def test_our_own_code_is_in_every_image(name: str, project: Path) -> None:
    (project / name).parent.mkdir(parents=True)
    (project / "tests").mkdir()
    (project / "tests/test_x.py").write_text("x\n")
    assert listed("--changed-since", "HEAD") == []
    (project / name).write_text("x\n")
    found = listed("--changed-since", "HEAD")
    assert len(found) == len(listed())
    assert all(entry["changed"] == ["code"] for entry in found)


def test_what_the_resolver_reads_rebuilds_nothing(project: Path) -> None:
    edit(project / "images/common/dependency-metadata.toml", lambda text: text + "# x\n")
    assert listed("--changed-since", "HEAD") == []


def test_a_row_that_was_not_there_is_new() -> None:
    matrix = rows.load()
    now = rows.parse(matrix.text)
    assert changed.reasons(matrix.stacks[0], "train", "linux/amd64", frozenset(), {"stacks": []}, now) == ["row"]
    assert changed.reasons(matrix.stacks[0], "train", "linux/amd64", frozenset(), now, now) == []


@pytest.mark.parametrize("revision", ["no-such-branch", "--output=x", "HEAD:matrix.yaml"])
def test_a_revision_that_is_none_is_a_usage_error(revision: str, project: Path) -> None:
    with pytest.raises(UsageError, match="revision"):
        CliRunner().invoke(images, ["list", f"--changed-since={revision}"], catch_exceptions=False)


def test_revisions_need_a_checkout(project: Path) -> None:
    shutil.rmtree(project / ".git")
    with pytest.raises(UsageError, match="in a checkout of the project only"):
        CliRunner().invoke(images, ["list", "--changed-since", "HEAD"], catch_exceptions=False)


def test_a_lock_is_compared_with_itself_at_a_revision(project: Path) -> None:
    file = project / "images/cuda/locks/cuda130-torch214.train.linux-arm64.txt"
    version = lock.parse(file.read_text())["trl"]
    edit(file, lambda text: text.replace(f"trl=={version}", "trl==9.9.9"))
    words = ["diff", "cuda130-torch214@HEAD", "cuda130-torch214", "--platform", "linux/arm64"]
    done = CliRunner().invoke(images, [*words, "--json"], catch_exceptions=False)
    assert json.loads(done.stdout)["packages"] == [{"name": "trl", "from": version, "to": "9.9.9"}]
    done = CliRunner().invoke(images, words, catch_exceptions=False)
    assert "cuda130-torch214@HEAD" in done.output and "9.9.9" in done.output
    assert "1 of " in done.output and "packages differ" in done.output


def test_what_has_no_lock_cannot_be_compared(project: Path) -> None:
    with pytest.raises(ImageError, match="has no lock for train on linux/riscv64"):
        CliRunner().invoke(images, ["diff", "cpu-torch213", "cpu-torch213", "--platform", "linux/riscv64"], catch_exceptions=False)
    with pytest.raises((ImageError, StackError), match="cpu-torch999@HEAD"):
        CliRunner().invoke(images, ["diff", "cpu-torch999@HEAD", "cpu-torch213"], catch_exceptions=False)
