"""Trains tiny models by every method in one process, and prints as JSON what each left in the model: {name: facts}.

Run inside the training environment: `python method_runs.py FOLDER`. A check that raises gives {"error": its name, "message", "exit"}.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import json
import math
import os
import shutil
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fl_trainers import device, lean
from fl_trainers.config import Config
from fl_trainers.errors import TrainerError
from fl_trainers.progress import Events

FOLDER = Path(sys.argv[1]) if len(sys.argv) > 1 else Path.cwd()
SUMS = [{"instruction": f"What is {a} plus {b}?", "input": "", "output": f"It is {a + b}."} for a in range(1, 5) for b in range(1, 5)]
Check = Callable[[], dict[str, Any]]
CHECKS: dict[str, Check] = {}


def check(function: Check) -> Check:
    CHECKS[function.__name__] = function
    return function


def config(name: str, *, arguments: dict[str, Any] | None = None, **parts: Any) -> Config:
    folder = FOLDER / name
    folder.mkdir(exist_ok=True, parents=True)
    data = FOLDER / "sums.json"
    data.write_text(json.dumps(SUMS))
    made: dict[str, Any] = {
        "schema": 1,
        "run": {"name": name, "lane": "cpu", "stack": "cpu-torch213", "events": str(folder / "events.jsonl")},
        "model": {"name": "builtin/tiny-llama", "path": "builtin/tiny-llama", "kind": "tiny"},
        "data": {"train": [{"name": "sums", "source": "file", "path": str(data)}], "cutoff_len": 64},
        "method": {"stage": "sft", "finetuning_type": "lora"},
        "training": {"output_dir": str(folder / "out"), "plot_loss": False},
    }
    for key, value in parts.items():
        made[key].update(value)
    made["training"]["arguments"] = {
        "max_steps": 4, "learning_rate": 0.01, "logging_steps": 1, "per_device_train_batch_size": 4, "save_strategy": "no",
        **(arguments or {}),
    }  # fmt: skip
    return Config.model_validate(made)


class Done:
    """A run that has ended: its session and its loop, and the weights as they were before the first step."""

    def __init__(self, made: Config, *, save: bool = False, resume: str | None = None) -> None:
        from transformers import set_seed

        from fl_trainers.loop import arguments_of
        from fl_trainers.session import Session

        folder = Path(made.training.output_dir)
        folder.mkdir(exist_ok=True, parents=True)
        on = device.choose(made)
        self.session = Session(made, Events(Path(made.run.events)), on, folder, resume, arguments_of(made, on))
        set_seed(42)
        page = importlib.import_module(f"fl_trainers.stages.{made.method.stage}")
        page.load(self.session)
        page.data(self.session)
        self.loop = page.trainer(self.session)
        self.model = self.session.model
        self.before = {name: parameter.detach().clone() for name, parameter in self.model.named_parameters()}
        page.train(self.session, self.loop)
        if save:
            page.save(self.session, self.loop)

    @property
    def losses(self) -> list[float]:
        return list(self.session.follow.losses)

    def moved(self) -> set[str]:
        return {name for name, parameter in self.model.named_parameters() if not torch.equal(parameter.detach(), self.before[name])}

    def learned(self) -> dict[str, Any]:
        return {"first": self.losses[0], "last": self.losses[-1], "steps": len(self.losses)}


def parts(names: set[str]) -> list[str]:
    return sorted({name.split("layers.")[-1] if "layers." in name else name for name in names})


def last(names: set[str]) -> list[str]:
    return sorted({name.rsplit(".", 2)[-2] if name.endswith(("weight", "bias")) else name.rsplit(".", 1)[-1] for name in names})


@check
def freeze_last() -> dict[str, Any]:
    done = Done(config("freeze", method={"finetuning_type": "freeze", "freeze": {"trainable_layers": 1}}))
    return {**done.learned(), "moved": parts(done.moved())}


@check
def freeze_first_modules_and_extra() -> dict[str, Any]:
    freeze = {"trainable_layers": -1, "trainable_modules": ["mlp"], "extra_modules": ["lm_head"]}
    done = Done(config("freeze2", method={"finetuning_type": "freeze", "freeze": freeze}))
    return {**done.learned(), "moved": parts(done.moved())}


def _refused(name: str, resume: str | None = None, **more: Any) -> dict[str, Any]:
    try:
        done = Done(config(name, **more), resume=resume)
    except TrainerError as error:
        return {"exit": error.exit_code, "message": error.message, "remedy": error.remedy}
    return {"exit": 0, **done.learned()}


@check
def unknown_modules() -> dict[str, Any]:
    freeze = {"finetuning_type": "freeze", "freeze": {"trainable_modules": ["self_atn"]}}
    extra = {"finetuning_type": "freeze", "freeze": {"extra_modules": ["embed_token"]}}
    return {
        "freeze": _refused("no1", method=freeze), "extra": _refused("no2", method=extra),
        "lora": _refused("no3", method={"lora": {"target": ["q_prj"]}}),
        "additional": _refused("no4", method={"lora": {"additional_target": ["embed_tokens_"]}}),
        "oft": _refused("no5", method={"finetuning_type": "oft", "oft": {"target": ["gate"]}}),
    }  # fmt: skip


@check
def llama_pro() -> dict[str, Any]:
    freeze = {"trainable_layers": 1}
    done = Done(config("pro", method={"finetuning_type": "freeze", "freeze": freeze, "use_llama_pro": True}))
    adapter = Done(config("pro2", method={"freeze": freeze, "use_llama_pro": True}))
    return {
        **done.learned(), "moved": parts(done.moved()), "adapter": parts(adapter.moved()),
        "odd": _refused("pro3", method={"finetuning_type": "freeze", "freeze": {"trainable_layers": 3}, "use_llama_pro": True}),
    }  # fmt: skip


@check
def expanded_model() -> dict[str, Any]:
    from transformers import AutoModelForCausalLM

    from fl_trainers import expand

    base, target = base_folder(), FOLDER / "expanded"
    code = expand.main([str(base), str(target), "2"])
    assert code == 0
    ids = torch.arange(5, 30)[None]
    small, large = (AutoModelForCausalLM.from_pretrained(folder).eval() for folder in (base, target))
    with torch.no_grad():
        apart = float((small(input_ids=ids).logits - large(input_ids=ids).logits).abs().max())
    given = {"kind": "folder", "path": str(target), "name": str(target)}
    method = {"finetuning_type": "freeze", "freeze": {"trainable_layers": 2}, "use_llama_pro": True}
    done = Done(config("grown", model=given, method=method, data={"template": "chatml"}))
    return {
        "layers": large.config.num_hidden_layers, "apart": apart,
        "fresh": sorted({int(name.split(".")[0]) for name in parts(done.moved())}),
        "before": done.losses[0], "after": done.losses[-1], "odd": expand.main([str(base), str(FOLDER / "odd"), "3"]),
    }  # fmt: skip


def quantized(name: str, bits: int, **more: Any) -> tuple[Done, dict[str, Any]]:
    model = {"quantization": {"bits": bits, **more.pop("quantization", {})}}
    done = Done(config(name, model=model, **more))
    kinds = {type(module).__name__ for module in done.model.modules() if "Linear" in type(module).__name__}
    packed = [p for p in done.model.parameters() if type(p).__name__ in ("Params4bit", "Int8Params")]
    stored = {str(p.dtype) for p in packed}
    trained = {str(p.dtype) for p in done.model.parameters() if p.requires_grad}
    moved = [name for name in done.moved() if "lora" not in name and "oft" not in name]
    state = getattr(packed[0], "quant_state", None)
    return done, {
        **done.learned(), "kinds": sorted(kinds), "stored": sorted(stored), "trained": sorted(trained),
        "moved_base": moved, "packed": len(packed),
        "type": getattr(state, "quant_type", None), "nested": getattr(state, "nested", None),
    }  # fmt: skip


@check
def qlora_4() -> dict[str, Any]:
    return quantized("q4", 4)[1]


@check
def qlora_without_padding() -> dict[str, Any]:
    from fl_trainers.fast import lora

    model = {"quantization": {"bits": 4}}
    padded, flat = (Done(config(f"q4{speed}", model=model, training={"speed": speed})) for speed in ("off", "memory"))
    layers = [module for module in flat.model.modules() if hasattr(module, "lora_A")]
    return {"padded": padded.losses, "flat": flat.losses, "layers": len(layers), "fused": sum(lora.fits(layer) for layer in layers)}


@check
def qlora_fp4_single() -> dict[str, Any]:
    return quantized("fp4", 4, quantization={"type": "fp4", "double": False})[1]


@check
def qlora_8() -> dict[str, Any]:
    return quantized("q8", 8)[1]


@check
def qoft() -> dict[str, Any]:
    return quantized("qoft", 4, method={"finetuning_type": "oft", "oft": {"block_size": 16}})[1]


@check
def qdora_bf16() -> dict[str, Any]:
    return quantized("qdora", 4, method={"lora": {"dora": True}}, arguments={"bf16": True})[1]


@check
def quantized_refusals() -> dict[str, Any]:
    model = {"quantization": {"bits": 4}}
    return {
        "full": _refused("qf", model=model, method={"finetuning_type": "full"}),
        "pissa": _refused("qp", model=model, method={"lora": {"pissa_init": True}}),
        "two": _refused("q2", model={**model, "adapters": ["/a", "/b"]}),
    }  # fmt: skip


@check
def saved_in_4_bits() -> dict[str, Any]:
    """A checkpoint that is quantized as it was saved: it carries an adapter, and nothing else."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    folder = FOLDER / "saved-4bit"
    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
    AutoModelForCausalLM.from_pretrained(base_folder(), quantization_config=settings, device_map={"": "cpu"}).save_pretrained(folder)
    AutoTokenizer.from_pretrained(base_folder()).save_pretrained(folder)
    model = {"kind": "folder", "path": str(folder), "name": "saved"}
    data = {"template": "chatml"}
    done = Done(config("saved1", model=model, data=data))
    again = Done(config("saved2", model={**model, "quantization": {"bits": 8}}, data=data))
    return {
        **done.learned(), "packed": sum(type(p).__name__ == "Params4bit" for p in done.model.parameters()),
        "again": sum(type(p).__name__ == "Params4bit" for p in again.model.parameters()),
        "full": _refused("saved3", model=model, data=data, method={"finetuning_type": "full"}),
        "merged": _refused("saved4", model={**model, "adapters": ["/a", "/b"]}, data=data),
    }  # fmt: skip


