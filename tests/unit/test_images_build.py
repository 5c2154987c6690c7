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
from fl.images import build, build_log, context, lock

MATRIX = rows.load()
CPU = MATRIX.stack("cpu-torch213")



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


def test_list_says_plainly_what_has_no_complete_lock() -> None:
    done = CliRunner().invoke(images, ["list"], catch_exceptions=False)
    assert "without a complete lock cannot be built yet" in done.output
    assert any("xpu-torch212" in line and " partial " in line for line in done.output.splitlines())


def test_references_carry_the_configured_registry() -> None:
    folder = Path(os.environ["XDG_CONFIG_HOME"]) / "fl"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("registry: registry.example/team\n")
    done = CliRunner().invoke(images, ["list", "--json"], catch_exceptions=False)
    references = {entry["reference"] for entry in json.loads(done.stdout)["images"]}
    assert {name.partition(":")[0] for name in references} == {"registry.example/team/fl-train", "registry.example/team/fl-serve"}


def test_the_command_names_contexts_secrets_and_caches_but_no_tag(tmp_path: Path) -> None:
    (tmp_path / "index").touch()
    folders = {"uv": tmp_path / "uv", "wheels": tmp_path / "wheels"}
    options = build.Options(platform="linux/arm64", cache_from=("r.example/c:1",), cache_to=("type=inline",))
    command = build.argv(CPU, tmp_path / "context", folders, {"FL_VERSION": "1"}, {"a.b": "c d"}, options)
    assert command[:3] == ["docker", "buildx", "build"]
    assert command[-1] == str(tmp_path / "context")
    pairs = list(pairwise(command))
    for pair in [
        ("--build-context", f"uv={tmp_path}/uv"), ("--build-context", f"wheels={tmp_path}/wheels"), ("--build-arg", "FL_VERSION=1"),
        ("--secret", f"id=index,src={tmp_path}/index"), ("--label", "a.b=c d"), ("--platform", "linux/arm64"),
        ("--cache-from", "r.example/c:1"), ("--cache-to", "type=inline"),
    ]:  # fmt: skip
        assert pair in pairs
    assert f"--metadata-file={tmp_path}/built" in command
    assert "--provenance=false" in command
    assert not any("id=index" in word for word in build.argv(CPU, tmp_path, folders, {}, {}, options)), "there is none here"
    assert not {"--tag", "-t", "--push"} & set(command), "a name is given after the image was looked at"
    assert "--attest=type=provenance,mode=max" in build.argv(CPU, tmp_path, {}, {}, {}, build.Options(attest=True))


def variables(file: Path) -> dict[str, str]:
    return dict(line.removeprefix("export ").split("=", 1) for line in file.read_text().splitlines())


def test_the_site_s_addresses_are_a_secret_and_its_folders_stay_here(tmp_path: Path) -> None:
    (tmp_path / "uv").mkdir()
    ca = tmp_path / "site.pem"
    ca.write_text("certificates")
    settings = pip_config.PipSettings(
        index_url="https://me:pa$s'word@i.example/simple", extra_index_urls=("file:///srv/simple", "https://e.example/simple"),
        find_links=("/srv/wheels", "https://f.example/"), cert=str(ca), trusted_hosts=("i.example",), proxy="http://me:word@p.example",
    )  # fmt: skip
    context.tell_site(settings, pip_config.translate(settings, {}), ca, tmp_path, tmp_path / "uv")
    assert stat.S_IMODE((tmp_path / "index").stat().st_mode) == 0o600
    assert variables(tmp_path / "index") == {
        "ALL_PROXY": "http://me:word@p.example",
        "UV_DEFAULT_INDEX": """'https://me:pa$s'"'"'word@i.example/simple'""",
        "UV_EXTRA_INDEX_URL": "https://e.example/simple",
        "UV_FIND_LINKS": "/media,https://f.example/",
    }
    assert (tmp_path / "uv" / "ca").read_text() == "certificates"
    assert variables(tmp_path / "uv" / "site") == {
        "SSL_CERT_FILE": "/mnt/ca", "UV_INDEX_STRATEGY": "unsafe-best-match", "UV_INSECURE_HOST": "i.example",
    }  # fmt: skip


