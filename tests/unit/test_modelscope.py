"""ModelScope as a hub: which names are its, where they land, and the fetching from a stand-in. A run on top: tests/training."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.conftest import HOSTS, ROOT
from tests.training.stand_in_modelscope import ModelScope, modelscope

from fl import modelscope as fl_modelscope
from fl import modelscope_child
from fl.errors import Interrupted, RecipeError, UsageError
from fl.modelscope import Repository, repository
from fl.modelscope_child import chosen
from fl.resolve_data import datasets
from fl_trainers import fetch as trainers_fetch

Fl = Callable[..., "subprocess.CompletedProcess[str]"]
MODEL = {
    "config.json": b"{}", "model.safetensors": b"weights" * 5000, "sub/vocab.txt": b"a b c", "pytorch_model.bin": b"again", "LICENSE": b"",
}  # fmt: skip


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelScope]:
    """A hub with one model and one data set, which the settings name; the client waits for nothing between its attempts."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name, value in (("DOWNLOAD_MAX_RETRIES", "0"), ("REPO_TREE_PAGE_MAX_ATTEMPTS", "1"), ("DOWNLOAD_HASH_MAX_RETRIES", "1")):
        monkeypatch.setenv(f"MODELSCOPE_{name}", value)
    monkeypatch.delenv("MODELSCOPE_ENDPOINT", raising=False)
    for path, content in MODEL.items():
        file = tmp_path / "hub" / "models" / "someone" / "tiny" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    rows = tmp_path / "hub" / "datasets" / "someone" / "rows"
    rows.mkdir(parents=True)
    (rows / "train.jsonl").write_text('{"instruction": "a", "output": "b"}\n')
    with modelscope(tmp_path / "hub") as server:
        folder = Path(os.environ["XDG_CONFIG_HOME"]) / "fl"
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(f"mirrors: {{hub: modelscope, modelscope: '{server.address}'}}\n")
        yield server


def fetch(*repositories: Repository, check: Callable[[], None] = lambda: None) -> list[str]:
    """What was told."""
    told: list[str] = []
    fl_modelscope.fetch(repositories, told.append, check)
    return told


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_model_and_a_data_set_land_in_folders_of_the_cache(served: ModelScope) -> None:
    model, rows = repository("models", "someone/tiny"), repository("datasets", "someone/rows")
    told = fetch(model, rows)
    assert told[0] == f"fetching someone/tiny, someone/rows from {served.address}"
    assert told[1:] == ["someone/tiny: 4 files, 0 MB", "someone/rows: 1 files, 0 MB"]
    assert files(model.folder) == {path: content for path, content in MODEL.items() if path != "pytorch_model.bin"}
    assert files(rows.folder).keys() == {"train.jsonl"}
    asked = len(served.asked)
    assert fetch(model, rows) == []
    assert len(served.asked) == asked, "what is here is not asked for again"


@pytest.mark.parametrize("listed", [["a.safetensors", "b.bin", "x.bin.index.json", "original/d.pth"], ["b.bin", "c.gguf", "d.py"]])
def test_the_same_files_are_taken_as_from_the_other_hub(listed: list[str]) -> None:
    assert chosen(listed) == trainers_fetch.chosen(listed)


def test_an_interrupted_download_goes_on_where_it_ended(served: ModelScope) -> None:
    model = repository("models", "someone/tiny")
    served.broken = "model.safetensors"
    with pytest.raises(RecipeError, match=r"model.safetensors of the model someone/tiny cannot be fetched from http") as error:
        fetch(model)
    assert "what has arrived is kept" in error.value.remedy
    assert not model.folder.exists(), "half of a model is not taken for one"
    served.broken = ""
    fetch(model)
    assert served.ranges == [f"model.safetensors bytes={len(MODEL['model.safetensors']) // 2}-"]
    assert files(model.folder)["model.safetensors"] == MODEL["model.safetensors"]
    assert not list(model.folder.parent.glob("*.partial"))


def test_a_wrong_checksum_is_refused_and_the_file_thrown_away(served: ModelScope) -> None:
    model = repository("models", "someone/tiny")
    served.wrong = "config.json"
    with pytest.raises(RecipeError, match=r"config.json of the model someone/tiny is not what http.* lists \(checksum") as error:
        fetch(model)
    assert "mirror is broken" in error.value.remedy
    assert not model.folder.exists()
    assert not list(model.folder.parent.rglob("config.json*"))
    served.wrong = ""
    fetch(model)
    assert model.folder.is_dir()


@pytest.mark.parametrize(
    ("name", "revision", "said"),
    [("someone/tinny", "main", "has no model someone/tinny"), ("someone/tiny", "v2", "no revision v2 of it")],
)
def test_what_modelscope_has_not_is_named(served: ModelScope, name: str, revision: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said) as error:
        fetch(repository("models", name, revision))
    assert served.address in error.value.message
    assert "MODELSCOPE_API_TOKEN" in error.value.remedy


def test_a_revision_has_a_folder_of_its_own(served: ModelScope) -> None:
    fetch(repository("models", "someone/tiny", "v1.0"))
    assert repository("models", "someone/tiny", "v1.0").folder.is_dir()
    assert not repository("models", "someone/tiny").folder.exists()


def test_a_closed_model_asks_for_a_token(served: ModelScope) -> None:
    served.closed = {"someone/tiny"}
    with pytest.raises(RecipeError, match="the model someone/tiny is not open to you") as error:
        fetch(repository("models", "someone/tiny"))
    assert "MODELSCOPE_API_TOKEN" in error.value.remedy


