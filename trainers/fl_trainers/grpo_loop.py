"""TRL's GRPO trainer as a loop of ours: tokens counted, every loss looked at, our stop."""

from __future__ import annotations

import contextlib
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fl_trainers import lean, optimizers, others, resuming, sharding
from fl_trainers.config import Config
from fl_trainers.device import Device
from fl_trainers.errors import InputError, TrainingError
from fl_trainers.fast.choice import Fast
from fl_trainers.loop import bad_loss

lean.reveal("datasets", "pandas")  # TRL imports them
from trl import GRPOConfig, GRPOTrainer  # noqa: E402


def arguments_of(config: Config, given: dict[str, Any]) -> GRPOConfig:
    """TrainingArguments with what GRPO needs besides. given: what loop.arguments_of made of the recipe."""
    grpo, data = config.method.grpo, config.data
    thinking = {} if data.enable_thinking is None else {"enable_thinking": data.enable_thinking}
    rollout: dict[str, Any] = {}
    if grpo.backend == "vllm":  # in this process, on the same devices: the weights are handed over after each step
        rollout = {
            "use_vllm": True, "vllm_mode": "colocate", "vllm_gpu_memory_utilization": grpo.memory,
            "vllm_max_model_length": data.cutoff_len + grpo.max_completion_length,
        }  # fmt: skip
    try:
        return GRPOConfig(
            **given, **rollout, num_generations=grpo.num_generations, max_completion_length=grpo.max_completion_length, beta=grpo.beta,
            epsilon=grpo.epsilon, epsilon_high=grpo.epsilon_high, loss_type=grpo.loss_type, scale_rewards=grpo.scale_rewards,
            num_iterations=grpo.num_iterations, temperature=grpo.temperature, reward_weights=list(grpo.reward_weights) or None,
            mask_truncated_completions=grpo.mask_truncated_completions, chat_template_kwargs=thinking, shuffle_dataset=data.shuffle,
        )  # fmt: skip
    except ValueError as error:
        raise InputError(f"grpo: {str(error).strip().splitlines()[0]}") from error


class GrpoLoop(optimizers.Chosen, resuming.Resumes, GRPOTrainer):  # type: ignore[misc]
    """GRPOTrainer with the attributes that session.py and Follow use."""

    fast = Fast()
    _flops_a_token = 0

    def __init__(self, *, config: Config, device: Device, **kwargs: Any) -> None:
        self.config_of_run, self.device_of_run = config, device
        sharding.take_fsdp(config)
        model, arguments = kwargs["model"], kwargs["args"]
        beta, adapter = arguments.beta, hasattr(model, "peft_config")
        if beta and not adapter and sharding.zero_stage(config) != 3:
            arguments.beta = 0.0  # TRL would read a second model by the first one's name, whatever was made of that since
        with _as_they_are(model) if adapter else contextlib.nullcontext():
            super().__init__(**kwargs)
        if arguments.beta != beta:
            arguments.beta = self.beta = beta
            reference = others.reference(config, model, kwargs["processing_class"], device).model
            spread = sharding.spreads_weights(config) is not None
            self.ref_model = reference if spread else self.accelerator.prepare_model(reference, evaluation_mode=True)

    @property
    def tokens_seen(self) -> int:
        """Prompts and completions, of this process."""
        return int(self.state.num_input_tokens_seen)

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        try:
            loss = super().training_step(*args, **kwargs)
        except RuntimeError as error:  # torch draws the next token from what the weights say
            if "probability tensor contains" not in str(error):
                raise
            raise TrainingError(*bad_loss(math.nan, self.state.global_step + 1, "chances of the next token are")) from error
        if not math.isfinite(loss.item()):
            raise TrainingError(*bad_loss(loss.item(), self.state.global_step + 1))
        return loss

    def _generate(self, *args: Any, **kwargs: Any) -> Any:
        """In the run's number format: TRL asks the model inside, past what casts for it, where float32 norms meet bf16 matrices."""
        with self.accelerator.autocast():
            return super()._generate(*args, **kwargs)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Where several data sets are evaluated, TRL's figures get the name of theirs, as the loss has."""
        name = next((key[len("eval_") : -len("_loss")] for key in logs if key.startswith("eval_") and key.endswith("_loss")), "")
        if name:
            found = dict(self._metrics["eval"])
            self._metrics["eval"].clear()
            self._metrics["eval"].update({f"{name}_{key}": values for key, values in found.items()})
        super().log(logs, *args, **kwargs)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Without the reference: it is made again of what the run starts from."""
        super()._save(output_dir, state_dict)
        if self.args.should_save and "ref" in getattr(self.accelerator.unwrap_model(self.model), "peft_config", ()):
            shutil.rmtree(Path(output_dir or self.args.output_dir) / "ref", ignore_errors=True)

    def check(self) -> None:
        """Every loss was looked at."""


@contextlib.contextmanager
def _as_they_are(model: Any) -> Iterator[None]:
    """TRL copies the adapter for the reference: the copy must not take components out of the weights once more (PiSSA)."""
    settings = model.peft_config["default"]
    start = getattr(settings, "init_lora_weights", None)
    if start is not None:
        settings.init_lora_weights = True
    try:
        yield
    finally:
        if start is not None:
            settings.init_lora_weights = start