def test_an_address_that_everybody_knows_is_no_secret(tmp_path: Path) -> None:
    """The vendor's index that the matrix names; beside an address of the site it is told with that one."""
    vendor, mine = "https://v.example/whl", "https://token@e.example/simple"
    for number, told in enumerate((vendor, f"{vendor} {mine}")):
        root = tmp_path / str(number)
        (root / "uv").mkdir(parents=True)
        context.tell_site(pip_config.PipSettings(), {"UV_EXTRA_INDEX_URL": told}, None, root, root / "uv", frozenset({vendor}))
    assert variables(tmp_path / "0" / "uv" / "site") == {"UV_EXTRA_INDEX_URL": vendor}
    assert not (tmp_path / "0" / "index").exists()
    assert variables(tmp_path / "1" / "index") == {"UV_EXTRA_INDEX_URL": f"'{vendor} {mine}'"}
    assert not (tmp_path / "1" / "uv" / "site").exists()


def test_nothing_configured_is_no_secret(tmp_path: Path) -> None:
    context.tell_site(pip_config.PipSettings(), {}, None, tmp_path, tmp_path)
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
    context.complete(folder, folders)
    locked = lock.path(CPU.id, "train", "linux/amd64")
    assert locked is not None
    assert (folder / "full" / "lock.txt").read_bytes() == locked.read_bytes()
    assert set(lock.parse((folder / "torch" / "lock.txt").read_text())) == {"torch"}
    assert {file.name for file in (folder / "own").iterdir()} == {wheel.NAME, "trim.sh", "bytecode.py"}
    assert "FROM mine:1 AS os" in (folder / "Dockerfile").read_text()
    assert list(folders["wheels"].iterdir()) == []
    told = (folders["uv"] / "site").read_text()
    assert MATRIX.indexes["pytorch-cpu"].url in told, "no wheel of torch is at hand: the row's index is asked"


def test_a_context_that_did_not_change_has_the_same_time_stamps(tmp_path: Path) -> None:
    """Else the builder takes uv and our wheel again each time, which is most of what a build without changes does."""
    if context.host_platform() != "linux/amd64":
        pytest.skip("the CPU stack is for linux/amd64")
    found = []
    for name in ("one", "two"):
        context.complete(*context.prepare(MATRIX, CPU, "train", tmp_path / name, context.Site(base="mine:1")))
        files = [file for file in (tmp_path / name).rglob("*") if file.is_file()]
        found.append({str(file.relative_to(tmp_path / name)): (file.stat().st_mtime_ns, file.stat().st_size) for file in files})
    assert found[0] == found[1]
    assert {"uv/uv", f"context/own/{wheel.NAME}", "context/Dockerfile"} <= found[0].keys()
    lines = tmp_path / "one" / "context" / "full" / "lock.txt"
    before = lines.stat()
    lines.write_text(lines.read_text().replace("==1", "==2", 1))
    context.stamp(lines)
    assert lines.stat().st_size == before.st_size
    assert lines.stat().st_mtime_ns != before.st_mtime_ns, "a pin of the same length is another file to the builder"


def test_a_lock_s_hash_is_of_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "lock.txt").write_bytes(b"x\n")
    assert lock.sha256(tmp_path / "lock.txt") == hashlib.sha256(b"x\n").hexdigest()


@pytest.mark.parametrize(
    ("remote", "url"),
    [
        ("https://me:token@git.example/team/fl.git", "https://git.example/team/fl"),
        ("git@git.example:team/fl.git", "https://git.example/team/fl"),
        ("ssh://git@git.example/team/fl", "https://git.example/team/fl"),
        ("/srv/git/fl", None),
        ("", None),
    ],
)
def test_the_source_is_an_address_without_credentials(remote: str, url: str | None) -> None:
    assert build.source_url(remote) == url


