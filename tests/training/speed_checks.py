"""Checks of the fast steps, called by trainer_server.py in the training environment: as `speed_checks.NAME`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

from trainer_checks import _tiny_rows


def _placed(batch: dict[str, Any], device: str, torch: Any) -> dict[str, Any]:
    return {name: value.to(device) if torch.is_tensor(value) else value for name, value in batch.items()}


def _gradients(model: Any) -> dict[str, Any]:
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def _wanted(step: Any, batch: dict[str, Any]) -> tuple[float, dict[str, Any], dict[str, Any]]:
    """Loss and gradients of the batch, and the gradients of it twice; none are left."""
    loss, once = float(step.run(batch, 9)), _gradients(step.whole)
    step.run(batch, 9)
    twice = _gradients(step.whole)
    step.whole.zero_grad()
    return loss, once, twice


def _apart(found: dict[str, Any], wanted: dict[str, Any]) -> float:
    """The largest difference, of the largest gradient."""
    assert found.keys() == wanted.keys(), (sorted(found), sorted(wanted))
    largest = max(float(gradient.abs().max()) for gradient in wanted.values())
    return max(float((found[name] - wanted[name]).abs().max()) for name in wanted) / largest


def kept_copies(tied: bool, device: str = "cpu") -> dict[str, float]:
    """Gradients by weights whose 16-bit copies are kept, of one batch, two added, and one written over, against autocast's; then a step."""
    from fl_trainers.fast import masters
    from fl_trainers.fast.flat import Flat
    from fl_trainers.fast.step import Step

    made, rows, torch = _tiny_rows("qwen2", device)  # which has biases
    if tied:
        made.get_output_embeddings().weight = made.get_input_embeddings().weight
    batch, dtype = _placed(Flat()(rows), device, torch), torch.bfloat16
    plain = Step(made, dtype)
    wanted_loss, once, twice = _wanted(plain, batch)
    held = masters.Masters()
    found: dict[str, float] = {}
    with masters.fused(made, held) as layers:
        step = Step(made, dtype, masters=held)
        held.take([*held.asked, step.head.weight], dtype)
        found["layers"] = layers
        found["loss"] = abs(float(step.run(batch, 9)) - wanted_loss)
        found["once"] = _apart(_gradients(made), once)
        step.run(batch, 9)
        found["twice"] = _apart(_gradients(made), twice)
        held.fresh = True
        for weight in made.parameters():
            if weight not in held.copies:
                weight.grad = None
        step.run(batch, 9)
        found["over"] = _apart(_gradients(made), once)
        optimizer = torch.optim.SGD(made.parameters(), lr=1.0)
        optimizer.register_step_post_hook(held.refresh)
        optimizer.step()
        moved = float(step.run(batch, 9))
    found["step"] = abs(moved - float(plain.run(batch, 9)))
    found["moved"] = abs(moved - wanted_loss)
    return found


