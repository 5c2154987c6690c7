"""Training steps on an NVIDIA card: tokens a second of a real run, beside LLaMA-Factory on the same model, rows and recipe.

    python bench/h100.py make DIR [8b|1.7b]                    a model of random weights of that shape, a tokenizer, 999 rows
    python bench/h100.py ours DIR OUT [KEY=VALUE …]            one run of this trainer: KEY of packing, speed, full, steps, batch,
                                                               bits, rank, accumulate, without, stage (sft or dpo)
    python bench/h100.py parts DIR OUT [KEY=VALUE …]           the same with each part of the fast steps left out, beside all of them
    PYTHONPATH=… python bench/h100.py peer DIR OUT [KEY=VALUE …]   the same by LLaMA-Factory 0.9.5, from an environment of its own

Prints one JSON line: steps, seconds of training, real tokens, tokens a second (whole run, second half), peak GiB, losses, and seconds from
the start of the process to the end of the first step.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, get_args

STARTED = time.time()
ROOT = Path(__file__).resolve().parents[1]
SHAPES = {
    "8b": {"model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
           "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False, "max_position_embeddings": 8192},
    "1.7b": {"model_type": "qwen3", "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28, "num_attention_heads": 16,
             "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "tie_word_embeddings": True, "max_position_embeddings": 8192},
    "tiny": {"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "vocab_size": 24000, "tie_word_embeddings": False, "max_position_embeddings": 8192},
}  # fmt: skip
SPECIAL = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|end_of_text|>"]


def rows(count: int = 999) -> list[dict[str, str]]:
    """Texts of made-up words: about 150 tokens a row, most between 50 and 400, as in a set of instructions."""
    draw = random.Random(7)
    words = ["".join(draw.choice("bcdfgklmnprstv") + draw.choice("aeiou") for _ in range(draw.randint(1, 4))) for _ in range(4000)]

    def text(low: int, mean: float) -> str:
        return " ".join(draw.choices(words, k=max(low, int(draw.lognormvariate(0, 0.7) * mean))))

    return [{"instruction": text(4, 18), "input": "", "output": text(8, 80)} for _ in range(count)]


def make(folder: Path, shape: str) -> None:
    """The model folder and the data beside it."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    data = rows()
    (folder / "rows.json").write_text(json.dumps(data))
    answers = [{"instruction": row["instruction"], "chosen": row["output"], "rejected": other["output"]}
               for row, other in zip(data, data[1:] + data[:1], strict=True)]  # fmt: skip
    (folder / "pairs.json").write_text(json.dumps(answers))
    pairs = {"file_name": "pairs.json", "ranking": True, "columns": {"prompt": "instruction", "chosen": "chosen", "rejected": "rejected"}}
    (folder / "dataset_info.json").write_text(json.dumps({"rows": {"file_name": "rows.json"}, "pairs": pairs}))
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.train_from_iterator(
        (row["instruction"] + " " + row["output"] for row in data),
        trainers.BpeTrainer(
            vocab_size=20000, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
        ),
    )
    PreTrainedTokenizerFast(tokenizer_object=made, bos_token=SPECIAL[0], eos_token=SPECIAL[3], pad_token=SPECIAL[4]).save_pretrained(folder)
    settings = dict(SHAPES[shape])
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)


def recipe(folder: Path, out: Path, options: dict[str, str]) -> dict[str, Any]:
    """LLaMA-Factory's keys of the run."""
    full, stage = options.get("full") == "true", options.get("stage", "sft")
    return {
        "model_name_or_path": str(folder), "stage": stage, "do_train": True, "finetuning_type": "full" if full else "lora",
        "lora_rank": int(options.get("rank", "16")), "lora_alpha": 32, "lora_target": "all",
        "dataset": "pairs" if stage == "dpo" else "rows", "dataset_dir": str(folder), "template": "llama3", "cutoff_len": 2048,
        "output_dir": str(out), "overwrite_output_dir": True, "per_device_train_batch_size": int(options.get("batch", "4")),
        "gradient_accumulation_steps": int(options.get("accumulate", "1")),
        "learning_rate": 1.0e-5 if full else 1.0e-4, "max_steps": int(options.get("steps", "100")),
        "bf16": True, "optim": "adamw_torch_fused", "logging_steps": 10, "save_strategy": "no", "plot_loss": False, "report_to": "none",
        "packing": options.get("packing") in ("true", "neat"), "neat_packing": options.get("packing") == "neat", "flash_attn": "sdpa",
        "dataloader_num_workers": 4, "preprocessing_num_workers": 16, "warmup_ratio": 0.1,
        **({"quantization_bit": int(options["bits"])} if "bits" in options else {}),
    }  # fmt: skip