@check
def saved_in_fp8() -> dict[str, Any]:
    """A checkpoint in FP8 with one scale a block: all of it is trained, in float32, from the weights that it stands for."""
    from safetensors.torch import load_file, save_file

    base, folder = base_folder(), FOLDER / "fp8"
    shutil.copytree(base, folder)
    plain = load_file(base / "model.safetensors")
    saved: dict[str, Any] = {}
    for name, weight in plain.items():
        if not name.endswith("proj.weight"):
            saved[name] = weight
            continue
        blocks = weight.float().reshape(weight.shape[0] // 32, 32, weight.shape[1] // 32, 32)
        scale = blocks.abs().amax((1, 3)) / 448.0
        saved[name] = (blocks / scale[:, None, :, None]).reshape(weight.shape).to(torch.float8_e4m3fn)
        saved[f"{name}_scale_inv"] = scale
    save_file(saved, folder / "model.safetensors", metadata={"format": "pt"})
    settings = json.loads((folder / "config.json").read_text())
    settings["quantization_config"] = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [32, 32]}
    (folder / "config.json").write_text(json.dumps(settings))
    model = {"kind": "folder", "path": str(folder), "name": "fp8"}
    done = Done(config("fp8run", model=model, data={"template": "chatml"}, method={"finetuning_type": "full"}), save=True)
    apart = max(float((done.before[name] - weight).abs().max() / weight.abs().max()) for name, weight in plain.items())
    again = json.loads((done.session.folder / "config.json").read_text())
    return {**done.learned(), "apart": apart, "moved": len(done.moved()), "still": "quantization_config" in again}