def lora_together(copies: bool, device: str = "cpu") -> dict[str, Any]:
    """LoRA on all linear layers in float32, one batch and two added, against peft's own; layers asked in another order.

    copies: adapters multiplied as their bf16 copies, against those that autocast makes; also written over.
    """
    from peft import LoraConfig, get_peft_model

    from fl_trainers.fast import lora, masters
    from fl_trainers.fast.flat import Flat
    from fl_trainers.fast.step import Step

    made, rows, torch = _tiny_rows("qwen2", device)  # which has biases
    patterns = {"rank_pattern": {"v_proj": 2}, "alpha_pattern": {"v_proj": 4}}
    wrapped = get_peft_model(made, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", **patterns))
    for name, weight in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    batch, dtype = _placed(Flat()(rows), device, torch), torch.bfloat16 if copies else None
    plain = Step(wrapped, dtype)
    with lora.fused(wrapped) if copies else contextlib.nullcontext():
        wanted_loss, once, twice = _wanted(plain, batch)
    held = masters.Masters()
    found: dict[str, Any] = {}
    attention = next(module for module in made.modules() if hasattr(module, "q_proj"))
    x = torch.randn((1, 5, attention.q_proj.in_features), device=device)
    alone = [layer(x).detach() for layer in (attention.k_proj, attention.q_proj, attention.v_proj)]
    with lora.fused(wrapped, held) as layers:
        found["layers"], found["groups"] = layers, sorted(len(weights) for weights in held.together)
        asked = [layer(x).detach() for layer in (attention.k_proj, attention.q_proj, attention.v_proj, attention.k_proj)]
        found["alone"] = max(float((one - two).abs().max()) for one, two in zip((*alone, alone[0]), asked, strict=True))
        step = Step(wrapped, dtype, masters=held)
        if copies:
            held.take(held.asked, dtype)
        found["loss"] = abs(float(step.run(batch, 9)) - wanted_loss)
        found["once"] = _apart(_gradients(wrapped), once)
        step.run(batch, 9)
        found["twice"] = _apart(_gradients(wrapped), twice)
        first = next(weights for weights in held.together if len(weights) == 3)
        found["joint"] = len({weight.grad.untyped_storage().data_ptr() for weight in first})
        if copies:
            held.fresh = True
            step.run(batch, 9)
            found["over"] = _apart(_gradients(wrapped), once)
            held.fresh = False
            first[1].grad = first[1].grad.clone()  # as if something else had made it
            step.run(batch, 9)
            found["parted"] = _apart(_gradients(wrapped), twice)
            with torch.no_grad():
                for weight in held.copies:
                    weight += 0.01
            held.refresh()
            moved = float(step.run(batch, 9))
    if copies:
        found["moved"] = abs(moved - wanted_loss)
        with lora.fused(wrapped):
            found["refreshed"] = abs(moved - float(plain.run(batch, 9)))
    return found


def branched(capturing: bool) -> dict[str, Any]:
    """What is launched on a branch of a graph, as it is told to streams of CUDA that only write down what they are told."""
    import torch

    from fl_trainers.fast import beside

    told: list[str] = []
    marks = iter(range(100))

    class Stream:
        def __init__(self, name: str) -> None:
            self.name = name

        def wait_stream(self, other: Stream) -> None:
            told.append(f"{self.name} waits for {other.name}")

        def wait_event(self, event: str) -> None:
            told.append(f"{self.name} waits for {event}")

        def record_event(self) -> str:
            told.append(f"{self.name} marks {(mark := next(marks))}")
            return f"mark {mark}"

    now, side = [Stream("main")], Stream("side")

    @contextlib.contextmanager
    def on(stream: Stream) -> Iterator[None]:
        now.append(stream)
        yield
        now.pop()

    with (
        mock.patch.object(torch.cuda, "is_current_stream_capturing", lambda: capturing), mock.patch.object(torch.cuda, "stream", on),
        mock.patch.object(torch.cuda, "current_stream", lambda: now[-1]), mock.patch.object(beside, "_stream", lambda: side),
    ):  # fmt: skip
        place = beside.Beside()
        place.on = True
        for number in range(beside.BEHIND + 2):
            with place.branch(number):
                told.append(f"{now[-1].name} computes {number}")
                mark = place.mark()
            place.wait(mark)
        kept = [held for _, held in beside.Beside._held]
        place.join()
        place.on = False
        with place.branch("nothing"):
            told.append(f"{now[-1].name} computes at once")
    return {"told": told, "kept": kept, "left": len(beside.Beside._held)}


class _Graph:
    """In place of torch.cuda.CUDAGraph: what is captured is computed at once, and a replay does nothing."""

    def replay(self) -> None: ...

    def pool(self) -> None: ...


def captured(fresh: bool) -> dict[str, Any]:
    """Loss and gradients of a batch by Graphs, whose calls of CUDA are replaced, against the same batch launched singly."""
    from fl_trainers.fast.flat import Flat
    from fl_trainers.fast.graphs import Graphs
    from fl_trainers.fast.step import Step

    made, rows, torch = _tiny_rows()
    batch = Flat()(rows)
    step = Step(made, None)
    wanted_loss = float(step.run(batch, 9))
    wanted = _gradients(made)
    made.zero_grad()
    before, seen = made.config._attn_implementation, []

    @contextlib.contextmanager
    def capture(*_: Any, **__: Any) -> Iterator[None]:
        seen.append(made.config._attn_implementation)
        yield

    step.masters.fresh = fresh
    graphs = Graphs(step, 3, 1000)
    with (
        mock.patch.object(torch.cuda, "CUDAGraph", _Graph), mock.patch.object(torch.cuda, "graph", capture),
        mock.patch.object(Graphs, "_rehearse"), mock.patch.object(torch, "_foreach_copy_"),
    ):  # fmt: skip
        graphs.run(batch, 9)  # the first batch of all is launched singly
        graphs.zero()
        loss = float(graphs.run(batch, 9))
    assert list(graphs.held) == [128], graphs.held
    return {
        "loss": abs(loss - wanted_loss), "gradient": _apart(_gradients(made), wanted),
        "attention": [*seen, made.config._attn_implementation == before],
    }  # fmt: skip


def one_pass_adamw() -> dict[str, float]:
    """Weights, moments and copies after five steps by the kernel, against torch's AdamW with clipping; needs a card."""
    import torch

    from fl_trainers.fast.adam import AdamW
    from fl_trainers.fast.masters import Masters

    torch.manual_seed(0)
    shapes = [(7,), (300, 41), (4096,), (128, 513), (5000, 9)]
    first = [torch.nn.Parameter(torch.randn(shape, device="cuda")) for shape in shapes]
    second = [torch.nn.Parameter(weight.detach().clone()) for weight in first]
    held = Masters()
    held.take(second[1:4], torch.bfloat16)
    usual = torch.optim.AdamW([{"params": first[:3], "weight_decay": 0.1}, {"params": first[3:], "weight_decay": 0.0}], lr=0.01)
    ours = AdamW([{"params": second[:3], "weight_decay": 0.1}, {"params": second[3:], "weight_decay": 0.0}], held, lr=0.01)
    for step in range(5):
        for one, two in zip(first, second, strict=True):
            one.grad = torch.randn_like(one)
            two.grad = one.grad.clone()
        norm = torch.nn.utils.clip_grad_norm_(first, 1.0) if step % 2 else None
        ours.clip = None if norm is None else (1.0 / (norm + 1e-6)).clamp(max=1.0)
        usual.step()
        ours.step()
        if step == 2:
            ours.load_state_dict(ours.state_dict())
    pairs = list(zip([one.detach() for one in first], [two.detach() for two in second], strict=True))
    names = ("exp_avg", "exp_avg_sq")
    state = [(usual.state[one][name], ours.state[two][name]) for one, two in zip(first, second, strict=True) for name in names]
    return {
        "weight": max(float((one - two).abs().max()) for one, two in pairs),
        "moments": max(float((one - two).abs().max()) for one, two in state),
        "copy": max(float((weight.to(torch.bfloat16) - copy).abs().max()) for weight, copy in held.copies.items()),
    }


def ascend() -> dict[str, Any]:
    """Attention by CANN's kernel, in whose place stands torch's own, one document after another; against this trainer's."""
    import sys
    from itertools import pairwise
    from types import ModuleType

    import torch
    from transformers.utils import import_utils

    from fl_trainers.fast import attention

    given: dict[str, Any] = {}

    def npu_fusion_attention(q: Any, k: Any, v: Any, heads: int, **more: Any) -> Any:
        given.update(more, heads=heads)
        ends = [0, *more["actual_seq_qlen"]]
        parts = [
            torch.nn.functional.scaled_dot_product_attention(
                *(part[start:end].transpose(0, 1) for part in (q, k, v)), is_causal=True, scale=more["scale"], enable_gqa=True
            ).transpose(0, 1) for start, end in pairwise(ends)
        ]  # fmt: skip
        return torch.cat(parts), None

    stand_in = ModuleType("torch_npu")
    stand_in.npu_fusion_attention = npu_fusion_attention  # type: ignore[attr-defined]
    torch.manual_seed(0)
    query, key, value = (torch.randn((1, heads, 12, 8)) for heads in (4, 2, 2))
    borders = torch.tensor([0, 5, 12], dtype=torch.int32)
    name = "transformers.integrations.npu_flash_attention"
    sys.modules.pop(name, None)
    with mock.patch.dict(sys.modules, {"torch_npu": stand_in}), mock.patch.object(import_utils, "is_torch_npu_available", lambda: True):
        made = attention._ascend(query, key, value, borders, 0.3)
    sys.modules.pop(name, None)
    wanted = attention._each(query, key, value, borders, 0.3, None)
    return {
        "apart": float((made - wanted).abs().max()), "shape": list(made.shape), "layout": given["input_layout"],
        "ends": [list(given["actual_seq_qlen"]), list(given["actual_seq_kvlen"])], "sparse": given["sparse_mode"], "heads": given["heads"],
    }  # fmt: skip


def lengths(batches: list[int]) -> list[int]:
    """The lengths that batches of so many tokens take, each captured where there is no graph of it."""
    from fl_trainers.fast.graphs import Lengths

    choice, found = Lengths(), []
    for tokens in batches:
        found.append(choice.choose(tokens, set(found)))
    return found


def train(config: str, graphs: bool) -> list[float]:
    """Losses of a run whose trained weights have 16-bit copies, as on a card; graphs: by Graphs, each replay computed anew."""
    import json
    from dataclasses import replace
    from pathlib import Path

    import torch

    from fl_trainers.__main__ import main
    from fl_trainers.fast import choice, load
    from fl_trainers.fast import graphs as graphing

    def capture(self: Any, length: int, batch: dict[str, Any], count: Any) -> Any:
        with (
            mock.patch.object(torch.cuda, "CUDAGraph", _Graph), mock.patch.object(graphing.Graphs, "_rehearse"),
            mock.patch.object(torch.cuda, "graph", lambda *_, **__: contextlib.nullcontext()),
        ):  # fmt: skip
            made = kept(self, length, batch, count)

        def replay() -> None:
            with graphing.attention.switched(self.step.causal.config):
                value = self.step.loss(made.batch, made.targets, made.scale, None)
                value.backward()
            made.loss = value.detach()

        made.graph.replay = replay
        return made

    kept, chosen = graphing.Graphs._capture, choice.choose
    with (
        mock.patch.object(load, "keeps_copies", lambda loop: True), mock.patch.object(graphing.Graphs, "_capture", capture),
        mock.patch.object(choice, "choose", lambda *given: replace(chosen(*given), graphs=graphs)),
    ):  # fmt: skip
        assert main([config]) == 0
    events = [json.loads(line) for line in Path(json.loads(Path(config).read_text())["run"]["events"]).read_text().splitlines()]
    return [event["loss"] for event in events if event["event"] == "step" and "loss" in event]


def compiled_norm() -> dict[str, float]:
    """The norm's kernel against torch's, forward and back, of 16-bit and float32 rows; needs a card."""
    import torch

    from fl_trainers.fast.kernels import RMSNorm

    found: dict[str, float] = {}
    torch.manual_seed(0)
    for rows, columns, kind in ((2000, 2048, torch.float32), (70000, 128, torch.bfloat16), (3, 100, torch.float32)):
        x = torch.randn((rows, columns), device="cuda", dtype=kind, requires_grad=True)
        weight = torch.randn(columns, device="cuda", requires_grad=True)
        grad = torch.randn((rows, columns), device="cuda")
        usual = torch.nn.functional.rms_norm(x.float(), (columns,), weight, 1e-6)
        wanted = torch.autograd.grad(usual, (x, weight), grad)
        ours = RMSNorm.apply(x, weight, 1e-6, torch.float32)
        got = torch.autograd.grad(ours, (x, weight), grad)
        pairs = zip((ours, *got), (usual, *wanted), strict=True)
        apart = [float(((one - two).abs().max() / two.abs().max()).detach()) for one, two in pairs]
        found |= {f"{columns} {kind} {name}": value for name, value in zip(("y", "dx", "dweight"), apart, strict=True)}
    return found
