"""`fl fetch`, then a run in a network namespace that has no network: model and data from a hub on this machine, of either kind."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.conftest import ROOT
from tests.training.stand_in_hub import Hub, hub
from tests.training.stand_in_modelscope import modelscope

from fl import paths

pytestmark = pytest.mark.training
Fl = Callable[..., "subprocess.CompletedProcess[str]"]
RECIPE = """\
model_name_or_path: someone/tiny
stage: sft
do_train: true
finetuning_type: lora
dataset: someone/rows
dataset_dir: ONLINE
template: qwen
cutoff_len: 128
max_steps: 2
logging_steps: 1
output_dir: out
"""


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory, train_python: Path) -> Path:
    """A model that the trainer made, and forty rows."""
    folder = tmp_path_factory.mktemp("hub")
    model, rows = folder / "models" / "someone" / "tiny", folder / "datasets" / "someone" / "rows"
    rows.mkdir(parents=True)
    told = [{"instruction": f"What is {n}?", "input": "", "output": f"It is {n}."} for n in range(40)]
    (rows / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in told))
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'launcher'}:{ROOT / 'trainers'}", "XDG_STATE_HOME": str(folder / "state")}
    command = [sys.executable, "-m", "fl", "run", "--engine", "host", "tiny-sft", "max_steps=1", f"output_dir={model}"]
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=600)
    for file in model.glob("train*"):
        file.unlink()
    return folder


@pytest.fixture
def served(repositories: Path) -> Iterator[Hub]:
    with hub(repositories) as server:
        yield server


@pytest.fixture
def site(tmp_path: Path, served: Hub) -> dict[str, object]:
    """A folder with the recipe, a hub cache of its own, and the hub's mirror in the settings."""
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    settings = Path(os.environ["XDG_CONFIG_HOME"]) / "fl"
    settings.mkdir(parents=True)
    (settings / "config.yaml").write_text(f"mirrors: {{hub: {served.address}}}\n")
    return {"cwd": tmp_path, "env": {"HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": ""}, "timeout": 180}


def left() -> list[Path]:
    runs = Path(os.environ["XDG_STATE_HOME"]) / "fl" / "runs"
    return list(runs.iterdir()) if runs.is_dir() else []


def test_what_was_fetched_trains_without_a_network(fl: Fl, site: dict[str, object], served: Hub, tmp_path: Path) -> None:
    before = fl("run", "--engine", "host", "--dry-run", "--json", "recipe.yaml", **site)
    assert "HF_HUB_OFFLINE" not in json.loads(before.stdout)["environment"]
    done = fl("fetch", "--engine", "host", "--json", "recipe.yaml", **site)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert (document["models"], document["datasets"], document["offline"]) == (["someone/tiny"], ["someone/rows"], True)
    assert Path(document["environment"]).is_file()
    assert f"from {served.address}" in done.stderr
    assert "someone/rows: 40 rows" in done.stderr
    assert left() == []
    assert not (tmp_path / "out").exists()
    asked = len(served.asked)
    again = fl("fetch", "--engine", "host", "recipe.yaml", **site)
    assert (again.returncode, len(served.asked)) == (0, asked), "what is here is not asked for again"
    alone = ["unshare", "--map-root-user", "--net"]
    if shutil.which("unshare") is None or subprocess.run([*alone, "true"], check=False).returncode:
        pytest.skip("no network namespace can be made here")
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'launcher'}:{ROOT / 'trainers'}", **site["env"]}  # type: ignore[dict-item]
    command = [*alone, sys.executable, "-m", "fl", "run", "--engine", "host", "--json", "recipe.yaml"]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert len(json.loads(run.stdout)["metrics"]["loss"]) == 2
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
    assert len(served.asked) == asked


@pytest.mark.parametrize(
    ("override", "said", "typed"),
    [
        ("model_name_or_path=someone/tinny", "has no model someone/tinny", "HF_TOKEN"),
        ("dataset=someone/rowss", "has no data set someone/rowss", "HF_TOKEN"),
        ("model_revision=v2", "has no such revision", "model_revision: main"),
    ],
)
def test_what_the_hub_has_not_is_named(fl: Fl, site: dict[str, object], override: str, said: str, typed: str) -> None:
    done = fl("fetch", "--engine", "host", "recipe.yaml", override, **site)
    assert done.returncode == 5
    assert said in done.stderr
    assert typed in done.stderr
    assert left() == []