@check
def rslora() -> dict[str, Any]:
    done = Done(config("rs", method={"lora": {"rank": 4, "alpha": 8, "rslora": True}}))
    scaling = next(module.scaling["default"] for module in done.model.modules() if isinstance(getattr(module, "scaling", None), dict))
    return {**done.learned(), "scaling": scaling}


@check
def dora() -> dict[str, Any]:
    done = Done(config("dora", method={"lora": {"dora": True}}))
    magnitudes = [name for name in done.moved() if "lora_magnitude_vector" in name]
    return {**done.learned(), "magnitudes": len(magnitudes), "linear": len([n for n in done.before if n.endswith("lora_A.default.weight")])}


@check
def loraplus() -> dict[str, Any]:
    lora = {"lora": {"loraplus_lr_ratio": 16.0}}
    done = Done(config("plus", method=lora, arguments={"lr_scheduler_type": "constant", "learning_rate": 0.001}))
    names = {id(parameter): name for name, parameter in done.model.named_parameters()}
    rates: dict[str, set[float]] = {"lora_A": set(), "lora_B": set()}
    for group in done.loop.optimizer.param_groups:
        for parameter in group["params"]:
            rates["lora_A" if "lora_A" in names[id(parameter)] else "lora_B"].add(group["lr"])
    return {**done.learned(), **{key: sorted(value) for key, value in rates.items()}}


@check
def pissa() -> dict[str, Any]:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    still = {"learning_rate": 0.0, "max_steps": 1}
    plain, start = Done(config("plain", arguments=still)), Done(config("pissa0", method={"lora": {"pissa_init": True}}, arguments=still))
    done = Done(config("pissa", method={"lora": {"pissa_init": True, "pissa_convert": True}}), save=True)
    folder = done.session.folder
    base = AutoModelForCausalLM.from_pretrained(folder / "base-model")
    converted = PeftModel.from_pretrained(base, str(folder / "pissa_converted")).eval()
    ids = torch.arange(5, 30)[None]
    with torch.no_grad():
        trained = done.model.eval()(input_ids=ids).logits
        apart = float((converted(input_ids=ids).logits - trained).abs().max())
        untrained = float((plain.model.eval()(input_ids=ids).logits - trained).abs().max())
    settings = json.loads((folder / "pissa_converted" / "adapter_config.json").read_text())
    return {
        **done.learned(), "plain": plain.losses[0], "start": start.losses[0], "apart": apart, "untrained": untrained,
        "card": (folder / "README.md").read_text().count("/pissa_converted"),
        "warned": [(place / "events.jsonl").read_text().count("pissa_convert: true") for place in (FOLDER / "pissa0", FOLDER / "pissa")],
        "rank": settings["r"], "start_of_converted": settings["init_lora_weights"],
        "large": float(max(p.abs().max() for n, p in start.model.named_parameters() if "lora_B" in n)),
    }  # fmt: skip


