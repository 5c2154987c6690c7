"""settings.py: what the caller's file may say."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.conftest import HOSTS

from fl import pip_config, settings
from fl.errors import UsageError


def test_no_file_means_defaults(tmp_path: Path) -> None:
    assert settings.load(tmp_path / "config.yaml") == settings.Settings()


def test_registry_is_read(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("registry: registry.example.org/team\n")
    assert settings.load(file).registry == "registry.example.org/team"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("registri: x\n", "unknown setting `registri`"),
        ("registry: [1]\n", "must be a text"),
        ("- a\n", "must be a mapping"),
        ("a: [\n", "not YAML"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    with pytest.raises(UsageError, match=said) as error:
        settings.load(file)
    assert str(file) in error.value.message


def test_the_nearest_setting_is_named(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("registri: x\n")
    with pytest.raises(UsageError) as error:
        settings.load(file)
    assert "registry" in error.value.remedy


MIRRORS = """\
registry: harbor.example.org/team
mirrors:
  registry: {docker.io: harbor.example.org/hub, quay.io: "harbor.example.org:8443/quay/"}
  index: https://mirror.example.org/simple
  hub: https://hub.example.org/
"""


@pytest.fixture
def mirrors() -> settings.Mirrors:
    folder = Path(os.environ["XDG_CONFIG_HOME"]) / "fl"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(MIRRORS)
    return settings.load().mirrors


@pytest.mark.parametrize(
    ("reference", "mirrored"),
    [
        ("debian:bookworm-slim", "harbor.example.org/hub/library/debian:bookworm-slim"),
        ("rocm/pytorch:rocm7.2", "harbor.example.org/hub/rocm/pytorch:rocm7.2"),
        ("docker.io/library/debian@sha256:" + "a" * 64, "harbor.example.org/hub/library/debian@sha256:" + "a" * 64),
        ("index.docker.io/rocm/vllm:1", "harbor.example.org/hub/rocm/vllm:1"),
        ("quay.io/ascend/cann:9.1.0-910b", "harbor.example.org:8443/quay/ascend/cann:9.1.0-910b"),
        ("ghcr.io/x/y:1", "ghcr.io/x/y:1"),
        ("localhost/x:1", "localhost/x:1"),
        ("127.0.0.1:5000/debian:12", "127.0.0.1:5000/debian:12"),
    ],
)
def test_a_registry_s_mirror_replaces_its_host(mirrors: settings.Mirrors, reference: str, mirrored: str) -> None:
    assert mirrors.image(reference) == mirrored


def test_one_text_stands_in_for_docker_hub(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("mirrors: {registry: mirror.example.org}\n")
    found = settings.load(file).mirrors
    assert found.image("debian:12") == "mirror.example.org/library/debian:12"
    assert found.image("quay.io/x/y:1") == "quay.io/x/y:1"


def test_the_index_s_mirror_stands_for_the_one_of_pip_s_files_and_not_for_the_caller_s(mirrors: settings.Mirrors) -> None:
    environ = {"PIP_CONFIG_FILE": "/dev/null"}
    assert pip_config.uv_environment(environ)["UV_DEFAULT_INDEX"] == "https://mirror.example.org/simple"
    given = pip_config.uv_environment({**environ, "PIP_INDEX_URL": "https://mine.example.org/simple"})
    assert given["UV_DEFAULT_INDEX"] == "https://mine.example.org/simple"


def test_the_hub_s_mirror_gives_way_to_the_caller_s_variable(mirrors: settings.Mirrors) -> None:
    assert settings.hub_environment({}) == {"HF_ENDPOINT": "https://hub.example.org"}
    assert settings.hub_environment({"HF_ENDPOINT": "https://mine"}) == {"HF_ENDPOINT": "https://mine"}


@pytest.mark.parametrize(
    ("text", "said", "typed"),
    [
        ("mirrors: {hubb: x}", "unknown setting `hubb`", "use `hub`"),
        ("mirrors: x", "mirrors must be a mapping", "mend"),
        ("mirrors: {index: mirror.example.org}", "must be an http address", "index: https://HOST/PATH"),
        ("mirrors: {hub: [1]}", "must be an http address", "hub: https://HOST/PATH"),
        ("mirrors: {hub: https://me:secret@hub.example.org}", "holds a user or password", "HF_TOKEN"),
        ("mirrors: {registry: https://mirror.example.org/x}", "is not a host and path", "docker.io: mirror.example.org/x"),
        ("mirrors: {registry: {quay.io: 5}}", "is not a host and path", "quay.io: HOST/PATH"),
        ("mirrors: {registry: {'a b': x}}", "is not a registry's host", "registry: {docker.io"),
        ("mirrors: {registry: [a]}", "must be a text or a mapping", "registry: {docker.io"),
        ("mirrors: {hub: https://www.modelscope.cn}", "ModelScope speaks a protocol of its own", "hub: modelscope"),
        ("mirrors: {modelscope: www.modelscope.cn}", "must be an http address", "modelscope: https://HOST/PATH"),
        ("mirrors: {modelscope: https://me:secret@hub.example.org}", "holds a user or password", "MODELSCOPE_API_TOKEN"),
    ],
)
def test_a_broken_mirror_is_named_with_what_to_type(tmp_path: Path, text: str, said: str, typed: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text + "\n")
    with pytest.raises(UsageError, match=said) as error:
        settings.load(file)
    assert str(file) in error.value.message
    assert "secret" not in error.value.message
    assert typed in error.value.remedy


def test_a_plan_names_the_mirrors(fl: Callable[..., subprocess.CompletedProcess[str]], mirrors: settings.Mirrors, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "model_name_or_path: someone/Some-1B\nstage: sft\ndo_train: true\n"
        "dataset: someone/rows\ndataset_dir: ONLINE\ntemplate: qwen\noutput_dir: out\n"
    )
    replay = {"FL_REPLAY": str(HOSTS / "cpu-only")}
    words = ("run", "--dry-run", "--json", "--engine", "docker")
    done = fl(*words, "--image", "quay.io/someone/fl:1", str(recipe), cwd=tmp_path, env=replay)
    assert done.returncode == 0, done.stdout + done.stderr
    plan = json.loads(done.stdout)
    assert plan["image"]["reference"] == "harbor.example.org:8443/quay/someone/fl:1"
    assert plan["image"]["reference"] in plan["argv"]
    assert plan["environment"]["HF_ENDPOINT"] == "https://hub.example.org"


def test_an_image_is_built_from_the_mirror_of_its_base_and_with_the_mirror_s_packages(mirrors: settings.Mirrors, tmp_path: Path) -> None:
    from fl import matrix
    from fl.images import context

    rows = matrix.load()
    folder, _ = context.prepare(rows, rows.stack("cpu-torch213"), "train", tmp_path / "mirrored", context.Site(), "linux/amd64")
    froms = [line.split()[1] for line in (folder / "Dockerfile").read_text().splitlines() if line.startswith("FROM ")]
    assert "harbor.example.org/hub/library/debian:bookworm-slim" in froms
    assert "debian:bookworm-slim" not in froms
    assert "https://mirror.example.org/simple" in (folder.parent / "index").read_text()
    folder, _ = context.prepare(rows, rows.stack("cpu-torch213"), "train", tmp_path / "given", context.Site(base="mine:1"), "linux/amd64")
    assert "FROM mine:1 " in (folder / "Dockerfile").read_text()