def test_provenance_is_the_same_for_one_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "_git", lambda *words: "1700000000" if words[0] == "show" else "git@git.example:team/fl.git")
    monkeypatch.setattr(build.daemon, "image", lambda *_: {"RepoDigests": ["debian@sha256:" + "d" * 64]})
    told = build.provenance(CPU, "debian:bookworm-slim", {})
    assert told == {
        "org.opencontainers.image.source": "https://git.example/team/fl",
        "org.opencontainers.image.created": "2023-11-14T22:13:20Z",
        "org.opencontainers.image.base.digest": "sha256:" + "d" * 64,
    }
    told = build.provenance(CPU, "x@sha256:" + "e" * 64, {"SOURCE_DATE_EPOCH": "0"})
    assert told["org.opencontainers.image.base.digest"] == "sha256:" + "e" * 64
    monkeypatch.setattr(build, "_git", lambda *_: "")
    monkeypatch.setattr(build.daemon, "image", lambda *_: None)
    assert build.provenance(CPU, "mine:1", {}) == {}


def test_an_unknown_platform_is_an_image_error_that_names_the_known() -> None:
    assert context.check_platform(CPU, "linux/amd64") == "linux/amd64"
    with pytest.raises(ImageError, match="'linux/riscv64' is no platform of cpu-torch213: it has linux/amd64") as caught:
        context.check_platform(CPU, "linux/riscv64")
    assert "--platform linux/amd64" in caught.value.remedy


def test_a_row_that_is_not_for_this_machine_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context, "host_platform", lambda: "linux/arm64")
    with pytest.raises(ImageError, match=r"cpu-torch213 has no image for this machine \(linux/arm64\): it has linux/amd64"):
        context.check_platform(CPU, None)