@check
def pissa_converted_with_all_that_was_trained() -> dict[str, Any]:
    """DoRA's magnitudes, modules that are trained in full, and a value head: the converted adapter has them too."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    taken = {"pissa_init": True, "pissa_convert": True}
    ids, facts = torch.arange(5, 30)[None], {}
    for name, lora in {"dora": {"dora": True}, "whole": {"additional_target": ["embed_tokens"]}}.items():
        done = Done(config(f"pissa-{name}", method={"lora": {**lora, **taken}}), save=True)
        base = AutoModelForCausalLM.from_pretrained(done.session.folder / "base-model")
        converted = PeftModel.from_pretrained(base, str(done.session.folder / "pissa_converted")).eval()
        with torch.no_grad():
            facts[name] = float((converted(input_ids=ids).logits - done.model.eval()(input_ids=ids).logits).abs().max())
    path = FOLDER / "pairs.json"
    path.write_text(json.dumps([{"instruction": row["instruction"], "chosen": row["output"], "rejected": "No."} for row in SUMS]))
    columns = {"prompt": "instruction", "query": None, "response": None, "chosen": "chosen", "rejected": "rejected"}
    data = {"train": [{"name": "pairs", "source": "file", "path": str(path), "ranking": True, "columns": columns}]}
    done = Done(config("pissa-rm", method={"stage": "rm", "lora": taken}, data=data), save=True)
    return {**facts, "head": (done.session.folder / "pissa_converted" / "value_head.safetensors").is_file()}


@check
def heads_are_trained_too() -> dict[str, Any]:
    """An adapter on the head, and a head that is saved whole because the vocabulary may grow: fast steps must not pass them by."""
    one = Done(config("head1", method={"lora": {"target": ["lm_head", "q_proj"]}}))
    two = Done(config("head2", model={"resize_vocab": True}))
    whole = {"lora": {"additional_target": ["lm_head"]}}
    first = on_base("head3", save=True, method=whole)
    three = on_base("head4", [str(first.session.folder)])  # that it has a head of its own stands in the adapter, not in the recipe
    return {
        "continued": sorted(n for n in three.moved() if "modules_to_save" in n),
        "adapter": sorted(n for n in one.moved() if "lm_head" in n),
        "whole": sorted(n for n in two.moved() if "modules_to_save" in n),
    }  # fmt: skip


@check
def target_all_and_additional() -> dict[str, Any]:
    done = Done(config("all", method={"lora": {"additional_target": ["embed_tokens"]}}))
    kinds = sorted({name.split(".lora_")[0].rsplit(".", 1)[-1] for name in done.before if ".lora_A." in name})
    embedding = [name for name in done.moved() if "modules_to_save" in name]
    return {**done.learned(), "targets": kinds, "saved": embedding}


def base_folder() -> Path:
    """A model with files of its own, and an adapter trained on it."""
    from fl_trainers import tiny

    folder = FOLDER / "base"
    if not folder.exists():
        tokenizer = tiny.tokenizer([row["instruction"] + row["output"] for row in SUMS], "")
        tokenizer.chat_template = None
        tiny.model("builtin/tiny-llama", len(tokenizer), 3).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


def on_base(name: str, adapters: list[str] | None = None, *, save: bool = False, model: dict[str, Any] | None = None, **more: Any) -> Done:
    place = str(base_folder())
    given = {"kind": "folder", "path": place, "name": place, "adapters": adapters or [], **(model or {})}
    return Done(config(name, model=given, data={"template": "chatml"}, **more), save=save)


@check
def several_adapters() -> dict[str, Any]:
    """Two adapters one after another, each trained on what was before, then merged, continued, and a third made."""
    still = {"learning_rate": 0.0, "max_steps": 1}
    one = on_base("one", save=True)
    first = str(one.session.folder)
    two = on_base("two", [first], save=True, method={"lora": {"create_new_adapter": True, "rank": 2}})
    second = str(two.session.folder)
    went_on = on_base("on", [first, second], arguments=still)
    fresh = on_base("new", [first, second], arguments=still, method={"lora": {"create_new_adapter": True}})
    base = on_base("bare", arguments=still)
    ids = torch.arange(5, 30)[None]

    def logits(model: Any) -> Any:
        with torch.no_grad():
            return model.eval()(input_ids=ids).logits

    after = logits(two.model)
    return {
        "one": one.learned(), "base": base.losses[0], "two": two.losses[0], "went_on": float((logits(went_on.model) - after).abs().max()),
        "fresh": float((logits(fresh.model) - after).abs().max()), "bare": float((logits(base.model) - after).abs().max()),
        "rank": went_on.model.peft_config["default"].r,
        "zero": all(float(p.abs().max()) == 0 for n, p in fresh.model.named_parameters() if "lora_B" in n),
    }  # fmt: skip


@check
def a_continued_adapter_on_quantized_weights() -> dict[str, Any]:
    first = str(on_base("one4", save=True).session.folder)
    done = on_base("on4", [first], model={"quantization": {"bits": 4}})
    new = on_base("new4", model={"quantization": {"bits": 4}})
    return {**done.learned(), "new": new.losses[0]}


@check
def a_continued_oft_adapter() -> dict[str, Any]:
    oft = {"finetuning_type": "oft", "oft": {"block_size": 16}}
    first = on_base("oft1", save=True, method=oft)
    done = on_base("oft2", [str(first.session.folder)], method=oft)
    return {**first.learned(), "continued": done.losses[0]}


@check
def adapters_that_do_not_fit() -> dict[str, Any]:
    wide = FOLDER / "wide"
    place = str(on_base("one5", save=True).session.folder)
    from fl_trainers import tiny

    tokenizer = tiny.tokenizer([row["instruction"] + row["output"] for row in SUMS], "")
    model = tiny.model("builtin/tiny-llama", len(tokenizer), 3)
    settings = copy.deepcopy(model.config)
    settings.hidden_size, settings.num_attention_heads = 32, 2
    type(model)(settings).save_pretrained(wide)
    tokenizer.save_pretrained(wide)
    deep = FOLDER / "deep"
    settings = copy.deepcopy(model.config)
    settings.num_hidden_layers = 1
    type(model)(settings).save_pretrained(deep)
    tokenizer.save_pretrained(deep)
    empty = FOLDER / "no-adapter"
    empty.mkdir(exist_ok=True)

    def tried(base: Path, adapter: str, method: dict[str, Any] | None = None) -> dict[str, Any]:
        given = {"kind": "folder", "path": str(base), "name": base.name, "adapters": [adapter]}
        return _refused("unfit", model=given, data={"template": "chatml"}, method=method or {})

    return {
        "wide": tried(wide, place), "deep": tried(deep, place), "empty": tried(base_folder(), str(empty)),
        "kind": tried(base_folder(), place, {"finetuning_type": "oft"}), "full": tried(base_folder(), place, {"finetuning_type": "full"}),
    }  # fmt: skip


@check
def oft() -> dict[str, Any]:
    done = Done(config("oft", method={"finetuning_type": "oft", "oft": {"block_size": 16}}))
    return {**done.learned(), "moved": last(done.moved()), "base": [n for n in done.moved() if "oft_" not in n]}


@check
def neftune() -> dict[str, Any]:
    still: dict[str, Any] = {"learning_rate": 0.0, "max_steps": 2}
    plain, noisy = Done(config("nef0", arguments=still)), Done(config("nef", arguments={**still, "neftune_noise_alpha": 15.0}))
    ids = torch.arange(5, 30)[None]
    with torch.no_grad():
        same = torch.equal(noisy.model.eval()(input_ids=ids).logits, plain.model.eval()(input_ids=ids).logits)
    return {"apart": abs(noisy.losses[0] - plain.losses[0]), "steps": len(noisy.losses), "same_after": same}


@check
def hand_losses() -> dict[str, Any]:
    """A vocabulary of 3, two counted places: what the formulas give, computed by hand in Python."""
    from fl_trainers import losses

    logits = torch.tensor([[[2.0, 0.0, 1.0], [0.5, 0.5, 0.0], [9.0, 9.0, 9.0]]], requires_grad=True)
    anchor = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [3.0, 2.0, 1.0]]])
    labels = torch.tensor([[-100, 0, 1]])
    rows = [([2.0, 0.0, 1.0], [1.0, 0.0, 0.0], 0), ([0.5, 0.5, 0.0], [0.0, 1.0, 0.0], 1)]

    def softmax(values: list[float]) -> list[float]:
        total = sum(math.exp(value) for value in values)
        return [math.exp(value) / total for value in values]

    dft = eaft = kl = 0.0
    for row, before, target in rows:
        p, q = softmax(row), softmax(before)
        dft += -math.log(p[target]) * p[target] / 2
        eaft += -math.log(p[target]) * (-sum(x * math.log(x) for x in p) / 3.0) ** 0.5 / 2
        kl += sum(b * (math.log(b) - math.log(a)) for a, b in zip(p, q, strict=True)) / 2
    made = losses.dft(logits, labels)
    made.backward()
    p = softmax(rows[0][0])  # the weight is a number: the gradient of plain cross-entropy times it
    wanted = [p[0] * (p[i] - (1 if i == 0 else 0)) / 2 for i in range(3)]
    grad = logits.grad
    assert grad is not None
    return {
        "dft": [float(made), dft], "dft_of_4": [float(losses.dft(logits, labels, torch.tensor(4))), dft / 2],
        "eaft": [float(losses.eaft(logits, labels, None, 0.5)), eaft],
        "asft": [float(losses.asft(logits, anchor, labels, None, 0.3)), dft + 0.3 * kl],
        "gradient": [max(abs(float(grad[0, 0, i]) - wanted[i]) for i in range(3)), 0.0],
        "nothing_counts": [float(losses.dft(logits, torch.full((1, 3), -100))), 0.0],
    }  # fmt: skip


@check
def losses_in_training() -> dict[str, Any]:
    facts = {}
    for name, method in {
        "plain": {}, "dft": {"use_dft_loss": True}, "eaft": {"use_eaft_loss": True, "eaft_alpha": 0.5},
        "asft": {"use_asft_loss": True, "asft_alpha": 0.5},
        "asft_full": {"use_asft_loss": True, "finetuning_type": "full"},
        "asft_pissa": {"use_asft_loss": True, "lora": {"pissa_init": True}},
    }.items():  # fmt: skip
        done = Done(config(f"loss-{name}", method=method, arguments={"gradient_accumulation_steps": 2}))
        facts[name] = done.learned()
    anchored = Done(config("anchored", method={"use_asft_loss": True, "asft_alpha": 50.0}, arguments={"max_steps": 8}))
    free = Done(config("free", method={"use_dft_loss": True}, arguments={"max_steps": 8}))
    ids = torch.arange(5, 30)[None]

    def distance(done: Done) -> float:
        with torch.no_grad(), done.model.disable_adapter():
            before = done.model.eval()(input_ids=ids).logits
        with torch.no_grad():
            return float((done.model(input_ids=ids).logits - before).abs().mean())

    return {**facts, "anchored": distance(anchored), "free": distance(free)}


@check
def padding_counts() -> dict[str, Any]:
    still = {"learning_rate": 0.0, "max_steps": 1, "per_device_train_batch_size": 2}
    path = FOLDER / "uneven.json"
    path.write_text(json.dumps([{"instruction": "One?", "output": "Two."}, {"instruction": "One?", "output": "Two and three and four."}]))
    data = {"train": [{"name": "uneven", "source": "file", "path": str(path)}]}
    counted = Done(config("pad", data={**data, "ignore_pad_token_for_loss": False}, arguments=still))
    ignored = Done(config("pad0", data=data, arguments=still))
    pad = counted.session.tokenizer.pad_token_id
    pads = [int((done.loop.data_collator(done.session.prepared.train)["labels"] == pad).sum()) for done in (counted, ignored)]
    return {"counted": counted.losses[0], "ignored": ignored.losses[0], "pads": pads}


@check
def schedules() -> dict[str, Any]:
    """Learning rates of warmup_stable_decay, and what a schedule says that lacks what it needs."""
    done = Done(config("wsd", arguments={"lr_scheduler_type": "warmup_stable_decay", "max_steps": 8, "warmup_steps": 2}))
    rates = [entry["learning_rate"] for entry in done.loop.state.log_history if "loss" in entry]
    wrong = {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"powr": 2}}
    return {**done.learned(), "rates": rates, "wrong": _refused("poly", arguments=wrong)}


@check
def muon() -> dict[str, Any]:
    done = Done(config("muon", method={"finetuning_type": "full", "use_muon": True}, arguments={"learning_rate": 0.002, "max_steps": 6}))
    optimizer = done.loop.optimizer.optimizer
    names = {id(parameter): name for name, parameter in done.model.named_parameters()}
    matrices = [names[id(p)] for group in optimizer.param_groups if group["muon"] for p in group["params"]]
    rest = [names[id(p)] for group in optimizer.param_groups if not group["muon"] for p in group["params"]]
    name = next(n for n in matrices if "q_proj" in n)
    weight = dict(done.model.named_parameters())[name]
    saved = copy.deepcopy(optimizer.state_dict())
    optimizer.load_state_dict(saved)
    for parameter in done.model.parameters():
        parameter.grad = torch.randn_like(parameter)
    start = weight.detach().clone()
    for group in optimizer.param_groups:
        group["lr"] = 0.01
    optimizer.step()
    singular = torch.linalg.svdvals((weight.detach() - start).float())
    return {
        **done.learned(), "matrices": last(set(matrices)), "rest": last(set(rest)), "moved": len(done.moved()), "all": len(done.before),
        "kept_state": sorted(optimizer.state[weight]), "orthogonal": 1 - float(singular[int(0.9 * len(singular))] / singular[0]),
    }  # fmt: skip


OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop", "stable_adamw", "adamw_bnb_8bit",
              "paged_adamw_32bit",
              "lion_32bit")  # fmt: skip


@check
def ordinary_optimizers() -> dict[str, Any]:
    facts: dict[str, Any] = {}
    for name in OPTIMIZERS:
        try:
            done = Done(
                config(f"o-{name}", method={"finetuning_type": "full"}, arguments={"optim": name, "learning_rate": 0.005, "max_steps": 2})
            )
            facts[name] = {**done.learned(), "moved": len(done.moved())}
        except TrainerError as error:
            facts[name] = {"exit": error.exit_code, "message": error.message}
        except Exception as error:  # noqa: BLE001 - the test reads it
            facts[name] = {"error": type(error).__name__, "message": str(error)[:300]}
    return facts


SPECIAL: dict[str, dict[str, Any]] = {
    "galore": {"low_rank": {"kind": "galore", "rank": 4}},
    "galore_layerwise": {"low_rank": {"kind": "galore", "rank": 4, "layerwise": True, "target": ["mlp", "self_attn"]}},
    "apollo": {"low_rank": {"kind": "apollo", "rank": 4, "scale": 1.0}},
    "apollo_layerwise": {"low_rank": {"kind": "apollo", "rank": 4, "scale": 1.0, "layerwise": True}},
    "badam": {"badam": {"switch_interval": 2}},
    "badam_ratio": {"badam": {"mode": "ratio"}},
    "adam_mini": {"use_adam_mini": True},
}  # fmt: skip


@check
def special_optimizers() -> dict[str, Any]:
    facts: dict[str, Any] = {}
    for name, method in SPECIAL.items():
        try:
            done = Done(config(f"s-{name}", method={"finetuning_type": "full", **method}, arguments={"learning_rate": 0.005}))
            facts[name] = {**done.learned(), "moved": parts(done.moved()), "all": len(done.before)}
            if name in ("galore", "apollo"):
                sizes = [
                    t.shape
                    for state in done.loop.optimizer.optimizer.state.values()
                    for t in state.values()
                    if torch.is_tensor(t) and t.ndim == 2
                ]
                facts[name]["smallest"] = min(min(size) for size in sizes)
        except TrainerError as error:
            facts[name] = {"exit": error.exit_code, "message": error.message, "remedy": error.remedy}
        except Exception as error:  # noqa: BLE001 - the test reads it
            facts[name] = {"error": type(error).__name__, "message": traceback.format_exc()[-1500:]}
    facts["accumulated"] = _refused(
        "s-acc", method={"finetuning_type": "full", **SPECIAL["galore_layerwise"]}, arguments={"gradient_accumulation_steps": 2}
    )
    facts["eight"] = _refused("s-8", method={"finetuning_type": "full", **SPECIAL["galore"]}, arguments={"optim": "adamw_8bit"})
    return facts


@check
def special_optimizers_go_on() -> dict[str, Any]:
    """Three of five steps, then from the checkpoint: the losses of the steps that follow, and of those of a run that was not cut."""
    saves = {"save_strategy": "steps", "save_steps": 3, "max_steps": 5, "learning_rate": 0.005}
    fixed = {"badam": {"switch_mode": "fixed", "start_block": 1}}
    by_name = {"optim": "galore_adamw", "optim_target_modules": ["mlp"]}
    facts: dict[str, Any] = {}
    for name, method in {**SPECIAL, "badam_fixed": fixed, "muon": {"use_muon": True}, "optim": {}}.items():
        more = {"method": {"finetuning_type": "full", **method}, "arguments": {**saves, **(by_name if name == "optim" else {})}}
        whole = Done(config(f"w-{name}", **more))
        again = Done(config(f"a-{name}", **more), resume=str(whole.session.folder / "checkpoint-3"))
        facts[name] = [whole.losses[3:], again.losses]
    forgets = {"method": {"finetuning_type": "full"}, "arguments": {**saves, **by_name, "optim": "galore_adamw_layerwise"}}
    first = Done(config("w-forgets", **forgets))
    facts["forgets"] = _refused("a-forgets", resume=str(first.session.folder / "checkpoint-3"), **forgets)
    return facts


@check
def layerwise_steps_are_those_of_the_whole() -> dict[str, Any]:
    """Without clipping, which the whole alone has."""
    free = {"learning_rate": 0.005, "max_grad_norm": 0.0}
    kinds = {"galore": {"kind": "galore", "rank": 4}, "apollo": {"kind": "apollo", "rank": 4, "scale": 1.0, "proj": "svd"}}
    return {
        name: [Done(config(f"lw-{name}{each}", method={"finetuning_type": "full", "low_rank": {**kind, "layerwise": each}},
                           arguments=free)).losses for each in (False, True)]
        for name, kind in kinds.items()
    }  # fmt: skip


@check
def adam_mini_on_models_of_today() -> dict[str, Any]:
    """Heads wider than the hidden state divided by their number, norms called `post_mlp_layernorm`, experts that are one tensor."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    folder = FOLDER / "wide-heads"
    shutil.copytree(base_folder(), folder, ignore=shutil.ignore_patterns("*.safetensors"))
    vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
    shape = {"vocab_size": vocabulary, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "head_dim": 20}  # fmt: skip
    Qwen3ForCausalLM(Qwen3Config(**shape)).save_pretrained(folder)
    method = {"finetuning_type": "full", "use_adam_mini": True}
    own = {"kind": "folder", "path": str(folder), "name": "wide"}
    models = {"wide": own, **{kind: {"name": f"builtin/tiny-{kind}", "path": f"builtin/tiny-{kind}"} for kind in ("glm4", "qwen3-moe")}}
    facts: dict[str, Any] = {}
    for name, given in models.items():
        done = Done(config(f"mini-{name}", model=given, method=method, data={"template": "chatml"}, arguments={"learning_rate": 0.005}))
        rates = {tuple(p.shape): state["vmean"].numel() for p, state in done.loop.optimizer.optimizer.state.items() if "vmean" in state}
        facts[name] = {**done.learned(), "unmoved": sorted(set(done.before) - done.moved()), "rates": sorted(rates.items())}
    return facts


