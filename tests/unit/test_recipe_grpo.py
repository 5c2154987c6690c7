"""Stage grpo in recipes: keys, what does not fit together, and where a user's code may run."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from fl.errors import RecipeError
from fl.recipe_grpo import REWARDS, fields, rule
from fl_trainers.rewards import BUILT_IN

Fl = Callable[..., "subprocess.CompletedProcess[str]"]
BASE = {
    "stage": "grpo", "reward_funcs": ("exact",), "num_generations": 8, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1,
}  # fmt: skip


@pytest.mark.parametrize(
    ("more", "key"),
    [
        ({"reward_funcs": ()}, "reward_funcs"),
        ({"reward_funcs": ("exactt",)}, "reward_funcs"),
        ({"reward_funcs": ("rewards.py",)}, "reward_funcs"),
        ({"reward_weights": (1.0, 2.0)}, "reward_weights"),
        ({"num_generations": 3}, "num_generations"),
        ({"packing": True}, "packing"),
        ({"compute_accuracy": True}, "compute_accuracy"),
        ({"rollout_backend": "vllm", "model_name_or_path": "builtin/tiny-llama"}, "rollout_backend"),
        ({"rollout_backend": "vllm", "quantization_bit": 4}, "rollout_backend"),
        ({"rollout_backend": "vllm", "rollout_memory": 1.0}, "rollout_memory"),
    ],
)
def test_what_does_not_fit_together_is_blamed_on_its_key(more: dict[str, object], key: str) -> None:
    assert [blamed for blamed, _ in rule({**BASE, **more}.get)] == [key]


def test_rewards_are_those_of_the_trainer() -> None:
    assert tuple(BUILT_IN) == REWARDS


def test_a_reward_that_is_misspelled_is_refused_before_the_start(fl: Fl, tmp_path: Path) -> None:
    for recipe in ("tiny-grpo", "tiny-ppo"):
        done = fl("run", "--dry-run", recipe, "reward_funcs=exactt")
        assert done.returncode == 5 and "reward_funcs: there is no reward 'exactt'; did you mean `exact`?" in done.stderr, done.stderr
    gone = fl("run", "--dry-run", "tiny-grpo", "reward_funcs=gone.py:f", cwd=tmp_path)
    assert gone.returncode == 5 and f"the file {tmp_path}/gone.py is not there" in gone.stderr


def test_what_fits_is_not_blamed() -> None:
    assert list(rule(BASE.get)) == []
    assert list(rule({**BASE, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}.get)) == []
    assert list(rule({"stage": "sft", "packing": True}.get)) == []


def test_reward_files_are_found_from_where_fl_starts(tmp_path: Path) -> None:
    get = {
        "reward_funcs": ("exact", "r.py:f"), "num_generations": 8, "max_completion_length": 9, "rollout_temperature": 1.0, "grpo_beta": 0.0,
        "rollout_backend": "transformers", "rollout_memory": 0.3,
        "epsilon": 0.2, "num_iterations": 1, "grpo_loss": "dapo", "scale_rewards": "group", "mask_truncated_completions": False,
    }.get  # fmt: skip
    assert fields(get, tmp_path).reward_funcs == ("exact", f"{tmp_path.resolve()}/r.py:f")


def test_a_reward_file_runs_on_the_host_only_when_trusted() -> None:
    from fl.decide import check_trust
    from fl_trainers.config import Config

    config = Config.model_validate({
        "schema": 1, "run": {"name": "r", "lane": "cpu", "stack": "s", "events": "e"},
        "model": {"name": "m", "path": "m", "kind": "folder"},
        "data": {}, "method": {"stage": "grpo", "grpo": {"reward_funcs": ["/data/r.py:f"]}}, "training": {"output_dir": "o"},
    })  # fmt: skip
    with pytest.raises(RecipeError, match=r"r\.py is code"):
        check_trust(config, "host", trust=False)
    check_trust(config, "host", trust=True)
    check_trust(config, "docker", trust=False)