def test_a_platform_that_the_builder_cannot_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The builder is asked only where the platform is not that of the daemon's machine."""
    (tmp_path / "docker").write_text(f"#!/bin/sh\necho $* >> {tmp_path}/asked; echo 'Platforms: linux/amd64, linux/386*'\n")
    (tmp_path / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(build.daemon, "info", lambda _: {"Architecture": "x86_64"})
    build.need_platform("linux/amd64")
    assert not (tmp_path / "asked").exists()
    build.need_platform("linux/386")
    with pytest.raises(ImageError, match="this builder runs linux/386, linux/amd64, not linux/arm64"):
        build.need_platform("linux/arm64")
    assert "buildx inspect" in (tmp_path / "asked").read_text()


def test_a_docker_without_buildx_is_an_engine_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found out by the build that does not begin: nothing asks before."""
    said = "docker: 'buildx' is not a docker command."
    (tmp_path / "docker").write_text(f'#!/bin/sh\ntest "$1" = version && exit\necho "{said}" >&2\nexit 1\n')
    (tmp_path / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(EngineError, match=f"docker has no buildx: {said}"):
        build._run(["docker", "buildx", "build"], "debian:bookworm-slim")


def test_the_disk_is_looked_at_before_a_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(build.daemon, "info", lambda _: {"DockerRootDir": str(tmp_path)})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(10**12, 0, 8 * 10**9))
    build.need_room("torch==2.13.0+cpu --hash=sha256:0\n", there=False)
    cuda = "torch==2.14.0 --hash=sha256:0\nnvidia-cublas==13.1 --hash=sha256:0\n"
    with pytest.raises(ImageError, match=r"the build takes about 15\.0 GB, and .* has 8\.0 GB free") as caught:
        build.need_room(cuda, there=False)
    assert caught.value.exit_code == 7
    build.need_room(cuda, there=True)
    monkeypatch.setattr(build.daemon, "info", lambda _: {"DockerRootDir": "/on/another/machine"})
    build.need_room(cuda, there=False)


def test_what_was_built_is_found_in_either_store(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"containerimage.config.digest": "sha256:c", "containerimage.digest": "sha256:m"}
    for known, expected in (({"sha256:c"}, "sha256:c"), ({"sha256:m"}, "sha256:m"), ({"sha256:c", "sha256:m"}, "sha256:c")):
        monkeypatch.setattr(build.daemon, "image", lambda _, one, known=known: {} if one in known else None)
        assert build.built_id(told) == expected
    monkeypatch.setattr(build.daemon, "image", lambda *_: None)
    with pytest.raises(ImageError, match="the daemon has no image sha256:c or sha256:m"):
        build.built_id(told)


def test_push_sends_what_was_built_and_tells_both(monkeypatch: pytest.MonkeyPatch) -> None:
    from fl.images import publish, push

    sent: list[tuple[object, ...]] = []

    def made(matrix: object, stack: rows.Stack, flavor: str, *, registry: str, **_: object) -> build.Built:
        name = f"{registry}/fl-{flavor}:{stack.id}"
        return build.Built(reference=f"{name}-1", moving=name, id="sha256:" + "1" * 64, size=5, platform="linux/amd64", layers=())

    def published(*words: object) -> publish.Published:
        sent.append(words[:4])
        one = push.Pushed(reference=str(words[2]), digest="sha256:" + "2" * 64, platform="linux/amd64", size=3, seconds=1.0)
        return publish.Published(names=(one.reference,), digest=one.digest, image=one, platforms=("linux/amd64",))

    monkeypatch.setattr(build, "build", made)
    monkeypatch.setattr(publish, "publish", published)
    words = ["build", "cpu-torch213", "--push", "--registry", "r.example/team", "--json"]
    done = CliRunner().invoke(images, words, catch_exceptions=False)
    document = json.loads(done.stdout)
    assert sent == [(CPU, "train", "r.example/team/fl-train:cpu-torch213-1", "r.example/team")]
    assert (document["reference"], document["pushed"]["digest"]) == ("r.example/team/fl-train:cpu-torch213-1", "sha256:" + "2" * 64)


def test_layers_are_matched_with_the_steps_that_made_them() -> None:
    def entry(words: str, size: int, comment: str = "buildkit.dockerfile.v0") -> dict[str, object]:
        return {"CreatedBy": words, "Size": size, "Comment": comment}

    history = [
        entry("", 100, "Imported from -"),
        entry("RUN /bin/sh -c of the base # buildkit", 7),
        entry("ARG SOURCE_DATE_EPOCH=1", 0),
        entry("RUN |1 A=1 /bin/bash -euo pipefail -c touch /tmp/begin; apt-get install # buildkit", 10),
        entry("ENV A=1", 0),
        entry("RUN |1 A=1 /bin/bash -euo pipefail -c uv sync # buildkit", 20),
        entry("LABEL a=b", 0),
    ]
    steps = [build_log.Step("[os 2/2] RUN apt-get install", 3.0), build_log.Step("[packages 1/1] RUN uv sync", 0.0, True)]
    assert build.layers(history, steps) == [
        build.Layer(step="the base image", size=107, seconds=None, cached=True),
        build.Layer(step="RUN apt-get install", size=10, seconds=3.0, cached=False),
        build.Layer(step="RUN uv sync", size=20, seconds=0.0, cached=True),
    ]
    assert build.layers(history, [])[0].size == 137


def test_a_folder_of_wheels_is_not_the_context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten gigabytes lie beside the wheels; the builder gets what the lock names."""
    if context.host_platform() != "linux/amd64":
        pytest.skip("the CPU stack is for linux/amd64")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    links = tmp_path / "links"
    links.mkdir()
    for name in ("data.bin", "other-1.0-py3-none-any.whl"):
        with (links / name).open("wb") as file:
            file.truncate(10 << 30)
    folder, folders = context.prepare(MATRIX, CPU, "train", tmp_path / "root", context.Site(base="mine:1", links=(links,)))
    sent = [file for place in (folder, *folders.values()) for file in place.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in sent) < 200 << 20
    assert list(folders["wheels"].iterdir()) == []


def test_another_platform_s_uv_is_the_lock_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []

    def install(command: list[str], **_: object) -> object:
        seen.append(command)
        target = Path(command[command.index("--target") + 1]) / "bin"
        target.mkdir(parents=True)
        (target / "uv").write_bytes(b"elf")
        assert "--hash=sha256:" in Path(command[-1]).read_text()
        return type("Done", (), {"returncode": 0, "stderr": ""})

    monkeypatch.setattr(context.subprocess, "run", install)
    context.take_foreign_uv(tmp_path, "uv==0.13.9 --hash=sha256:" + "0" * 64 + "\n", "linux/arm64")
    assert (tmp_path / "uv").read_bytes() == b"elf" and os.access(tmp_path / "uv", os.X_OK)
    assert {"--require-hashes", "--no-deps", "aarch64-manylinux_2_28"} <= set(seen[0])
