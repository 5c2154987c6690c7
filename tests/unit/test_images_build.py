"""What a build is given, and what it says when it fails."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from itertools import pairwise
from pathlib import Path

import pytest
from click.testing import CliRunner

from fl import matrix as rows
from fl import pip_config, wheel
from fl.commands.images import images
from fl.errors import EngineError, ImageError
from fl.images import build, context, lock

MATRIX = rows.load()
CPU = MATRIX.stack("cpu-torch213")
FAILED = """#8 [packages 2/3] RUN /mnt/uv pip sync
#8 0.5 Using Python 3.11.2
#8 9.1 error: Failed to download `hjson==3.1.0`
#8 ERROR: process "/bin/bash" did not complete successfully: exit code: 2
------
 > [packages 2/3] RUN /mnt/uv pip sync:
0.5 Using Python 3.11.2
9.1 error: Failed to download `hjson==3.1.0`
9.1   cause: Hash mismatch for `hjson==3.1.0`
------
Dockerfile:45
--------------------
ERROR: failed to solve: process "/bin/bash" did not complete successfully: exit code: 2
""".splitlines()


def test_list_is_the_build_matrix_with_this_machine_s_platform_first() -> None:
    done = CliRunner().invoke(images, ["list", "--json"], catch_exceptions=False)
    document = json.loads(done.stdout)
    assert document["schema"] == 1
    entries = document["images"]
    assert {"stack", "lane", "flavor", "platform", "reference", "base", "status"} <= entries[0].keys()
    ours = [entry["platform"] == context.host_platform() for entry in entries]
    assert ours == sorted(ours, reverse=True)
    assert {(e["stack"], e["platform"]) for e in entries} == {
        (s.id, p) for s in MATRIX.stacks if s.status != "retired" for p in s.hosts.platforms
    }
    for entry in entries:
        found = lock.path(entry["stack"], entry["flavor"], entry["platform"])
        assert entry["lock_sha256"] == (lock.sha256(found) if found else None)


def test_list_says_plainly_what_has_no_lock() -> None:
    done = CliRunner().invoke(images, ["list"], catch_exceptions=False)
    assert "without a lock cannot be built yet" in done.output
    assert any("xpu-torch212" in line and " none " in line for line in done.output.splitlines())


def test_references_carry_the_configured_registry() -> None:
    folder = Path(os.environ["XDG_CONFIG_HOME"]) / "fl"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("registry: registry.example/team\n")
    done = CliRunner().invoke(images, ["list", "--json"], catch_exceptions=False)
    references = {entry["reference"] for entry in json.loads(done.stdout)["images"]}
    assert {name.partition(":")[0] for name in references} == {"registry.example/team/fl-train", "registry.example/team/fl-serve"}


def test_the_command_names_contexts_secrets_and_both_tags(tmp_path: Path) -> None:
    (tmp_path / "ca").touch()
    folders = {"uv": tmp_path / "uv", "wheels": tmp_path / "wheels"}
    command = build.argv(CPU, tmp_path / "context", folders, {"FL_VERSION": "1"}, ["a:1", "a:2"])
    assert command[:3] == ["docker", "buildx", "build"]
    assert command[-1] == str(tmp_path / "context")
    pairs = list(pairwise(command))
    for pair in [
        ("--build-context", f"uv={tmp_path}/uv"), ("--build-context", f"wheels={tmp_path}/wheels"), ("--build-arg", "FL_VERSION=1"),
        ("--secret", f"id=ca,src={tmp_path}/ca"), ("--tag", "a:1"), ("--tag", "a:2"),
    ]:  # fmt: skip
        assert pair in pairs
    assert not any("id=index" in word for word in command)


def test_the_site_s_sources_travel_as_secrets_and_its_folders_do_not(tmp_path: Path) -> None:
    ca = tmp_path / "site.pem"
    ca.write_text("certificates")
    settings = pip_config.PipSettings(
        index_url="https://me:pa$s'word@i.example/simple", extra_index_urls=("file:///srv/simple", "https://e.example/simple"),
        find_links=("/srv/wheels", "https://f.example/"), cert=str(ca), trusted_hosts=("i.example",),
    )  # fmt: skip
    context.site_secrets(settings, pip_config.translate(settings, {}), ca, tmp_path)
    assert (tmp_path / "ca").read_text() == "certificates"
    assert stat.S_IMODE((tmp_path / "index").stat().st_mode) == 0o600
    lines = dict(line.removeprefix("export ").split("=", 1) for line in (tmp_path / "index").read_text().splitlines())
    assert lines == {
        "SSL_CERT_FILE": "/run/secrets/ca",
        "UV_DEFAULT_INDEX": """'https://me:pa$s'"'"'word@i.example/simple'""",
        "UV_EXTRA_INDEX_URL": "https://e.example/simple",
        "UV_FIND_LINKS": "/media,https://f.example/",
        "UV_INDEX_STRATEGY": "unsafe-best-match",
        "UV_INSECURE_HOST": "i.example",
    }


def test_nothing_configured_is_no_secret(tmp_path: Path) -> None:
    context.site_secrets(pip_config.PipSettings(), {}, None, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_only_the_wheels_that_the_lock_names_are_taken(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    for name in (
        "torch-2.13.0+cpu-cp311-cp311-linux_x86_64.whl",
        "torch-2.14.0-cp311-cp311-linux_x86_64.whl",
        "notes.whl",
        "Foo_bar-1.0-py3-none-any.whl",
    ):
        (source / name).write_text(name)
    taken = context.take_wheels([source], {"torch": "2.13.0+cpu", "foo-bar": "1.0"}, target)
    assert sorted(taken) == ["foo-bar", "torch"]
    assert sorted(file.name for file in target.iterdir()) == [
        "Foo_bar-1.0-py3-none-any.whl",
        "torch-2.13.0+cpu-cp311-cp311-linux_x86_64.whl",
    ]


def test_uv_is_the_one_that_its_package_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context.take_uv(tmp_path)
    assert os.access(tmp_path / "uv", os.X_OK)
    other = tmp_path / "other"
    other.write_bytes(b"not uv")
    monkeypatch.setattr("uv.find_uv_bin", lambda: str(other))
    with pytest.raises(EngineError, match="is not the one that its package installed"):
        context.take_uv(tmp_path)


def test_the_context_is_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if context.host_platform() != "linux/amd64":
        pytest.skip("the CPU stack is for linux/amd64")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    folder, folders = context.prepare(MATRIX, CPU, "train", tmp_path, context.Site(base="mine:1"))
    locked = lock.path(CPU.id, "train", "linux/amd64")
    assert locked is not None
    assert (folder / "full" / "lock.txt").read_bytes() == locked.read_bytes()
    assert set(lock.parse((folder / "torch" / "lock.txt").read_text())) == {"torch"}
    assert [file.name for file in (folder / "own").iterdir()] == [wheel.NAME]
    assert "FROM mine:1 AS os" in (folder / "Dockerfile").read_text()
    assert list(folders["wheels"].iterdir()) == []
    told = (tmp_path / "index").read_text()
    assert MATRIX.indexes["pytorch-cpu"].url in told, "no wheel of torch is at hand: the row's index is asked"


def test_the_failing_step_and_its_last_lines_are_told() -> None:
    text = build.failure(FAILED)
    assert text.splitlines()[0] == " > [packages 2/3] RUN /mnt/uv pip sync:"
    assert "Hash mismatch" in text
    assert text.splitlines()[-1].startswith("ERROR: failed to solve")


def test_a_step_is_shown_without_its_mounts() -> None:
    line = "#9 [os 2/3] RUN --mount=type=bind,from=uv,target=/mnt     --mount=type=secret,id=ca     touch /tmp/begin; " + "x" * 400
    assert build._short(line).startswith("#9 [os 2/3] RUN touch /tmp/begin; xxx")
    assert len(build._short(line)) == 160


def script(tmp_path: Path, lines: list[str], code: int) -> list[str]:
    """A stand-in for the builder: says these lines, ends with this code."""
    said = tmp_path / "said"
    said.write_text("\n".join(lines) + "\n")
    return ["sh", "-c", f"cat '{said}'; exit {code}"]


@pytest.mark.parametrize(
    ("lines", "message", "remedy"),
    [
        (FAILED, "the build failed", "another file than the one that was locked"),
        (["#9 1.2 write: no space left on device", "ERROR: failed"], "the disk of the docker daemon is full", "docker builder prune -f"),
        (["ERROR: base:1: failed to resolve source metadata for base:1"], "exit 1", "--base REF"),
        (["#9 error: Because there is no version of torch==2.13.0+cpu and you require it"], "exit 1", "--find-links DIR"),
        (["#9 error: invalid peer certificate: UnknownIssuer"], "exit 1", "--ca FILE"),
    ],
)
def test_usual_causes_are_named(lines: list[str], message: str, remedy: str, tmp_path: Path) -> None:
    with pytest.raises(ImageError) as caught:
        build._run(script(tmp_path, lines, 1))
    assert message in caught.value.message
    assert remedy in caught.value.remedy


def test_progress_is_lines_without_the_noise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [
        "#1 [os 1/3] FROM base",
        "#1 sha256:abc 1MB / 2MB",
        "#1 DONE 0.1s",
        "",
        "#2 3.14  + torch==2.13.0",
        "#2 4.1 Installed 71 packages",
    ]
    build._run(script(tmp_path, lines, 0))
    assert capsys.readouterr().err.splitlines() == ["  #1 [os 1/3] FROM base", "  #2 4.1 Installed 71 packages"]


def test_a_lock_s_hash_is_of_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "lock.txt").write_bytes(b"x\n")
    assert lock.sha256(tmp_path / "lock.txt") == hashlib.sha256(b"x\n").hexdigest()