@check
def badam_and_what_is_frozen() -> dict[str, Any]:
    """Blocks are those of the layers that freeze leaves; a share of the weights is trained of a model whose embedding is its head too."""
    blocks = {"badam": {"switch_interval": 1}, "finetuning_type": "freeze", "freeze": {"trainable_layers": 1}}
    frozen = Done(config("badam-freeze", method=blocks))
    tied = {"name": "builtin/tiny-gemma3", "path": "builtin/tiny-gemma3"}
    share = Done(config("badam-tied", model=tied, method={"finetuning_type": "full", "badam": {"mode": "ratio"}}))
    full = {"finetuning_type": "full"}
    drawn = {"switch_mode": "random", "start_block": 1, "switch_interval": 1}
    return {
        **frozen.learned(), "layers": sorted({int(name.split(".")[0]) for name in parts(frozen.moved())}), "share": share.losses,
        "fixed": _refused("badam-f", method={**full, "badam": {"switch_mode": "fixed"}}),
        "beyond": _refused("badam-b", method={**full, "badam": {"start_block": 2}}),
        "random": Done(config("badam-r", method={**full, "badam": drawn})).losses,
    }  # fmt: skip


@check
def oft_dropout() -> dict[str, Any]:
    """Blocks are left out while training, anew each time, and never else; not where answers are compared with those before."""
    ids = torch.arange(5, 30)[None]

    def apart(done: Done, training: bool) -> float:
        model = done.model.train(training)
        with torch.no_grad():
            one, two = (model(input_ids=ids).logits for _ in range(2))
        return float((one - two).abs().max())

    oft = {"finetuning_type": "oft", "oft": {"block_size": 16, "module_dropout": 0.5}}
    first = on_base("drop", save=True, method=oft)
    plain = {"finetuning_type": "oft", "oft": {"block_size": 16}}
    went_on = on_base("drop2", [str(first.session.folder)], method=plain)  # its dropout stands in the adapter
    return {
        "training": [apart(first, True), apart(went_on, True)], "asked": [apart(first, False), apart(went_on, False)],
        "without": on_base("drop0", method=plain).losses, "with": first.losses,
    }  # fmt: skip


