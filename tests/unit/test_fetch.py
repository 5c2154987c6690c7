"""What `fl fetch` takes of a repository, and what counts as whole in the hub's cache. The fetching: tests/training/test_fetch_runs.py."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.conftest import HOSTS

from fl import hub_cache, inputs
from fl_trainers.fetch import chosen


@pytest.mark.parametrize(
    ("files", "taken"),
    [
        (
            ["config.json", "model.safetensors", "pytorch_model.bin", "tf_model.h5", "original/consolidated.00.pth", "onnx/model.onnx"],
            ["config.json", "model.safetensors"],
        ),
        (["config.json", "pytorch_model.bin", "flax_model.msgpack"], ["config.json", "pytorch_model.bin"]),
        (
            ["a-00001-of-00002.safetensors", "model.safetensors.index.json", "pytorch_model.bin.index.json", "modeling_x.py", "merges.txt"],
            ["a-00001-of-00002.safetensors", "model.safetensors.index.json", "modeling_x.py", "merges.txt"],
        ),
        (["adapter_config.json", "adapter_model.safetensors"], ["adapter_config.json", "adapter_model.safetensors"]),
    ],
)
def test_one_format_of_the_weights_is_taken_and_everything_beside_it(files: list[str], taken: list[str]) -> None:
    assert chosen(files) == taken


def cached(cache: Path, name: str, files: dict[str, str], kind: str = "models") -> Path:
    """A repository in a cache as huggingface_hub lays it out: links in the snapshot, content in blobs."""
    folder = cache / f"{kind}--{name.replace('/', '--')}"
    snapshot = folder / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (folder / "blobs").mkdir()
    for number, (path, content) in enumerate(files.items()):
        (folder / "blobs" / str(number)).write_text(content)
        (snapshot / path).symlink_to(folder / "blobs" / str(number))
    return folder


def test_a_model_is_whole_with_its_weights(tmp_path: Path) -> None:
    folder = cached(tmp_path, "a/b", {"config.json": "{}"})
    assert not inputs.in_hub_cache(("a/b",), tmp_path)
    (folder / "snapshots" / "abc" / "model.safetensors").write_text("x")
    assert inputs.in_hub_cache(("a/b",), tmp_path)
    (folder / "blobs" / "77.incomplete").touch()
    assert not inputs.in_hub_cache(("a/b",), tmp_path)


def test_a_model_is_whole_with_every_shard_that_its_index_names(tmp_path: Path) -> None:
    index = json.dumps({"weight_map": {"x": "m-1.safetensors", "y": "m-2.safetensors"}})
    folder = cached(tmp_path, "a/b", {"model.safetensors.index.json": index, "m-1.safetensors": "x"})
    assert not inputs.in_hub_cache(("a/b",), tmp_path)
    (folder / "snapshots" / "abc" / "m-2.safetensors").symlink_to(folder / "blobs" / "gone")
    assert not inputs.in_hub_cache(("a/b",), tmp_path)
    (folder / "blobs" / "gone").write_text("y")
    assert inputs.in_hub_cache(("a/b",), tmp_path)
    (folder / "blobs" / "0").write_text("{")
    assert not inputs.in_hub_cache(("a/b",), tmp_path)


def test_a_data_set_is_whole_with_any_file_and_all_names_are_wanted(tmp_path: Path) -> None:
    cached(tmp_path, "a/rows", {"train.jsonl": "{}"}, "datasets")
    assert inputs.in_hub_cache(("a/rows",), tmp_path)
    assert not inputs.in_hub_cache(("a/rows", "a/other"), tmp_path)


@pytest.mark.parametrize(
    ("subset", "folder", "here"),
    [("en", None, True), ("zh", None, False), (None, None, True), ("en", "more", False), ("e", None, False)],
)
def test_a_part_of_a_data_set_is_here_once_it_is_prepared(tmp_path: Path, subset: str | None, folder: str | None, here: bool) -> None:
    """Of another part the hub's cache has files too, and a run without the hub could not read them."""
    (tmp_path / "Some-One___my_rows" / "en" / "0.0.0" / "abc").mkdir(parents=True)
    assert not hub_cache.prepared(tmp_path, "Some-One/MyRows", subset, folder)
    (tmp_path / "Some-One___my_rows" / "en" / "0.0.0" / "abc" / "dataset_info.json").write_text("{}")
    assert hub_cache.prepared(tmp_path, "Some-One/MyRows", subset, folder) is here
    assert not hub_cache.prepared(tmp_path, "Some-One/Other", subset, folder)
    (tmp_path / "Some-One___my_rows" / "zh" / "0.0.0" / "abc").mkdir(parents=True)
    (tmp_path / "Some-One___my_rows" / "zh" / "0.0.0" / "abc" / "dataset_info.json").write_text("{}")
    assert hub_cache.prepared(tmp_path, "Some-One/MyRows", "zh", None) and not hub_cache.prepared(tmp_path, "Some-One/MyRows", None, None)


@pytest.mark.parametrize("words", [("fetch", "tiny-sft"), ("resume",)])
def test_nothing_is_started_on_a_recorded_machine(fl: Callable[..., subprocess.CompletedProcess[str]], words: tuple[str, ...]) -> None:
    done = fl(*words, "--json", env={"FL_REPLAY": str(HOSTS / "cpu-only")})
    assert done.returncode == 2
    assert "is a recorded machine" in json.loads(done.stdout)["error"]["message"]
