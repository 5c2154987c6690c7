"""The workflows of .github: pinned, with least permissions, and made of commands that exist. `make lint` runs their checkers."""

from __future__ import annotations

import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from fl import paths
from fl.cli import COMMANDS
from fl.matrix import load

ROOT = Path(__file__).resolve().parents[2]
GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
FILES = [*WORKFLOWS, *sorted((GITHUB / "actions").glob("*/action.yml"))]


def steps(file: Path) -> list[dict[str, Any]]:
    """All steps of a workflow or of an action."""
    document = yaml.safe_load(file.read_text(encoding="utf-8"))
    jobs = document["jobs"].values() if "jobs" in document else [document["runs"]]
    return [step for job in jobs for step in job["steps"]]


def commands(file: Path) -> list[list[str]]:
    """The words of every command line that a workflow runs, pipes and redirections cut off."""
    lines = [line.strip() for step in steps(file) for line in str(step.get("run", "")).splitlines()]
    return [shlex.split(re.split(r"[|>]|<<<", re.sub(r"\$\{\w+:\+[^}]*\}", "", line))[0]) for line in lines if line]


def test_the_workflows_of_the_project_are_there() -> None:
    assert {file.stem for file in WORKFLOWS} == {"test", "images", "conform", "update-matrix", "release"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_actions_are_pinned_by_commit_with_their_version_beside(file: Path) -> None:
    for line in file.read_text(encoding="utf-8").splitlines():
        used = re.search(r"uses: (\S+)(.*)", line)
        if used and not used[1].startswith("./"):
            assert re.fullmatch(r"actions/[\w-]+@[0-9a-f]{40}", used[1]), line
            assert re.fullmatch(r" # v\d+\.\d+\.\d+", used[2]), line


def test_one_action_has_one_commit() -> None:
    used = {step["uses"] for file in FILES for step in steps(file) if "@" in step.get("uses", "")}
    assert len(used) == len({name.split("@")[0] for name in used})


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_nothing_is_permitted_but_what_a_job_says(file: Path) -> None:
    document = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert document["permissions"] == {}
    writing = {"images": {"publish"}, "release": {"images", "wheel"}, "update-matrix": {"update"}}
    for name, job in document["jobs"].items():
        assert job["timeout-minutes"] <= 360
        assert ("write" in job["permissions"].values()) == (name in writing.get(file.stem, set())), name
        for step in job["steps"]:
            assert "checkout@" not in step.get("uses", "") or step["with"]["persist-credentials"] is False


def test_no_pull_request_reaches_a_machine_of_ones_own() -> None:
    text = (GITHUB / "workflows" / "conform.yml").read_text(encoding="utf-8")
    document = yaml.safe_load(text)
    assert set(document[True]) == {"workflow_dispatch", "schedule"}  # YAML 1.1 reads `on` as true
    assert document["jobs"]["conform"]["if"] == "github.ref == 'refs/heads/main'"
    assert json.loads(document[True]["workflow_dispatch"]["inputs"]["lanes"]["default"]) == ["cuda", "rocm", "ascend", "xpu"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_command_of_fl_and_make_exists(file: Path) -> None:
    targets = set(re.findall(r"^([\w./$()-]+):", (ROOT / "Makefile").read_text("utf-8").replace("$(STAMP):", ".venv/.installed:"), re.M))
    for words in commands(file):
        if words[:1] == ["make"]:
            assert set(words[1:]) <= targets, words
        elif words[:1] == ["fl"]:
            understood(words[1:])


def understood(words: list[str]) -> None:
    """Parses a command line of fl as fl would, and does not run it."""
    if words == ["--version"]:
        return
    module, name = COMMANDS[words[0]][0].split(":")
    command: click.Command = getattr(importlib.import_module(module), name)
    rest = words[1:]
    while isinstance(command, click.Group):
        assert rest[0] in command.commands, words
        command, rest = command.commands[rest[0]], rest[1:]
    rest = [{"$LANE": "cuda", "$FLAVOR": "train"}.get(word, word) for word in rest]
    command.make_context(command.name, rest)


def test_a_command_that_is_not_there_would_be_seen() -> None:
    with pytest.raises(AssertionError):
        understood(["images", "bild", "x"])
    with pytest.raises(click.NoSuchOption):
        understood(["images", "build", "x", "--jsn"])


def test_the_job_matrix_holds_every_image_that_can_be_built(tmp_path: Path) -> None:
    script = tmp_path / "fl"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -m fl "$@"\n')
    script.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": f"{ROOT / 'launcher'}:{ROOT / 'trainers'}"}
    environment.pop("BASE", None)
    lines = {}
    for words in ([], ["--names"]):
        done = subprocess.run(
            [sys.executable, GITHUB / "scripts" / "build_matrix.py", *words], capture_output=True, text=True, env=environment, check=True,
        )
        name, _, value = done.stdout.strip().partition("=")
        lines[name] = json.loads(value)
    assert {one["runner"] for one in lines["images"] if one["platform"] == "linux/arm64"} <= {"ubuntu-24.04-arm"}
    assert sorted({(one["stack"], one["flavor"]) for one in lines["images"]}) == sorted((o["stack"], o["flavor"]) for o in lines["names"])
    assert {"stack": "cpu-torch213", "flavor": "train", "platform": "linux/amd64", "runner": "ubuntu-24.04"} in lines["images"]


def test_a_pull_request_that_changes_code_alone_builds_one_image_of_each_platform(tmp_path: Path) -> None:
    why = {"a": ["code"], "b": ["code"], "c": ["lock", "code"], "d": ["code"]}
    told = [
        {"stack": name, "flavor": "train", "platform": f"linux/{'arm64' if name == 'd' else 'amd64'}", "lock_sha256": "x", "changed": one}
        for name, one in why.items()
    ]
    (tmp_path / "fl").write_text(f"#!/bin/sh\ncat <<'END'\n{json.dumps({'schema': 1, 'images': told})}\nEND\n")
    (tmp_path / "fl").chmod(0o755)
    command = [sys.executable, GITHUB / "scripts" / "build_matrix.py"]
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "BASE": ""}
    stacks = {}
    for words in ((), ("--few",)):
        done = subprocess.run([*command, *words], capture_output=True, text=True, env=environment, check=True)
        stacks[words] = [one["stack"] for one in json.loads(done.stdout.partition("=")[2])]
    assert stacks == {(): ["a", "b", "c", "d"], ("--few",): ["a", "c", "d"]}


@pytest.mark.skipif(not shutil.which("git"), reason="git is not installed")
def test_a_proposal_is_a_branch_and_one_pull_request(tmp_path: Path) -> None:
    def git(*words: str, cwd: Path) -> str:
        return subprocess.run(["git", *words], cwd=cwd, capture_output=True, text=True, check=True).stdout

    work, remote, tools = tmp_path / "work", tmp_path / "remote.git", tmp_path / "tools"
    for folder in (work / "images", work / "docs", work / "tests" / "golden", tools):
        folder.mkdir(parents=True)
    git("init", "--bare", "--quiet", str(remote), cwd=tmp_path)
    git("init", "--quiet", "--initial-branch=main", ".", cwd=work)
    git("remote", "add", "origin", str(remote), cwd=work)
    for name in ("matrix.yaml", "images/lock.txt", "docs/stacks.md", "docs/images.md", "README.md", "tests/golden/one"):
        (work / name).write_text("old\n")
    git("add", ".", cwd=work)
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "--message", "one", cwd=work)
    calls, opened = tmp_path / "calls", tmp_path / "open"
    gh = tools / "gh"
    answers = f'case "$1 $2" in "pr list") [ -e {opened} ] && echo 7 ;; "pr create") touch {opened} ;; esac'
    gh.write_text(f'#!/bin/sh\necho "$1 $2" >> {calls}\n{answers}\nexit 0\n')
    gh.chmod(0o755)
    words = tmp_path / "words.txt"
    words.write_text("torch 2.14.0 → 2.14.1\n")
    environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"}
    for content in ("new\n", "newer\n"):
        (work / "matrix.yaml").write_text(content)
        (work / "unrelated").write_text("not of the proposal\n")
        script = GITHUB / "scripts" / "propose.sh"
        subprocess.run([script, "update-matrix", words], cwd=work, env=environment, check=True, capture_output=True)
        assert git("show", "update-matrix:matrix.yaml", cwd=remote) == content
    assert git("diff", "--name-only", "main", "update-matrix", cwd=work).split() == ["matrix.yaml"]
    assert calls.read_text().splitlines() == ["auth setup-git", "pr list", "pr create", "auth setup-git", "pr list", "pr edit"]
    assert "torch 2.14.0 → 2.14.1" in Path(f"{words}.md").read_text()


def test_what_is_locked_beside_the_locks_is_locked_again_before_they_are_checked() -> None:
    """A lock that `fl matrix update --write` changed is not the one that extras and nvcc were locked beside: --check ends with 8 then."""
    text = (GITHUB / "workflows/update-matrix.yml").read_text()
    order = [text.index(one) for one in ("matrix update --write", "images lock --extras", "images lock --jit", "images lock --check")]
    assert order == sorted(order)


def test_the_page_of_stacks_is_what_the_matrix_says_now(capsys: pytest.CaptureFixture[str]) -> None:
    from fl.cli import main

    with pytest.raises(SystemExit):
        main(["matrix", "list", "--md"])
    page = capsys.readouterr().out
    assert [stack.id for stack in load().stacks if f"\n## {stack.id}\n" not in page] == []
    assert (ROOT / "docs" / "stacks.md").read_text(encoding="utf-8") == page, "fl matrix list --md > docs/stacks.md"
    assert paths.MATRIX == ROOT / "matrix.yaml"