def test_a_gated_model_and_a_download_that_breaks_off(fl: Fl, site: dict[str, object], served: Hub) -> None:
    served.broken = "model.safetensors"
    done = fl("fetch", "--engine", "host", "recipe.yaml", **site)
    assert done.returncode == 5
    assert "the model someone/tiny cannot be fetched from" in done.stderr
    plan = fl("run", "--engine", "host", "--dry-run", "--json", "recipe.yaml", **site)
    assert "HF_HUB_OFFLINE" not in json.loads(plan.stdout)["environment"], "half of a model is not taken for one"
    served.broken = ""
    served.gated = {"someone/tiny"}
    done = fl("fetch", "--engine", "host", "recipe.yaml", **site)
    assert done.returncode == 5
    assert "is gated" in done.stderr


def test_a_hub_that_is_not_there(fl: Fl, site: dict[str, object]) -> None:
    environment = dict(site["env"], HF_ENDPOINT="http://127.0.0.1:9")  # type: ignore[call-overload]
    done = fl("fetch", "--engine", "host", "recipe.yaml", **{**site, "env": environment})
    assert done.returncode == 5
    assert "cannot be fetched from http://127.0.0.1:9" in done.stderr


def test_what_modelscope_has_is_fetched_first_and_trains_without_a_network(fl: Fl, repositories: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    real = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fl" / "environments"
    cache = tmp_path / "cache" / "fl"
    cache.mkdir(parents=True)
    (cache / "environments").symlink_to(real)
    with modelscope(repositories) as server:
        environment = {"USE_MODELSCOPE_HUB": "1", "MODELSCOPE_ENDPOINT": server.address, "XDG_CACHE_HOME": str(tmp_path / "cache")}
        options = {"cwd": tmp_path, "timeout": 180, "env": {**environment, "HF_HOME": str(tmp_path / "hf")}}
        done = fl("fetch", "--engine", "host", "--json", "recipe.yaml", **options)
        assert done.returncode == 0, done.stderr
        document = json.loads(done.stdout)
        assert (document["models"], document["datasets"], document["offline"]) == (["someone/tiny"], ["someone/rows"], True)
        assert f"from {server.address}" in done.stderr
        asked = len(server.asked)
        run = fl("run", "--engine", "host", "--json", "recipe.yaml", **options)
        assert run.returncode == 0, run.stdout + run.stderr
        record = json.loads(run.stdout)
        assert len(record["metrics"]["loss"]) == 2
        assert record["model"]["name"] == "someone/tiny"
        assert len(server.asked) == asked, "what is here is not asked for again"
        shutil.rmtree(cache / "modelscope" / "models")
        shutil.rmtree(tmp_path / "out")
        run = fl("run", "--engine", "host", "--json", "recipe.yaml", **options)
        assert (run.returncode, len(server.asked) > asked) == (0, True), "fl run fetches by itself what is missing"
    options["env"].update(MODELSCOPE_REPO_TREE_PAGE_MAX_ATTEMPTS="1")  # type: ignore[attr-defined]
    done = fl("fetch", "--engine", "host", "recipe.yaml", "model_name_or_path=someone/other", **options)
    assert done.returncode == 5
    assert f"the model someone/other cannot be fetched from {server.address}" in done.stderr


def test_another_part_of_a_data_set_is_fetched_too(fl: Fl, site: dict[str, object], repositories: Path, tmp_path: Path) -> None:
    name = f"parts{os.getpid()}"
    rows = repositories / "datasets" / "someone" / name
    configs = "".join(f"- config_name: {part}\n  data_files: {part}/train.jsonl\n" for part in ("en", "zh"))
    for part in ("en", "zh"):
        (rows / part).mkdir(parents=True)
        (rows / part / "train.jsonl").write_text(json.dumps({"instruction": part, "output": "yes"}) + "\n")
    (rows / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    (tmp_path / "data").mkdir()
    entry = {"hf_hub_url": f"someone/{name}"}
    info = {"en": {**entry, "subset": "en"}, "zh": {**entry, "subset": "zh"}, "any": entry}
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps(info))
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("someone/tiny", "builtin/tiny-llama").replace("ONLINE", "data"))
    try:
        for part in ("en", "zh"):
            done = fl("recipe", "data", "--hw", "cpu", "recipe.yaml", f"dataset={part}", **site)
            assert done.returncode == 0 and f"{part}<|im_end|>" in done.stdout, done.stderr
        vague = fl("recipe", "data", "--hw", "cpu", "recipe.yaml", "dataset=any", **site)
        assert vague.returncode == 5 and "en" in vague.stderr and '"subset"' in vague.stderr
    finally:
        for left_over in (paths.cache_home() / "trainer").glob(f"*{name}*"):
            shutil.rmtree(left_over) if left_over.is_dir() else left_over.unlink()
