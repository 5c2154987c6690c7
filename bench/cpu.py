"""This trainer beside LLaMA-Factory 0.9.5 with its pins on one processor core: work, memory and losses, both measured in one run.

    python bench/cpu.py [--times N] [--steps N] [--peer DIR] [--only WORD] [--keep DIR] [speed] [losses]

speed: processor seconds a step and until the first step has ended, and peak memory, of a tiny and a 7 M parameter Qwen3: sft with LoRA
and full, dpo full. Both programs run unmodified and alternate; each figure is the least of N runs.
losses: the largest difference over the steps.
The peer gets an environment of its own (DIR, made when it is not there; bench/results otherwise), with the torch of the CPU row.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from figures import CACHE, FL, ROOT, figure, run, skip
from h100 import rows

PEER = "LLaMA-Factory 0.9.5"
SHAPES = {
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "head_dim": 16},
    "7 M": {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 6, "head_dim": 64},
}
VOCABULARY = 8000
COMMON: dict[str, Any] = {
    "do_train": True, "template": "qwen3", "cutoff_len": 256, "overwrite_output_dir": True, "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 1, "learning_rate": 1.0e-3, "logging_steps": 1, "save_strategy": "no", "plot_loss": False,
    "report_to": "none", "overwrite_cache": True, "lr_scheduler_type": "cosine", "seed": 42,
}  # fmt: skip
SPEED: dict[str, dict[str, Any]] = {
    "sft, LoRA": {"stage": "sft", "finetuning_type": "lora", "lora_rank": 8, "dataset": "rows"},
    "sft, full": {"stage": "sft", "finetuning_type": "full", "dataset": "rows"},
    "dpo, full": {"stage": "dpo", "finetuning_type": "full", "dataset": "pairs", "learning_rate": 1.0e-4},
}
_PT: dict[str, Any] = {"stage": "pt", "finetuning_type": "full", "dataset": "texts"}
LOSSES: dict[str, tuple[dict[str, Any], float]] = {
    "sft, full, in order": ({**SPEED["sft, full"], "disable_shuffling": True}, 1e-3),
    "sft, full, shuffled with seed 42": (SPEED["sft, full"], 1e-3),
    "sft, full, accumulation 2": ({**SPEED["sft, full"], "gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}, 1e-3),
    "sft, LoRA from the same adapter": ({**SPEED["sft, LoRA"], "adapter_name_or_path": "adapter"}, 1e-3),
    "dpo, sigmoid, full": (SPEED["dpo, full"], 1e-3),
    "pt, packed to 1024 tokens": ({**_PT, "cutoff_len": 1024, "per_device_train_batch_size": 1}, 2e-2),
    "pt, packed to 64 tokens": ({**_PT, "cutoff_len": 64}, 1e-3),
    "pt, not packed": ({**_PT, "packing": False}, 1e-3),
    "sft, full, train_on_prompt": ({**SPEED["sft, full"], "train_on_prompt": True}, 1e-3),
}
"""Recipes, and the largest difference that is allowed. Where each first token of a row has a label, the peer's transformers divides by it
too, although nothing foretells it: a limit of 1e-3 is for its sum of losses divided by the labels that are foretold."""

SHIM = '''
import importlib.machinery, json, os, resource, sys, time

seen, counts = [], []

def callbacks(module):
    kind = module.CallbackHandler
    step, end = kind.on_step_end, kind.on_train_end

    def on_step_end(self, args, state, control):
        found = step(self, args, state, control)
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        seen.append(time.process_time() + children.ru_utime + children.ru_stime)
        return found

    def on_train_end(self, args, state, control):
        found = end(self, args, state, control)
        losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
        with open(os.environ["BENCH_CPU_OUT"], "w") as file:
            json.dump({"at": seen, "losses": losses, "counts": counts}, file)
        return found

    kind.on_step_end, kind.on_train_end = on_step_end, on_train_end

def trainer(module):
    samples = module.Trainer.get_batch_samples

    def get_batch_samples(self, *args, **kwargs):
        found = samples(self, *args, **kwargs)
        labels = [batch["labels"] for batch in found[0]]
        counts.append([sum(int((part != -100).sum()) for part in parts) for parts in (labels, [whole[:, 1:] for whole in labels])])
        return found

    module.Trainer.get_batch_samples = get_batch_samples

class Finder:
    wanted = {"transformers.trainer_callback": callbacks}

    def find_spec(self, name, path=None, target=None):
        change = self.wanted.pop(name, None)
        if change is None:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        run = spec.loader.exec_module
        spec.loader.exec_module = lambda module: (run(module), change(module))
        return spec

if "BENCH_CPU_OUT" in os.environ:
    sys.meta_path.insert(0, Finder())
    if "BENCH_CPU_COUNT" in os.environ:
        Finder.wanted["transformers.trainer"] = trainer
'''
"""sitecustomize of both programs: notes the process' time after each step. It imports nothing but Python's own library."""


@dataclass(frozen=True, slots=True)
class Ran:
    """One whole run of a program."""

    step: float
    """Processor seconds a step, without the first."""
    first: float
    """Processor seconds from the start of the process to the end of the first step."""
    mib: float
    """The most memory that was resident at a time."""
    losses: list[float]
    counts: list[tuple[int, int]]
    """Of each step, where asked for: labels that are not ignored, and those of them that some token foretells."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where models, data and the two programs are."""

    folder: Path
    peer: Path
    """The peer's environment."""

    def recipe(self, shape: str, keys: dict[str, Any], steps: int, out: str) -> dict[str, Any]:
        """The recipe that both are given."""
        made = {**COMMON, **keys, "max_steps": steps, "dataset_dir": str(self.folder), "output_dir": str(self.folder / out)}
        if "adapter_name_or_path" in made:
            made["adapter_name_or_path"] = str(self.folder / f"{shape}-adapter")
        return {**made, "model_name_or_path": str(self.folder / shape)}

    def theirs(self, recipe: dict[str, Any], *, count: bool = False) -> Ran:
        """`llamafactory-cli train`. count: look at the labels too."""
        (self.folder / "peer.yaml").write_text(json.dumps(recipe))
        environment = {
            "DISABLE_VERSION_CHECK": "1", "HF_HOME": str(self.folder / "hub"), "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1",
            **({"BENCH_CPU_COUNT": "1"} if count else {}),
        }  # fmt: skip
        return self.measured([str(self.peer / "bin" / "llamafactory-cli"), "train", str(self.folder / "peer.yaml")], environment)

    def ours(self, recipe: dict[str, Any]) -> Iterator[Ran]:
        """`python -m fl_trainers` as `fl run --engine host` starts it: the first one by `fl run`, which is not counted."""
        (self.folder / "ours.yaml").write_text(json.dumps(recipe))
        with tempfile.TemporaryDirectory() as state:
            command = [*FL, "run", "--engine", "host", "--hw", "cpu", "--force", str(self.folder / "ours.yaml")]
            environment = {**os.environ, "XDG_STATE_HOME": state, "OMP_NUM_THREADS": "1"}
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)
            if done.returncode:
                sys.exit(f"fl run ended with {done.returncode}:\n{done.stdout[-1000:]}{done.stderr[-3000:]}")
            (plan,) = Path(state).glob("fl/runs/*/plan.json")
            made = json.loads(plan.read_text())
            while True:
                yield self.measured(made["argv"], made["environment"])

    def measured(self, command: list[str], environment: dict[str, str]) -> Ran:
        """Runs one of the programs to its end."""
        result = self.folder / "measured.json"
        result.unlink(missing_ok=True)
        path = os.pathsep.join(filter(None, (str(self.folder / "shim"), environment.get("PYTHONPATH"))))
        given = {**os.environ, **environment, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "BENCH_CPU_OUT": str(result)}
        for name in ("PYTHONDONTWRITEBYTECODE", "VIRTUAL_ENV"):
            given.pop(name, None)
        log = self.folder / "log.txt"
        with log.open("wb") as file:
            process = subprocess.Popen(command, cwd=self.folder, env=given, stdout=file, stderr=file)
            _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if not result.exists():  # written when training ends: the peer's dpo full crashes behind that, in its model card
            sys.exit(f"{' '.join(command)} ended with {process.returncode}:\n{log.read_text(errors='replace')[-3000:]}")
        found = json.loads(result.read_text())
        at = found["at"]
        return Ran((at[-1] - at[0]) / max(len(at) - 1, 1), at[0], used.ru_maxrss / 1024, found["losses"], found["counts"])


