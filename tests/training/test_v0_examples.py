"""LLaMA-Factory's text examples and its interface's recipes train two steps on the processor, with only the model and the rows swapped."""

from __future__ import annotations

import json
import math
import subprocess
from pathlib import Path
from typing import Any

import pytest
from trainer_harness import Trainer, environment

from fl import extras, launch, matrix, recipe, recipe_check
from fl.decide import Options, Place, decide_recipe
from fl.detect import detect, open_host
from fl.engines import extras as engine_extras
from v0_examples import BOARD, TEXT, keys, recipe_of

pytestmark = pytest.mark.training
SUMS = [(f"What is {a} plus {b}?", f"It is {a + b}.") for a in (1, 2, 3) for b in (1, 2, 3)]
ALPACA = [{"instruction": question, "input": "", "output": answer} for question, answer in SUMS]
TURNS = [{"conversations": [{"from": "human", "value": question}]} for question, _ in SUMS]
PAIRS = [{**turn, "chosen": {"from": "gpt", "value": answer}, "rejected": {"from": "gpt", "value": "No."}}
         for turn, (_, answer) in zip(TURNS, SUMS, strict=True)]  # fmt: skip
KTO = [{"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer if n % 2 else "No."}],
        "label": bool(n % 2)} for n, (question, answer) in enumerate(SUMS)]  # fmt: skip
CALL = '{"name": "add", "arguments": {"a": 1, "b": 2}}'
TOOLS = json.dumps([{"name": "add", "description": "Adds.", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}])
CALLS = [{"conversations": [{"from": "human", "value": question}, {"from": "function_call", "value": CALL},
                            {"from": "observation", "value": '{"sum": 3}'}, {"from": "gpt", "value": answer}], "tools": TOOLS}
         for question, answer in SUMS]  # fmt: skip
ROLES = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
DATA: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    **{name: (ALPACA, {}) for name in ("identity", "alpaca_en_demo", "alpaca_zh", "med")},
    "math": (CALLS, {"formatting": "sharegpt", "columns": {"messages": "conversations", "tools": "tools"}}),
    "c4_demo": ([{"text": " ".join(pair)} for pair in SUMS], {"columns": {"prompt": "text"}}),
    "dpo_en_demo": (PAIRS, {"ranking": True, "formatting": "sharegpt",
                            "columns": {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"}}),
    "kto_en_demo": (KTO, {"formatting": "sharegpt", "columns": {"messages": "messages", "kto_tag": "label"}, "tags": ROLES}),
}  # fmt: skip
"""Under the names of the examples' data sets, rows of the same formats."""
AUTO = {"train_micro_batch_size_per_gpu": "auto", "gradient_accumulation_steps": "auto", "bf16": {"enabled": "auto"}}
ENDS = {
    "adapter_name_or_path": None, "dataloader_num_workers": 0, "dataset_dir": "data", "logging_steps": 1, "max_new_tokens": 8,
    "max_steps": 2, "plot_loss": False, "save_strategy": "no",
}  # fmt: skip
"""An adapter belongs to the model that is swapped; the rest makes runs short."""
PREDICTS = {"extras/nlg_eval/llama3_lora_predict", "evaluate"}


def prepared(folder: Path) -> None:
    """Data sets and DeepSpeed files where the examples look for them."""
    (folder / "data").mkdir()
    (folder / "examples" / "deepspeed").mkdir(parents=True)
    for name, (rows, _) in DATA.items():
        (folder / "data" / f"{name}.json").write_text(json.dumps(rows))
    info = {name: {"file_name": f"{name}.json", **entry} for name, (_, entry) in DATA.items()}
    (folder / "data" / "dataset_info.json").write_text(json.dumps(info))
    for stage in (0, 3):
        content = {**AUTO, "zero_optimization": {"stage": stage}}
        (folder / "examples" / "deepspeed" / f"ds_z{stage}_config.json").write_text(json.dumps(content))


def swapped(name: str) -> recipe.Recipe:
    """Its recipe with a tiny model of the same family."""
    model = "builtin/tiny-qwen3" if "wen" in keys(name)["model_name_or_path"] else "builtin/tiny-llama"
    if "llama_pro" in name:
        model = "models/llama-pro"
    return recipe.parse(recipe_of(name, model_name_or_path=model, **ENDS), file=f"{name}.yaml")


def fault(folder: Path, name: str) -> str | None:
    """What is wrong with a run that has ended."""
    path = folder / "record.json"
    if not path.is_file():
        return "no record: " + (folder / "log.txt").read_text()[-500:]
    record = json.loads(path.read_text())
    if record["outcome"] != "passed":
        return f"{record['outcome']}: {record.get('failure')}"
    if name in PREDICTS:
        return None if next(folder.rglob("generated_predictions.jsonl"), None) else "no predictions"
    losses = record["metrics"]["loss"]
    return None if len(losses) == 2 and all(math.isfinite(loss) for loss in losses) else f"losses {losses}"


def test_each_trains_two_steps(trainer: Trainer, train_python: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    prepared(tmp_path)
    trainer.check("expanded_model_folder", str(tmp_path / "models" / "llama-pro"), [" ".join(pair) for pair in SUMS], 8)
    hardware, rows = detect(open_host(None)), matrix.load()
    folders: dict[str, Path] = {}
    decision, used = None, set[extras.Chosen]()
    for name in (*TEXT, *BOARD):
        read = swapped(name)
        if name == "ppo" or next(one for one in recipe_check.on_lanes(read, rows) if one.lane == "cpu").verdict == "refused":
            continue
        folder = folders[name] = tmp_path / "cases" / name.replace("/", "-")
        folder.mkdir(parents=True)
        place = Place(run=folder.name.lower(), folder=folder, output=folder / "out", hardware=hardware)
        decision = decide_recipe(read, Options(engine="host", hw="cpu"), place)
        launch.write_inputs(decision, folder)
        used |= set(decision.plan.extras)
    for one in used:
        engine_extras.ensure(one, lambda text: None)
    batch = {"configs": [str(folder / "config.json") for folder in folders.values()], "jobs": 2, "seconds": 400,
             "events": str(tmp_path / "events.jsonl")}  # fmt: skip
    (tmp_path / "batch.json").write_text(json.dumps(batch))
    command = [str(train_python), "-m", "fl_trainers.batch", "batch.json"]
    assert decision is not None
    # what DeepSpeed compiles is kept where every run of this stack keeps it
    variables = {**decision.plan.environment, **environment()}
    variables["PYTHONPATH"] += "".join(f":{one.folder}" for one in used)
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    faults = {name: wrong for name, folder in folders.items() if (wrong := fault(folder, name)) is not None}
    assert faults == {}
    assert len([name for name in folders if name in TEXT]) == 36  # 30, and those refused for their model or remote data alone
