"""What a finished run leaves in its output folder beside the weights."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from fl_trainers import pissa
from fl_trainers.config import Config
from fl_trainers.errors import InputError
from fl_trainers.progress import finite

Metrics = dict[str, Any]


def write_json(path: Path, value: Any) -> None:
    """Complete or absent, also when the disk fills up and when several processes write the same file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        temporary.write_text(json.dumps(finite(value), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise InputError(
            f"{path} cannot be written: {error.strerror}", f"{shutil.disk_usage(path.parent).free // 2**20} MiB are free there"
        ) from error


def share(folder: Path) -> None:
    """Weights get the modes that any file of this user gets: safetensors writes them for the user alone."""
    mask = os.umask(0)
    os.umask(mask)
    for path in folder.glob("*.safetensors"):
        with contextlib.suppress(OSError):  # of another user, or already gone
            path.chmod(0o666 & ~mask)


def write_results(folder: Path, split: str, metrics: Metrics) -> None:
    """`train_results.json` or `eval_results.json`, and both together in `all_results.json`."""
    write_json(folder / f"{split}_results.json", metrics)
    merged: Metrics = {}
    everything = folder / "all_results.json"
    if everything.is_file():
        merged = json.loads(everything.read_text(encoding="utf-8"))
    write_json(everything, {**merged, **metrics})


def model_card(config: Config, metrics: Metrics, *, parameters: int, trained: int, rows: int, losses: list[float]) -> str:
    """README.md: what this is, what it was made of, how, and with what figures; its head is the hub's metadata."""
    method, arguments = config.method, config.training.arguments
    adapter = method.finetuning_type in ("lora", "oft")
    head = ["---", "library_name: peft" if adapter else "library_name: transformers"]
    if config.model.kind == "hub":
        head.append(f"base_model: {config.model.path}")
    head += [
        "tags:",
        f"- {method.finetuning_type}",
        f"- {method.stage}",
        "- generated_from_trainer",
        f"pipeline_tag: text-{'classification' if method.stage == 'rm' else 'generation'}",
        "---",
    ]
    names = ", ".join(dataset.name for dataset in config.data.train)
    trains = "an adapter" if adapter else "all weights" if method.finetuning_type == "full" else "some layers"
    lines = [
        *head, "", f"# {Path(config.training.output_dir).name}", "",
        f"{config.model.name}, {trains} trained on {names}.", "",
        "| | |", "|---|---|",
        f"| base model | `{config.model.name}` ({parameters:,} parameters) |",
        f"| method | {', '.join(_words(config))}; {trained:,} trained parameters |",
        f"| data | {names}: {rows:,} rows, cut at {config.data.cutoff_len} tokens |",
        f"| chat template | {config.data.template or 'the tokenizer’s own'} |",
        f"| run | `{config.run.name}` on {config.run.lane}, stack `{config.run.stack}` |",
    ]  # fmt: skip
    if adapter and method.finetuning_type == "lora":
        lines.append(
            f"| LoRA | rank {method.lora.rank}, alpha {method.lora.alpha or 2 * method.lora.rank}, dropout {method.lora.dropout} |"
        )
    lines += ["", "## Recipe", "", "| argument | value |", "|---|---|"]
    lines += [f"| {key} | `{value}` |" for key, value in sorted(arguments.items())]
    lines += ["", "## Figures", "", "| figure | value |", "|---|---|"]
    if losses:
        lines.append(f"| loss, first and last logged | {losses[0]:.4f}, {losses[-1]:.4f} |")
    lines += [f"| {key} | {round(value, 4) if isinstance(value, float) else value} |" for key, value in sorted(metrics.items())]
    if (Path(config.training.output_dir) / "training_loss.png").is_file():
        lines += ["", "![training loss](training_loss.png)"]
    if method.stage in ("rm", "ppo"):
        lines += ["", "## Files", "", "| file | holds |", "|---|---|", *_files(adapter=adapter)]
    use = [*_use(config, adapter=adapter), *(_score() if method.stage == "rm" else [])]
    lines += ["", "## Use", "", "```python", *use, "```", ""]
    return "\n".join(lines)


def _words(config: Config) -> list[str]:
    """Stage and method, and what of them is not the usual."""
    method, lora = config.method, config.method.lora
    adapter = method.finetuning_type == "lora"
    low_rank = method.low_rank.kind if method.low_rank is not None else ""
    unusual = {
        f"base in {config.model.quantization.bits if config.model.quantization else 0} bits": config.model.quantization is not None,
        "rsLoRA": adapter and lora.rslora, "DoRA": adapter and lora.dora, "PiSSA": adapter and lora.pissa_init,
        "LoRA+": adapter and lora.loraplus_lr_ratio is not None, "LLaMA-Pro": method.use_llama_pro, "pure bf16": method.pure_bf16,
        "GaLore": low_rank == "galore", "APOLLO": low_rank == "apollo", "BAdam": method.badam is not None,
        "Adam-mini": method.use_adam_mini, "Muon": method.use_muon, "DFT": method.use_dft_loss, "ASFT": method.use_asft_loss,
        "EAFT": method.use_eaft_loss,
    }  # fmt: skip
    return [method.stage, method.finetuning_type, *(word for word, wanted in unusual.items() if wanted)]


def _use(config: Config, *, adapter: bool) -> list[str]:
    here = Path(config.training.output_dir).name
    if not adapter:
        return [
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            f'model = AutoModelForCausalLM.from_pretrained("{here}")',
            f'tokenizer = AutoTokenizer.from_pretrained("{here}")',
        ]
    return [
        *(
            ["# the base was made from a GGUF file into fl's cache; any `fl run` with that model makes it again"]
            if config.model.kind == "gguf"
            else []
        ),
        "from peft import AutoPeftModelForCausalLM",
        "from transformers import AutoTokenizer",
        "# the adapter finds its base model by the name in adapter_config.json",
        f'model = AutoPeftModelForCausalLM.from_pretrained("{pissa.folder_of(config, here)}")',
        f'tokenizer = AutoTokenizer.from_pretrained("{here}")',
    ]


def _files(*, adapter: bool) -> list[str]:
    """What of a model with a value head lies where."""
    adapted = "`adapter_model.safetensors`, `adapter_config.json` | the adapter"
    weights = adapted if adapter else "`model*.safetensors`, `config.json` | the model"
    return [
        f"| {weights} |",
        "| `value_head.safetensors` | the value head: `v_head.summary.weight` and `v_head.summary.bias`, one number a token |",
        "| `tokenizer.json`, `chat_template.jinja` | tokenizer and chat template |",
        "| `trainer_log.jsonl`, `trainer_state.json`, `all_results.json` | losses and results |",
    ]


def _score() -> list[str]:
    """How an answer is scored, with nothing but what the files hold."""
    return [
        "from safetensors.torch import load_file",
        'head = load_file("value_head.safetensors")  # of this folder',
        'talk = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]',
        "text = tokenizer.apply_chat_template(talk, tokenize=False).rstrip()",
        'batch = tokenizer(text, add_special_tokens=False, return_tensors="pt")',
        "last = model(**batch, output_hidden_states=True).hidden_states[-1][0, -1]",
        'score = last @ head["v_head.summary.weight"][0] + head["v_head.summary.bias"][0]',
    ]