@check
def adapters_on_experts() -> dict[str, Any]:
    """By the names that experts had when they were linear layers; what cannot act on one tensor says what would do."""
    experts = {"name": "builtin/tiny-qwen3-moe", "path": "builtin/tiny-qwen3-moe"}
    named = {"target": ["q_proj", "gate_proj", "up_proj", "down_proj"]}
    done = Done(config("moe", model=experts, method={"lora": named}))
    everything = {"name": "builtin/tiny-deepseek-v3", "path": "builtin/tiny-deepseek-v3"}  # whose shared expert is still linear
    return {
        **done.learned(), "moved": sorted({name.split("layers.1.")[1] for name in done.moved() if "layers.1.mlp.experts" in name}),
        "dora": _refused("moe-d", model=experts, method={"lora": {**named, "dora": True}}),
        "pissa": _refused("moe-p", model=everything, method={"lora": {"pissa_init": True}}),
        "half": _refused("moe-h", model=experts, method={"lora": {"target": ["gate_proj"]}}),
    }  # fmt: skip


def _saved_names(done: Done) -> list[str]:
    from safetensors.torch import load_file

    return [name for path in done.session.folder.glob("*.safetensors") for name in load_file(path)]


@check
def grpo_and_what_the_model_was() -> dict[str, Any]:
    """The distance to the reference is 0 at first and grows; to make the reference changes nothing of the model; it is not saved."""
    facts: dict[str, Any] = {}
    rewards = {"reward_funcs": ["brief"], "num_generations": 4, "max_completion_length": 6, "beta": 0.1}
    lora = {"additional_target": ["lm_head"]}
    kinds: dict[str, dict[str, Any]] = {
        "full": {"finetuning_type": "full"}, "freeze": {"finetuning_type": "freeze", "freeze": {"extra_modules": ["lm_head"]}},
        "lora": {"lora": lora}, "pissa": {"lora": {**lora, "pissa_init": True}},
    }  # fmt: skip
    for name, kind in kinds.items():
        done = Done(config(f"g-{name}", method={"stage": "grpo", "grpo": rewards, **kind}, arguments={"learning_rate": 0.005}), save=True)
        facts[name] = [entry["kl"] for entry in done.loop.state.log_history if "kl" in entry]
        facts[f"{name}_saved"] = (done.session.folder / "ref").exists() or any(".ref." in key for key in _saved_names(done))
    still = {"learning_rate": 0.0, "max_steps": 1}
    ids = torch.arange(5, 30)[None]
    logits = []
    for beta in (0.0, 0.1):
        method = {"stage": "grpo", "grpo": {**rewards, "beta": beta}, **kinds["pissa"]}
        model = Done(config(f"g-still{beta}", method=method, arguments=still)).model.eval()
        with torch.no_grad():
            logits.append(model(input_ids=ids).logits)
    return {**facts, "apart": float((logits[0] - logits[1]).abs().max())}