def ours(folder: Path, out: Path, options: dict[str, str]) -> dict[str, Any]:
    """One run of `python -m fl_trainers`, as `fl run --engine host` starts it."""
    out.mkdir(parents=True, exist_ok=True)
    keys = recipe(folder, out / "run", options)
    keys["fl"] = {"speed": options.get("speed", "auto"), "speed_without": [part for part in options.get("without", "").split("+") if part]}
    (out / "recipe.yaml").write_text(json.dumps(keys))
    begin = time.time()
    python, lane = options.pop("python", sys.executable), options.pop("hw", "cuda")
    command = [sys.executable, "-m", "fl", "run", "--engine", "host", "--python", python, "--hw", lane, "--force", str(out / "recipe.yaml")]
    environment = {**os.environ, "XDG_STATE_HOME": str(out / "state")}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)
    (out / "log.txt").write_text(done.stdout + done.stderr)
    if done.returncode:
        sys.exit(done.stdout[-2000:] + done.stderr[-4000:])
    (events_file,) = (out / "state").glob("fl/runs/*/events.jsonl")
    return read(events_file, begin, options)


def parts(folder: Path, out: Path, options: dict[str, str]) -> dict[str, Any]:
    """How much longer a step takes without each part, of those that this run takes."""
    from fl_trainers.config import SpeedPart

    whole = ours(folder, out / "all", dict(options))
    found = {"all": whole["step_s_second_half"], "why": whole["why"]}
    for part in get_args(SpeedPart):
        less = ours(folder, out / part, {**options, "without": part})
        found[part] = f"{less['step_s_second_half'] / whole['step_s_second_half']:.2f} x, {less['peak_gib']} GiB"
        print(json.dumps({part: found[part]}), file=sys.stderr)
    return found


def read(path: Path, begin: float, options: dict[str, str]) -> dict[str, Any]:
    """Figures from the events of a run that was started at `begin`."""
    events = [json.loads(line) for line in path.read_text().splitlines()]
    steps = [event for event in events if event["event"] == "step" and "loss" in event]
    results = json.loads(next((path.parents[4] / "run").glob("train_results.json")).read_text())
    half = next(event for event in steps if event["step"] >= steps[-1]["step"] // 2)
    passed = steps[-1]["time"] - half["time"]
    first = next(event["time"] for event in events if event["event"] == "step")
    why = next((event["why"] for event in events if event["event"] == "speed"), "")
    return {
        "who": "ours", **options, "steps": steps[-1]["step"], "train_s": results["train_runtime"], "tokens": steps[-1]["tokens"],
        "tokens_s": round(steps[-1]["tokens"] / results["train_runtime"]),
        "tokens_s_second_half": round((steps[-1]["tokens"] - half["tokens"]) / passed),
        "step_s_second_half": round(passed / (steps[-1]["step"] - half["step"]), 3),
        "peak_gib": round(max(event["memory_mib"] for event in steps) / 1024, 1), "loss": [steps[0]["loss"], steps[-1]["loss"]],
        "first_step_s": round(first - begin, 1), "wall_s": round(time.time() - begin, 1), "why": why,
    }  # fmt: skip


def peer(folder: Path, out: Path, options: dict[str, str]) -> dict[str, Any]:
    """One run of llamafactory.train.tuner.run_exp, unmodified; tokens are counted in a callback of transformers."""
    import torch
    from llamafactory.train.tuner import run_exp
    from transformers import TrainerCallback

    seen = {"tokens": 0, "half": 0, "at": 0.0}

    class Count(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            model.register_forward_pre_hook(self.count, with_kwargs=True)

        def count(self, module: Any, args: Any, kwargs: Any) -> None:
            seen["tokens"] = seen["tokens"] + (kwargs["input_ids"] != 4).sum()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 1:
                torch.cuda.synchronize()
                seen["first"] = time.time() - STARTED
            if state.global_step == state.max_steps // 2:
                torch.cuda.synchronize()
                seen["half"], seen["at"] = int(seen["tokens"]), time.monotonic()
            if state.global_step == state.max_steps:
                torch.cuda.synchronize()
                seen["end"] = time.monotonic()

    begin = time.monotonic()
    run_exp(args=recipe(folder, out, options), callbacks=[Count()])
    results = json.loads((out / "train_results.json").read_text())
    losses = [json.loads(line)["loss"] for line in (out / "trainer_log.jsonl").read_text().splitlines() if '"loss"' in line]
    tokens, steps = int(seen["tokens"]), int(options.get("steps", "100"))
    passed = seen["end"] - seen["at"]
    return {
        "who": "LLaMA-Factory 0.9.5", **options, "steps": steps, "train_s": results["train_runtime"], "tokens": tokens,
        "tokens_s": round(tokens / results["train_runtime"]), "tokens_s_second_half": round((tokens - seen["half"]) / passed),
        "step_s_second_half": round(passed / (steps - steps // 2), 3), "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 1),
        "loss": [losses[0], losses[-1]], "first_step_s": round(seen["first"], 1), "wall_s": round(time.monotonic() - begin, 1),
    }  # fmt: skip


def main(arguments: list[str]) -> int:
    does: dict[str, Any] = {"ours": ours, "peer": peer, "parts": parts}
    if len(arguments) < 2 or arguments[0] not in ("make", *does):
        sys.exit(__doc__)
    what, folder, *rest = arguments
    if what == "make":
        make(Path(folder).resolve(), rest[0] if rest else "8b")
        return 0
    options = dict(option.split("=", 1) for option in rest[1:])
    print(json.dumps(does[what](Path(folder).resolve(), Path(rest[0]).resolve(), options)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