def make_peer(folder: Path) -> str | None:
    """Makes the peer's environment where there is none. The reason when that cannot be done."""
    if (folder / "bin" / "llamafactory-cli").exists():
        return None
    venv.create(folder, with_pip=True, clear=True)
    python, limits = str(folder / "bin" / "python"), folder / "constraints.txt"
    limits.write_text("torch==2.13.0+cpu\n")  # the CPU row's, so that both compute with the same library
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", str(limits), "llamafactory==0.9.5"]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    if done.returncode:
        (folder / "bin" / "llamafactory-cli").unlink(missing_ok=True)
        return "LLaMA-Factory could not be installed: " + (done.stderr.strip().splitlines() or ["no message"])[-1]
    if _fails(python, "torchvision"):  # a build for another torch; text models do without
        subprocess.run([python, "-m", "pip", "uninstall", "--quiet", "--yes", "torchvision"], check=True)
    if _fails(python, "torchaudio"):  # the same, and the peer imports it: it works without its compiled part
        for library in folder.glob("lib/python*/site-packages/torchaudio/lib/*.so"):
            library.unlink()
    return None


def _fails(python: str, module: str) -> bool:
    return subprocess.run([python, "-c", f"import {module}"], capture_output=True, check=False).returncode != 0


def make(folder: Path) -> None:
    """Models with random weights, a tokenizer, adapters, and data: by the peer's libraries, which the newer ones can read."""
    import torch
    from peft import LoraConfig, get_peft_model
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    data = rows(200)
    write_data(folder, data)
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]
    learn = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    core.train_from_iterator((row["instruction"] + " " + row["output"] for row in data), learn)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    for name, shape in SHAPES.items():
        torch.manual_seed(0)
        model = Qwen3ForCausalLM(Qwen3Config(
            vocab_size=VOCABULARY, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=2048, tie_word_embeddings=True,
            eos_token_id=2, pad_token_id=0, bos_token_id=None, **shape,
        ))  # fmt: skip
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
        target = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        adapted = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=target, task_type="CAUSAL_LM"))
        for key, value in adapted.named_parameters():
            if "lora_B" in key:
                torch.nn.init.normal_(value, std=0.02)
        adapted.save_pretrained(folder / f"{name}-adapter")