@check
def precisions() -> dict[str, Any]:
    """(dtype of frozen weights, of trained weights, of norms), with full, LoRA and the upcasts."""
    facts: dict[str, Any] = {}
    for name, parts_of in {
        "fp32": {}, "bf16": {"arguments": {"bf16": True}},
        "bf16_full": {"arguments": {"bf16": True}, "method": {"finetuning_type": "full"}},
        "pure": {"method": {"pure_bf16": True}}, "pure_full": {"method": {"pure_bf16": True, "finetuning_type": "full"}},
        "norms": {"arguments": {"bf16": True}, "model": {"upcast_layernorm": True}},
        "head": {"method": {"pure_bf16": True}, "model": {"upcast_lmhead_output": True}},
    }.items():  # fmt: skip
        done = Done(config(f"p-{name}", **parts_of))
        named = dict(done.model.named_parameters())
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16) if "bf16" in str(parts_of) else contextlib.nullcontext():
            logits = str(done.model(input_ids=torch.arange(5)[None]).logits.dtype)
        facts[name] = {
            **done.learned(), "frozen": sorted({str(p.dtype) for n, p in named.items() if not p.requires_grad and "norm" not in n}),
            "trained": sorted({str(p.dtype) for p in named.values() if p.requires_grad}),
            "norm": sorted({str(p.dtype) for n, p in named.items() if "norm" in n and "lora" not in n}), "logits": logits,
        }  # fmt: skip
    facts["fp16"] = _refused("p-fp16", arguments={"fp16": True})
    facts["pure_norms"] = _refused("p-pn", method={"pure_bf16": True}, model={"upcast_layernorm": True})
    return facts


def main() -> None:
    torch.set_num_threads(1)
    os.environ["TQDM_DISABLE"] = "1"
    out = os.dup(1)
    os.dup2(2, 1)  # libraries print; the result alone goes to stdout
    lean.reveal("bitsandbytes")
    facts: dict[str, Any] = {}
    import time

    for name in sys.argv[2:] or CHECKS:
        start = time.monotonic()
        try:
            facts[name] = CHECKS[name]()
        except Exception as error:  # noqa: BLE001 - the test shows it
            facts[name] = {"error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()}
        facts[name]["seconds"] = round(time.monotonic() - start, 2)
    with os.fdopen(out, "w") as file:
        json.dump(facts, file, indent=1)


if __name__ == "__main__":
    main()
