"""The arithmetic of PPO, with the formulas and the constants of the TRL 0.9 that LLaMA-Factory's stage ppo is written for.

Tensors have one row an answer and one column a token; `mask` is true for the tokens of the answer.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

LAMBDA = 0.95
"""How far an advantage looks ahead."""
CLIP = 0.2
"""How far ratios, and values, may go from what they were when the answers were made."""
VALUE_WEIGHT = 0.1
LARGEST_RATIO = 10.0
"""A batch whose mean ratio is above it teaches nothing."""
FIRST_KL = 0.2
HORIZON = 10000


def mean(values: Any, mask: Any) -> Any:
    """Over the tokens that count; 0 where there are none."""
    return (values * mask).sum() / mask.sum().clamp(min=1)


def whitened(values: Any, mask: Any, *, shift: bool = True) -> Any:
    """Divided by the deviation, less the mean unless shift is false."""
    count = mask.sum()
    if count < 2:
        return values
    middle = mean(values, mask)
    variance = mean((values - middle) ** 2, mask) * count / (count - 1)
    made = (values - middle) * torch.rsqrt(variance + 1e-8)
    return made if shift else made + middle


def token_rewards(scores: Any, logps: Any, before: Any, mask: Any, weight: float) -> tuple[Any, Any]:
    """Rewards and distances of the tokens: each pays for its distance to the reference, the last one gets the score."""
    distance = (logps - before) * mask
    last = (mask.cumsum(-1) == mask.sum(-1, keepdim=True)) & mask
    return -weight * distance + last * scores[:, None], distance


def advantages(rewards: Any, values: Any, mask: Any, *, whiten: bool) -> tuple[Any, Any]:
    """Generalized advantages, whitened, and what the values should have been."""
    rewards, values = rewards * mask, values * mask
    if whiten:
        rewards = whitened(rewards, mask, shift=False) * mask
    found, ahead = [], torch.zeros_like(rewards[:, 0])
    width = rewards.shape[1]
    for place in reversed(range(width)):
        following = values[:, place + 1] if place + 1 < width else torch.zeros_like(ahead)
        ahead = rewards[:, place] + following - values[:, place] + LAMBDA * ahead
        found.append(ahead)
    made = torch.stack(found[::-1], 1)
    return whitened(made, mask).detach(), (made + values).detach()


def loss(logps: Any, values: Any, old: dict[str, Any]) -> tuple[Any, Any, Any]:
    """Policy's loss, value's loss, and the two together. old: logps, values, advantages, returns and mask of the same answers."""
    mask = old["mask"]
    near = old["values"] + (values - old["values"]).clamp(-CLIP, CLIP)
    value = 0.5 * mean(torch.max((values - old["returns"]) ** 2, (near - old["returns"]) ** 2), mask)
    ratio = torch.exp((logps - old["logps"]) * mask)
    policy = mean(torch.max(-old["advantages"] * ratio, -old["advantages"] * ratio.clamp(1 - CLIP, 1 + CLIP)), mask)
    whole = policy + VALUE_WEIGHT * value
    return policy.detach(), value.detach(), torch.where(mean(ratio, mask) > LARGEST_RATIO, whole * 0.0, whole)


@dataclass
class Distance:
    """The weight of the distance to the reference, which moves so that the distance comes near the target."""

    target: float
    weight: float = FIRST_KL

    def update(self, found: float, answers: int) -> None:
        """found: the mean distance of so many answers."""
        error = min(max(found / self.target - 1, -0.2), 0.2)
        self.weight *= 1 + error * answers / HORIZON


@dataclass
class Moments:
    """Running mean and deviation of all scores so far."""

    mean: float = 0.0
    variance: float = 1.0
    count: float = 1e-24

    def normalized(self, scores: Any, everywhere: Any) -> Any:
        """The scores less the mean and by the deviation, after those of all processes were taken into account."""
        number, middle = everywhere.numel(), float(everywhere.mean())
        total, apart = self.count + number, middle - self.mean
        spread = float(everywhere.var(unbiased=False)) * number + self.variance * self.count + apart**2 * self.count * number / total
        self.mean, self.variance, self.count = self.mean + apart * number / total, spread / total, total
        deviation = (self.variance * total / (total - 1)) ** 0.5 if total > 1 else 1.0
        return (scores - self.mean) / (deviation + float(torch.finfo(scores.dtype).eps))


def state(distance: Distance, moments: Moments) -> dict[str, Any]:
    """What a checkpoint must keep, as JSON values."""
    return {"weight": distance.weight, "moments": asdict(moments)}