@pytest.mark.parametrize("path", ["../../evil.json", "/etc/evil.json", "a/../../evil.json"])
def test_a_list_that_leads_out_of_the_folder_is_refused(served: ModelScope, path: str) -> None:
    served.extra = [path]
    with pytest.raises(RecipeError, match="leads out of it: nothing was fetched"):
        fetch(repository("models", "someone/tiny"))
    assert not [one for one in served.asked if "FilePath" in one]


@pytest.mark.parametrize(
    ("cause", "said", "typed"),
    [
        (OSError(28, "No space left on device"), "the disk is full: the model a/b does not fit", "XDG_CACHE_HOME"),
        (OSError(5, "Input/output error"), "x.bin of the model a/b cannot be fetched from ModelScope", "again"),
    ],
)
def test_a_full_disk_is_named(cause: OSError, said: str, typed: str) -> None:
    from modelscope_hub.errors import FileDownloadError

    with pytest.raises(RecipeError, match=said) as error, modelscope_child._explained("ModelScope", "model", "a/b", "master"):
        raise FileDownloadError("1 of 2 failed", failed_files={"x.bin": cause})
    assert typed in error.value.remedy


def test_no_network_is_said(served: ModelScope, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(RecipeError, match=r"the model someone/tiny cannot be fetched from http://127\.0\.0\.1:9") as error:
        fetch(repository("models", "someone/tiny"))
    assert "again" in error.value.remedy


def test_it_can_be_stopped(served: ModelScope) -> None:
    def stop() -> None:
        raise Interrupted("interrupted")

    with pytest.raises(Interrupted):
        fetch(repository("models", "someone/tiny"), check=stop)
    assert not repository("models", "someone/tiny").folder.exists()


def test_it_ends_with_a_launcher_that_was_killed(served: ModelScope) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        program = "from fl.modelscope import *; fetch([repository('models', 'someone/tiny')], print, lambda: None)"
        environment = {
            **os.environ, "MODELSCOPE_ENDPOINT": f"http://127.0.0.1:{silent.getsockname()[1]}",
            "PYTHONPATH": f"{ROOT / 'launcher'}:{ROOT / 'trainers'}",
        }  # fmt: skip
        launcher = subprocess.Popen([sys.executable, "-c", program], env=environment)
        connection, _ = silent.accept()  # the child asks, and gets no answer
        launcher.kill()
        launcher.wait()
        connection.settimeout(10)  # the client itself would be patient for 15 s
        while connection.recv(4096):  # ends when the child does
            pass
        connection.close()


def test_without_the_client_it_says_what_to_install(served: ModelScope, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fl_modelscope, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="is not installed here") as error:
        fetch(repository("models", "someone/tiny"))
    assert "fl[modelscope]" in error.value.remedy


@pytest.mark.parametrize(("name", "revision"), [("tiny", "main"), ("a/../b", "main"), ("../a/b", "main"), ("a/b", "../c")])
def test_names_that_are_none(name: str, revision: str) -> None:
    with pytest.raises(RecipeError, match="is no "):
        repository("models", name, revision)


RECIPE = """\
model_name_or_path: someone/tiny
stage: sft
do_train: true
finetuning_type: lora
adapter_name_or_path: someone/adapter
dataset: both
dataset_dir: data
template: qwen
output_dir: out
"""
INFO = {
    "theirs": {"ms_hub_url": "someone/rows"}, "both": {"ms_hub_url": "someone/rows", "hf_hub_url": "other/rows"},
    "huggingface": {"hf_hub_url": "other/rows"},
}  # fmt: skip


@pytest.mark.parametrize(
    ("dataset", "used", "ours"),
    [("theirs", "0", True), ("both", "0", False), ("both", "1", True), ("huggingface", "1", False), ("both", "", True)],
)
def test_the_hub_is_chosen_as_llama_factory_does(
    served: ModelScope, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dataset: str, used: str, ours: bool
) -> None:
    (tmp_path / "dataset_info.json").write_text(json.dumps(INFO))
    monkeypatch.setenv("USE_MODELSCOPE_HUB", used)
    (found,) = datasets([dataset], str(tmp_path), tmp_path)
    assert (found.source, found.path) == ("hub", str(repository("datasets", "someone/rows").folder) if ours else "other/rows")
    (online,) = datasets(["a/b"], "ONLINE", tmp_path)
    assert online.path == ("a/b" if used == "0" else str(repository("datasets", "a/b").folder))


@pytest.mark.parametrize("used", ["0", "1"])
def test_a_plan_mounts_the_folders_and_needs_no_network(fl: Fl, served: ModelScope, tmp_path: Path, used: str) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps(INFO))
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    environment = {"USE_MODELSCOPE_HUB": used, "FL_REPLAY": str(HOSTS / "cpu-only")}
    plan = fl("run", "--dry-run", "--json", "--engine", "docker", "recipe.yaml", cwd=tmp_path, env=environment)
    assert plan.returncode == 0, plan.stdout + plan.stderr
    document = json.loads(plan.stdout)
    mounted = {mount["target"]: mount["read_only"] for mount in document["mounts"]}
    for one in (repository("models", "someone/tiny"), repository("datasets", "someone/rows"), repository("models", "someone/adapter")):
        assert mounted.get(str(one.folder)) is (None if used == "0" else True)
    assert (document["options"]["network"] == "none") is (used == "1")
    assert served.asked == [], "a dry run asks nothing"