def write_data(folder: Path, data: list[dict[str, str]]) -> None:
    """The rows as questions, as pairs of answers, and as texts."""
    pairs = [{"instruction": row["instruction"], "input": "", "chosen": row["output"], "rejected": other["output"]}
             for row, other in zip(data, data[1:] + data[:1], strict=True)]  # fmt: skip
    files = {"rows": data, "pairs": pairs, "texts": [{"text": row["output"]} for row in data]}
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    info: dict[str, Any] = {name: {"file_name": f"{name}.json"} for name in files}
    info["pairs"] |= {"ranking": True, "columns": {"prompt": "instruction", "query": "input", "chosen": "chosen", "rejected": "rejected"}}
    info["texts"] |= {"columns": {"prompt": "text"}}
    (folder / "dataset_info.json").write_text(json.dumps(info))


def beside(place: Place, name: str, shape: str, keys: dict[str, Any], steps: int, times: int) -> tuple[Ran, Ran]:
    """The least of each figure, ours and theirs, over runs that alternate; the first of each is not counted."""
    runs: tuple[list[Ran], list[Ran]] = ([], [])
    ours = place.ours(place.recipe(shape, keys, steps, "ours"))
    theirs = place.recipe(shape, keys, steps, "theirs")
    place.theirs(theirs)
    for _ in range(times):
        runs[0].append(next(ours))
        runs[1].append(place.theirs(theirs))
    return _least(runs[0]), _least(runs[1])


def _least(runs: list[Ran]) -> Ran:
    return Ran(min(run.step for run in runs), min(run.first for run in runs), min(run.mib for run in runs), runs[0].losses, [])


def speed(place: Place, steps: int, times: int, only: str) -> bool:
    """Prints the figures of work and memory; whether none is above the peer's."""
    good = True
    for shape in SHAPES:
        for kind, keys in SPEED.items():
            name = f"Qwen3 {shape}, {kind}"
            if only not in name:
                continue
            mine, peer = beside(place, name, shape, keys, steps, times)
            for what, unit, key in (("a step", "s", "step"), ("to the first step", "s", "first"), ("peak memory", "MiB", "mib")):
                value, other = getattr(mine, key), getattr(peer, key)
                figure(f"{name}: {what}", value, unit, None, (PEER, other))
                good &= value <= other
    return good


def losses(place: Place, steps: int, only: str) -> bool:
    """Prints the largest difference of each recipe; whether all are within their limits."""
    good = True
    for name, (keys, limit) in LOSSES.items():
        if only not in name:
            continue
        ours = next(place.ours(place.recipe("tiny", keys, steps, "ours"))).losses
        peer = place.theirs(place.recipe("tiny", keys, steps, "theirs"), count=True)
        if len(ours) != len(peer.losses):
            sys.exit(f"{name}: {len(ours)} losses here, {len(peer.losses)} there")
        shares = [counted / foretold for counted, foretold in peer.counts[:steps]]
        same = keys["stage"] == "dpo" or all(share == 1 for share in shares)
        raw = _apart(ours, peer.losses)
        mended = raw if same else _apart(ours, [loss * share for loss, share in zip(peer.losses, shares, strict=True)])
        if not same:
            figure(f"{name}: largest difference of {steps} losses", raw, "", limit if limit > 1e-3 else None)
        said = "" if same else f", the peer's times {min(shares):.4f} to {max(shares):.4f}"
        good &= figure(f"{name}: largest difference of {steps} losses{said}", mended, "", 1e-3) and (limit <= 1e-3 or raw <= limit)
    return good


def _apart(ours: list[float], theirs: list[float]) -> float:
    return max(abs(a - b) for a, b in zip(ours, theirs, strict=True))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", choices=["speed", "losses", []], metavar="speed|losses")
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--peer", type=Path, default=CACHE / "llamafactory-0.9.5")
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.make:
        make(asked.make)
        return 0
    if (reason := make_peer(asked.peer)) is not None:
        skip(PEER, reason)
        return 0
    with tempfile.TemporaryDirectory() as name:
        place = Place(Path(name), asked.peer.absolute())
        (place.folder / "shim").mkdir()
        (place.folder / "shim" / "sitecustomize.py").write_text(SHIM)
        run((str(place.peer / "bin" / "python"), __file__, "--make", name))
        what = asked.what or ["speed", "losses"]
        good = losses(place, asked.steps, asked.only) if "losses" in what else True
        good &= speed(place, asked.steps, asked.times, asked.only) if "speed" in what else True
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
