"""Checks that need torch: they run inside the training environment and give back plain values."""

from __future__ import annotations

from array import array
from pathlib import Path
from typing import Any

from fl_trainers import model
from fl_trainers.config import Config
from fl_trainers.data import pipeline
from fl_trainers.data.collator import Collator
from fl_trainers.data.formats import Report
from fl_trainers.progress import Events


def _open(path: str) -> tuple[Config, Any, pipeline.Prepared]:
    config = Config.read(Path(path))
    events, report = Events(Path(config.run.events)), Report()
    items = pipeline.items_of(config, report)
    tokenizer = model.load_tokenizer(config, model.folder_of(config), pipeline.texts(items[0]), events)
    return config, tokenizer, pipeline.prepare(config, tokenizer, *items, report, events)


def labelled(path: str) -> list[dict[str, Any]]:
    """Each training row as text, and the runs of tokens that count."""
    _, tokenizer, prepared = _open(path)
    rows = []
    for row in prepared.train:
        runs: list[list[int]] = []
        open_run = False
        for token, label in zip(row["input_ids"], row["labels"], strict=True):
            assert label in (-100, token, tokenizer.eos_token_id)
            if label >= 0:
                if not open_run:
                    runs.append([])
                runs[-1].append(label)
            open_run = label >= 0
        rows.append(
            {
                "text": tokenizer.decode(row["input_ids"]),
                "counted": [tokenizer.decode(run) for run in runs],
                "length": len(row["input_ids"]),
            }
        )
    return rows


def apart_and_alone(path: str) -> dict[str, float]:
    """The loss of packs whose parts are kept apart, of the same rows alone, and of packs whose parts see each other."""
    import torch

    from fl_trainers import tiny

    config, tokenizer, packed = _open(path)
    plain = config.model_copy(update={"data": config.data.model_copy(update={"neat_packing": False, "packing": False})})
    events, report = Events(Path(config.run.events)), Report()
    alone = pipeline.prepare(plain, tokenizer, *pipeline.items_of(plain, report), report, events)
    made = tiny.model(config.model.path, len(tokenizer), 7).eval()
    made.config.use_cache = False  # as in training; a cache would make one row of the parts
    with torch.no_grad():
        for parameter in made.parameters():  # larger weights: attention to strangers must show
            if parameter.ndim > 1:
                parameter.mul_(6.0)

    def loss(rows: Any, collator: Collator) -> float:
        total = torch.zeros(())
        counted = 0
        for row in rows:
            batch = collator([row])
            batch.pop("num_tokens")
            number = int((batch["labels"][:, 1:] >= 0).sum())
            with torch.no_grad():
                total += made(**batch).loss * number
            counted += number
        return float(total / counted)

    return {
        "apart": loss(packed.train, Collator(0, apart=True)),
        "alone": loss(alone.train, Collator(0)),
        "together": loss(packed.train, Collator(0)),
        "packs": len(packed.train),
        "rows": len(alone.train),
    }


def mean_over_foretold(path: str) -> float:
    """The cross-entropy of all rows by the model that the run begins with: a mean over the labels of tokens that another one foretells."""
    import torch

    from fl_trainers import tiny

    config, tokenizer, prepared = _open(path)
    made = tiny.model(config.model.path, len(tokenizer), 42)
    losses = []
    for row in prepared.train:
        ids, labels = torch.tensor(row["input_ids"].tolist()), torch.tensor(row["labels"].tolist())
        with torch.no_grad():
            losses.append(torch.nn.functional.cross_entropy(made(ids[None]).logits[0, :-1], labels[1:], reduction="none")[labels[1:] >= 0])
    return float(torch.cat(losses).mean())


def merged(folder: str, question: str) -> dict[str, Any]:
    """Loads an adapter as its users do, merges it, and answers with both."""
    import torch
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoPeftModelForCausalLM.from_pretrained(folder).eval()
    text = tokenizer.apply_chat_template([{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True)
    batch = tokenizer(text, add_special_tokens=False, return_tensors="pt")
    with torch.no_grad():
        before = model(**batch).logits
        whole = model.merge_and_unload()
        whole.save_pretrained(folder + "-merged")
        again = AutoModelForCausalLM.from_pretrained(folder + "-merged").eval()
        made = again.generate(**batch, max_new_tokens=20, do_sample=False)
    answer = tokenizer.decode(made[0][batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return {"difference": float((before - again(**batch).logits).abs().max()), "answer": answer}


def write_parquet(path: str, rows: list[dict[str, Any]]) -> None:
    from fl_trainers import lean

    lean.reveal("pandas", "datasets")
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def write_arrow(path: str, rows: list[dict[str, Any]]) -> None:
    from fl_trainers import lean

    lean.reveal("pandas", "datasets")
    import pyarrow

    table = pyarrow.Table.from_pylist(rows)
    with pyarrow.OSFile(path, "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)


def bare_model_folder(path: str, texts: list[str]) -> None:
    """A small base model as a user has one: weights, config and tokenizer, but no chat template."""
    from fl_trainers import tiny

    tokenizer = tiny.tokenizer(texts, "")
    tokenizer.chat_template = None
    tiny.model("builtin/tiny-llama", len(tokenizer), 3).save_pretrained(path)
    tokenizer.save_pretrained(path)


def expert_model_folder(path: str, texts: list[str]) -> None:
    """A small mixture of experts, with weights that give them uneven shares of the tokens."""
    import torch
    from transformers import MixtralConfig, MixtralForCausalLM

    from fl_trainers import tiny

    tokenizer = tiny.tokenizer(texts, "")
    settings = MixtralConfig(vocab_size=(len(tokenizer) + 7) // 8 * 8, hidden_size=32, intermediate_size=32, num_hidden_layers=2,
                             num_attention_heads=4, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=1)  # fmt: skip
    torch.manual_seed(0)
    MixtralForCausalLM(settings).save_pretrained(path)
    tokenizer.save_pretrained(path)


def expanded_model_folder(path: str, texts: list[str], added: int) -> None:
    """A small Llama with as many added layers as it had, as LLaMA-Pro's expansion writes it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from fl_trainers import expand, tiny

    tokenizer = tiny.tokenizer(texts, "")
    settings = LlamaConfig(vocab_size=(len(tokenizer) + 7) // 8 * 8, hidden_size=32, intermediate_size=64, num_hidden_layers=added,
                           num_attention_heads=4, num_key_value_heads=2)  # fmt: skip
    expand.grown(LlamaForCausalLM(settings), added).save_pretrained(path)
    tokenizer.save_pretrained(path)


PACKED: dict[str, dict[str, Any]] = {
    "llama": {}, "qwen3": {}, "phi3": {}, "mistral": {"sliding_window": 4}, "gemma3_text": {"sliding_window": 4},
    "qwen2_moe": {"num_experts": 4, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16},
    "opt": {"ffn_dim": 32, "word_embed_proj_dim": 32},
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_ff_dim": 32},
    "qwen3_5_text": {"layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2, "linear_num_value_heads": 2,
                     "linear_key_head_dim": 8, "linear_value_head_dim": 8},
}  # fmt: skip


def packed_gradients() -> dict[str, Any]:
    """By model type and attention: the gradient that the second of three rows of a pack sends to its own tokens and to the others', and
    what `borders` says of the model."""
    from array import array

    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from fl_trainers import borders
    from fl_trainers.errors import InputError

    ids = array("i", range(3, 33))
    batch = Collator(0, 1, apart=True)([{"input_ids": ids, "labels": ids, "parts": [12, 10, 8]}])
    found: dict[str, Any] = {}
    for kind, more in PACKED.items():
        size = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
                "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1,
                "eos_token_id": 2}  # fmt: skip
        for attention in ("eager", "sdpa"):
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **size | more), attn_implementation=attention)
            seen: list[Any] = []
            hook = model.get_input_embeddings().register_forward_hook(lambda _m, _i, out, seen=seen: seen.append(out) or out.retain_grad())
            logits = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
            logits[0, 12:22].logsumexp(-1).sum().backward()
            hook.remove()
            reach = seen[0].grad[0].abs().sum(-1)
            try:
                borders.must_hold(model)
                said = ""
            except InputError as error:
                said = error.message
            found[f"{kind} {attention}"] = [float(reach[12:22].min()), float(reach[:12].max()), float(reach[22:].max()), said]
    return found


FLAT: dict[str, dict[str, Any]] = {
    "qwen3": {"tie_word_embeddings": True}, "llama": {}, "mistral": {"sliding_window": 4}, "smollm3": {}, "gemma": {}, "arcee": {},
    "glm": {},
    "qwen2": {"use_sliding_window": True, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
    "gemma3_text": {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"], "query_pre_attn_scalar": 8},
    "phi3": {"sliding_window": 4}, "olmo": {}, "olmo2": {}, "glm4": {}, "starcoder2": {"sliding_window": 4},
    "olmo3": {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}, "ernie4_5": {}, "hunyuan_v1_dense": {},
    "exaone4": {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}, "apertus": {}, "helium": {},
    "granite": {"logits_scaling": 4.0, "embedding_multiplier": 3.0, "attention_multiplier": 0.5, "residual_multiplier": 0.5},
    "cohere": {"logit_scale": 0.25},
    "cohere2": {"logit_scale": 0.25, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}, "mixtral": {"num_local_experts": 4},
    "qwen2_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
}  # fmt: skip
"""The model types of choice.TYPES, with windows that are shorter than the longest row."""


def _tiny_rows(kind: str = "qwen3", device: str = "cpu", more: dict[str, Any] | None = None) -> tuple[Any, list[dict[str, Any]], Any]:
    """A small model in float32, three rows of different lengths, and torch. more: settings of the model."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    size = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
            "tie_word_embeddings": False}  # fmt: skip
    settings = AutoConfig.for_model(kind, **size | FLAT[kind] | (more or {}))
    rows = []
    for length in (5, 9, 3):
        ids = torch.randint(0, 300, (length,)).tolist()
        rows.append({"input_ids": array("i", ids), "labels": array("i", [-100, -100, *ids[2:]])})
    return AutoModelForCausalLM.from_config(settings).to(device), rows, torch


def flat_and_padded(kind: str = "qwen3", device: str = "cpu", more: dict[str, Any] | None = None) -> dict[str, float]:
    """Loss and largest gradient difference of a padding-free batch against the padded one, and of what one document sees of another."""
    from fl_trainers.fast.flat import Flat
    from fl_trainers.fast.step import Step

    made, rows, torch = _tiny_rows(kind, device, more)

    def placed(batch: dict[str, Any]) -> dict[str, Any]:
        return {name: value.to(device) if torch.is_tensor(value) else value for name, value in batch.items()}

    batch = placed(Collator(0)(rows))
    batch.pop("num_tokens")
    count = (batch["labels"][:, 1:] != -100).sum()
    dtype = None if device == "cpu" else torch.bfloat16
    with torch.autocast(device, dtype or torch.bfloat16, enabled=dtype is not None):
        padded = made(**batch, num_items_in_batch=count).loss
    padded.backward()
    gradients = {name: weight.grad.clone() for name, weight in made.named_parameters() if weight.grad is not None}
    made.zero_grad()
    step = Step(made, dtype)
    assert step.fits()
    loss = step.run(placed(Flat()(rows)), count)
    largest = max(float(gradient.abs().max()) for gradient in gradients.values())
    differences = [float((gradients[name] - weight.grad).abs().max()) for name, weight in made.named_parameters() if name in gradients]
    seen: dict[str, Any] = {}
    handle = made.get_input_embeddings().register_forward_hook(lambda module, given, out: seen.update(out=out) or out.retain_grad())
    blind = [{**row, "labels": array("i", [-100] * len(row["labels"]))} for row in rows]
    step.run(placed(Flat()([blind[0], rows[1], *blind[2:]])), 1)  # only the second document counts
    handle.remove()
    others = torch.cat([seen["out"].grad[0, :5], seen["out"].grad[0, 14:]])
    return {
        "loss": abs(float(loss) - float(padded.detach())), "gradient": max(differences) / largest, "strangers": float(others.abs().max()),
        "own": float(seen["out"].grad[0, 5:14].abs().max()),
    }  # fmt: skip


def flat_kinds(device: str = "cpu") -> dict[str, dict[str, float]]:
    """flat_and_padded of each model type that is taken without padding."""
    return {kind: flat_and_padded(kind, device) for kind in FLAT}


def flat_experts() -> dict[str, dict[str, float]]:
    """flat_and_padded of the types with experts, whose uneven use adds to the loss; `added`: by how much."""
    found = {}
    for kind in ("qwen3_moe", "qwen2_moe", "mixtral", "olmoe"):
        with_it, without = ({"output_router_logits": told, "router_aux_loss_coef": 2.0} for told in (True, False))
        found[kind] = flat_and_padded(kind, more=with_it)
        found[kind]["added"] = _padded_loss(kind, with_it) - _padded_loss(kind, without)
    return found


def _padded_loss(kind: str, more: dict[str, Any]) -> float:
    made, rows, _ = _tiny_rows(kind, more=more)
    batch = Collator(0)(rows)
    batch.pop("num_tokens")
    return float(made(**batch).loss.detach())


def head_losses() -> list[dict[str, float]]:
    """The chunked head against torch's cross-entropy, in small chunks, with ignored rows, and with nothing but them."""
    import torch

    from fl_trainers.fast import head

    head.CHUNK["cpu"] = 64 * 50  # 64 rows at a time
    torch.manual_seed(0)
    found = []
    for ignored in (0, 40, 200):
        hidden, weight = torch.randn(200, 16, requires_grad=True), torch.randn(50, 16, requires_grad=True)
        targets = torch.randint(0, 50, (200,))
        targets[:ignored] = -100
        count = max(200 - ignored, 1)
        wanted = torch.nn.functional.cross_entropy(hidden @ weight.T, targets, reduction="sum") / count
        wanted.backward()
        before = (hidden.grad.clone(), weight.grad.clone())
        hidden.grad = weight.grad = None
        loss = head.loss(hidden, weight, targets, torch.tensor(1 / count))
        loss.backward()
        found.append({
            "loss": abs(float(loss) - float(wanted)), "hidden": float((hidden.grad - before[0]).abs().max()),
            "weight": float((weight.grad - before[1]).abs().max()),
        })  # fmt: skip
    return found


def lora_layers() -> dict[str, Any]:
    """Fused LoRA layers against peft's own: loss, gradients; off with a switched-off adapter, with DoRA and with dropout."""
    from peft import LoraConfig, get_peft_model

    from fl_trainers.fast import lora
    from fl_trainers.fast.flat import Flat
    from fl_trainers.fast.step import Step

    found: dict[str, Any] = {}
    for kind, more in (("plain", {}), ("dora", {"use_dora": True}), ("dropout", {"lora_dropout": 0.1})):
        made, rows, torch = _tiny_rows()
        wrapped = get_peft_model(made, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj", "gate_proj"], **more))
        with lora.fused(wrapped) as count:
            found[kind] = count
    made, rows, torch = _tiny_rows()
    wrapped = get_peft_model(made, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj", "gate_proj"]))
    for name, weight in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    step = Step(wrapped, None)
    plain = step.run(Flat()(rows), 10)
    before = {name: weight.grad.clone() for name, weight in wrapped.named_parameters() if weight.grad is not None}
    wrapped.zero_grad()
    ids = torch.tensor([[5, 6, 7]])
    with lora.fused(wrapped):
        fused = step.run(Flat()(rows), 10)
        with wrapped.disable_adapter(), torch.no_grad():
            off = wrapped(input_ids=ids).logits
    with wrapped.disable_adapter(), torch.no_grad():
        bare = wrapped(input_ids=ids).logits
    found["loss"] = abs(float(plain) - float(fused))
    after = {name: weight.grad for name, weight in wrapped.named_parameters() if name in before}
    found["gradient"] = max(float((before[name] - grad).abs().max()) for name, grad in after.items())
    found["off"] = float((off - bare).abs().max())
    return found


def preference_losses() -> list[str]:
    """Names of losses that are not the formula worked out here, one number at a time."""
    from math import exp, log

    import torch

    from fl_trainers.config import Preference
    from fl_trainers.preference import kto_loss, log_probabilities, pair_loss

    settings = Preference(beta=0.5, label_smoothing=0.1, simpo_gamma=0.7, kto_chosen_weight=2.0)
    better, worse = -1.25, -2.5

    def log_sigmoid(value: float) -> float:
        return -log(1 + exp(-value))

    margin = better - worse
    odds = log(exp(better) / (1 - exp(better))) - log(exp(worse) / (1 - exp(worse)))
    wanted = {
        "sigmoid": -0.9 * log_sigmoid(0.5 * margin) - 0.1 * log_sigmoid(-0.5 * margin),
        "hinge": max(0.0, 1 - 0.5 * margin), "ipo": (margin - 1) ** 2,
        "simpo": -log_sigmoid(0.5 * margin - 0.7), "orpo": -better - 0.5 * log_sigmoid(odds),
    }  # fmt: skip
    pair = torch.tensor([better]), torch.tensor([worse])
    wrong = [kind for kind, value in wanted.items() if abs(pair_loss(kind, settings, *pair).item() - value) > 1e-5]
    found = kto_loss(settings, torch.tensor([0.6, 0.6]), torch.tensor([True, False]), torch.tensor(0.2)).tolist()
    away = 1 / (1 + exp(-0.2))
    if abs(found[0] - 2 * (1 - away)) > 1e-5 or abs(found[1] - away) > 1e-5:
        wrong.append("kto")
    labels = torch.tensor([[-100, 1, 1, 1], [-100, 2, -100, -100]])
    sums, counts = log_probabilities(torch.zeros(2, 4, 4), labels, 0.5)
    if counts.tolist() != [3, 1] or abs(sums[0].item() + 2 * log(4)) > 1e-5 or abs(sums[1].item() + log(4)) > 1e-5:
        wrong.append("ld_alpha")
    short = log_probabilities(torch.zeros(2, 4, 4)[:, -4:], labels)[0]
    return wrong if abs(short[0].item() + 3 * log(4)) < 1e-5 else [*wrong, "sum"]


def scores(folder: str, question: str, answers: list[str]) -> dict[str, Any]:
    """A reward model used as its README says, by peft, transformers and safetensors alone: what it gives for answers, and its files."""
    import torch
    from peft import AutoPeftModelForCausalLM
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    adapter = (Path(folder) / "adapter_config.json").is_file()
    model = (AutoPeftModelForCausalLM if adapter else AutoModelForCausalLM).from_pretrained(folder).eval()
    head = load_file(f"{folder}/value_head.safetensors")
    found = []
    for answer in answers:
        talk = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        text = tokenizer.apply_chat_template(talk, tokenize=False).rstrip()
        batch = tokenizer(text, add_special_tokens=False, return_tensors="pt", return_token_type_ids=False)
        with torch.no_grad():
            last = model(**batch, output_hidden_states=True).hidden_states[-1][0, -1]
            found.append(float(last @ head["v_head.summary.weight"][0] + head["v_head.summary.bias"][0]))
    others = load_file(f"{folder}/{'adapter_model' if adapter else 'model'}.safetensors")
    return {"scores": found, "names": {name: list(weight.shape) for name, weight in head.items()}, "others": list(others)}


def ppo_arithmetic() -> list[str]:
    """Names of results that are not the formula worked out here, one number at a time."""
    from math import exp, sqrt

    import torch

    from fl_trainers import ppo_math

    wrong = []
    mask = torch.tensor([[True, True, True], [True, True, False]])
    logps, before = torch.tensor([[-1.0, -2.0, -3.0], [-1.5, -0.5, -9.0]]), torch.tensor([[-1.5, -2.0, -2.0], [-1.0, -1.0, -1.0]])
    rewards, distance = ppo_math.token_rewards(torch.tensor([2.0, -1.0]), logps, before, mask, 0.2)
    if (distance.sum(-1) - torch.tensor([-0.5, 0.0])).abs().max() > 1e-6:
        wrong.append("distance")
    if (rewards - torch.tensor([[-0.1, 0.0, 2.2], [0.1, -1.1, 0.0]])).abs().max() > 1e-6:
        wrong.append("rewards")
    values = torch.tensor([[0.5, 1.0, 1.5], [0.2, -0.2, 7.0]])
    gains, returns = ppo_math.advantages(rewards, values, mask, whiten=False)
    third = 2.2 - 1.5
    second = 0.0 + 1.5 - 1.0 + 0.95 * third
    first = -0.1 + 1.0 - 0.5 + 0.95 * second
    far = -1.1 - -0.2
    near = 0.1 + -0.2 - 0.2 + 0.95 * far
    plain = [first, second, third, near, far]
    wanted = [gain + value for gain, value in zip(plain, [0.5, 1.0, 1.5, 0.2, -0.2], strict=True)]
    if max(abs(found - value) for found, value in zip(returns[mask].tolist(), wanted, strict=True)) > 1e-5:
        wrong.append("returns")
    middle = sum(plain) / 5
    deviation = sqrt(sum((gain - middle) ** 2 for gain in plain) / 4)
    if max(abs(found - (gain - middle) / deviation) for found, gain in zip(gains[mask].tolist(), plain, strict=True)) > 1e-5:
        wrong.append("advantages")
    old = {"mask": mask[:1, :2], "logps": logps[:1, :2], "values": values[:1, :2],
           "advantages": torch.tensor([[1.0, -2.0]]), "returns": torch.tensor([[1.5, 1.0]])}  # fmt: skip
    policy, value, whole = ppo_math.loss(old["logps"] + torch.tensor([[0.5, -0.1]]), torch.tensor([[1.0, 1.1]]), old)
    pressed = (-1.2 + max(2 * exp(-0.1), 2 * 0.8)) / 2  # the first ratio, e^0.5, is clipped
    valued = 0.5 * (max(0.25, (0.7 - 1.5) ** 2) + 0.01) / 2
    if abs(float(policy) - pressed) > 1e-5 or abs(float(value) - valued) > 1e-5 or abs(float(whole) - pressed - 0.1 * valued) > 1e-5:
        wrong.append("loss")
    if float(ppo_math.loss(old["logps"] + 9.0, old["values"], old)[2]) != 0.0:
        wrong.append("ratio")
    weight = ppo_math.Distance(6.0)
    weight.update(12.0, 100)
    if abs(weight.weight - 0.2 * (1 + 0.2 * 100 / 10000)) > 1e-9:
        wrong.append("weight")
    moments, scores = ppo_math.Moments(), torch.tensor([1.0, 2.0, 4.0, 8.0, 9.0])
    moments.normalized(scores[:2], scores[:2])
    normal = moments.normalized(scores[2:], scores[2:])
    if (normal - (scores[2:] - scores.mean()) / scores.std()).abs().max() > 1e-4:
        wrong.append("moments")
    return wrong


def ppo_places() -> dict[str, float]:
    """Log-probabilities and values in a batch padded on both sides against each row alone, from the whole logits."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from fl_trainers.ppo_loop import Actor, chosen

    torch.manual_seed(0)
    made = LlamaForCausalLM(LlamaConfig(vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4))
    actor = Actor(made, dropout=0.0).eval()
    questions, answers = [[5, 6, 7, 8], [9, 10]], [[11, 12], [13, 14, 15]]
    width, keep = 4, 4
    ids, mask = torch.zeros(2, 7, dtype=torch.long), torch.zeros(2, 7, dtype=torch.long)
    for row, (question, answer) in enumerate(zip(questions, answers, strict=True)):
        ids[row, width - len(question) : width + len(answer)] = torch.tensor([*question, *answer])
        mask[row, width - len(question) : width + len(answer)] = 1
    given = {"attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0), "logits_to_keep": keep}
    apart = {"logps": 0.0, "values": 0.0, "width": 0.0}
    with torch.no_grad():
        logits, values = actor(keep, input_ids=ids, **given)
        logps = chosen(logits, ids, keep)
        for row, (question, answer) in enumerate(zip(questions, answers, strict=True)):
            alone = made(input_ids=torch.tensor([[*question, *answer]]), output_hidden_states=True)
            for place, token in enumerate(answer):
                at = len(question) + place - 1
                wanted = alone.logits[0, at].log_softmax(-1)[token]
                value = actor.v_head(alone.hidden_states[-1][0, at])
                apart["logps"] = max(apart["logps"], abs(float(logps[row, place] - wanted)))
                apart["values"] = max(apart["values"], abs(float(values[row, place] - value)))
                apart["width"] += 1
    return apart


def classifier(base: str, folder: str) -> float:
    """Saves a sequence classifier of one label on a model; how far its scores are from those of its weights with the head that is read."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    from fl_trainers import value_head

    made = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1).eval()
    torch.nn.init.normal_(made.score.weight, std=0.5)
    made.save_pretrained(folder, max_shard_size="100KB")
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    scorer = value_head.Scorer(AutoModelForCausalLM.from_pretrained(folder)).eval()
    assert value_head.load(scorer.v_head, folder, "reward_model")
    ids = torch.tensor([[5, 6, 7, 8, 9], [9, 8, 7, made.config.pad_token_id, made.config.pad_token_id]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    with torch.no_grad():
        return float((made(input_ids=ids, attention_mask=mask).logits[:, 0] - scorer(ids, mask)).abs().max())


def grpo_arguments(backend: str) -> dict[str, Any]:
    """What TRL is asked for with each way of making completions; vLLM itself is not needed for that."""
    from fl_trainers import grpo_loop
    from fl_trainers.config import Data, Grpo, Method, Model, Run, Training

    config = Config(
        run=Run(name="x", lane="cpu", stack="x", events="/dev/null"), model=Model(name="m", path="m", kind="hub"),
        data=Data(cutoff_len=64), training=Training(output_dir="/nowhere"),
        method=Method(stage="grpo", grpo=Grpo(reward_funcs=("exact",), max_completion_length=16, backend=backend, memory=0.4)),
    )  # fmt: skip
    made = grpo_loop.arguments_of(config, {"output_dir": "/nowhere", "use_cpu": True, "report_to": "none"})
    names = ("use_vllm", "vllm_mode", "vllm_gpu_memory_utilization", "vllm_max_model_length")
    return {name: getattr(made, name) for name in names}


def _meet(rank: int, folder: str, ranks: int) -> None:
    import torch

    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=ranks)


def _step_of_two(rank: int, folder: str) -> dict[str, float]:
    """What one of two processes finds: the first has all labels, the second has none in its second batch and one in its first."""
    from torch.nn.parallel import DistributedDataParallel

    from fl_trainers.fast.flat import Flat
    from fl_trainers.fast.graphs import Graphs
    from fl_trainers.fast.step import Step

    made, rows, torch = _tiny_rows()
    batch = Collator(0)(rows)
    batch.pop("num_tokens")
    labels = {(0, 0): [0, 1], (0, 1): [1, 2], (1, 0): [2], (1, 1): []}
    """Of (process, batch): rows whose labels count. Each has rows that do not as well."""

    def given(place: tuple[int, int]) -> Any:
        chosen = [{"input_ids": row["input_ids"], "labels": row["labels"][:]} for row in rows]
        for number, row in enumerate(chosen):
            if number not in labels[place]:
                for at in range(len(row["labels"])):
                    row["labels"][at] = -100
        return chosen

    def counted(place: tuple[int, int]) -> int:
        return int((Collator(0)(given(place))["labels"][:, 1:] != -100).sum())

    count = sum(counted(place) for place in labels)
    for place in labels:
        if counted(place):
            padded = Collator(0)(given(place))
            padded.pop("num_tokens")
            made(**padded, num_items_in_batch=count).loss.backward()
    wanted = {name: weight.grad.clone() for name, weight in made.named_parameters()}
    made.zero_grad()
    _meet(rank, folder, 2)
    found = {}
    outer = DistributedDataParallel(made)
    step = Step(made, None, outer=outer, ranks=2)
    with outer.no_sync():
        step.run(Flat()(given((rank, 0))), count)
    empty = float(step.run(Flat()(given((rank, 1))), count))
    found["by DDP"] = max(float((wanted[name] - weight.grad).abs().max()) for name, weight in made.named_parameters())
    found["no labels"] = abs(empty) if rank else 0.0
    made.zero_grad()
    graphs = Graphs(Step(made, None, ranks=2), 3, 0)  # batches of 0 tokens only are captured: here all are launched singly
    for number in (0, 1):
        if rank == 0 or number == 0:  # the second process has no second batch at all
            graphs.run(Flat()(given((rank, number))), count)
    graphs.average()
    found["as for graphs"] = max(float((wanted[name] - weight.grad).abs().max()) for name, weight in made.named_parameters())
    torch.distributed.barrier()
    return found


def step_of_two(folder: str) -> list[dict[str, float]]:
    """Both processes' answers: a fork that is the second one writes its own to a file."""
    import json
    import os

    child = os.fork()
    if child == 0:
        Path(folder, "second.json").write_text(json.dumps(_step_of_two(1, folder)))
        os._exit(0)
    first = _step_of_two(0, folder)
    os.waitpid(child, 0)
    return [first, json.loads(Path(folder, "second.json").read_text())]


def flat_pairs() -> dict[str, float]:
    """By model type: how far log-probabilities of answers are from those that a padded batch gives, of models that scale their logits."""
    from fl_trainers import preference
    from fl_trainers.fast import pairs

    found = {}
    for kind in ("llama", "granite", "cohere"):
        made, rows, torch = _tiny_rows(kind)
        batch = Collator(0)(rows)
        batch.pop("num_tokens")
        with torch.no_grad():
            wanted, _ = preference.log_probabilities(made(**batch).logits, batch["labels"])
            got, _ = pairs.Pairs(made, None).log_probabilities(pairs.flat(batch))
        found[kind] = float((got - wanted).abs().max())
    return found
