"""Muon for matrices and AdamW for the rest, as one optimizer: schedulers and checkpoints see one list of groups and one state."""

from __future__ import annotations

from typing import Any

import torch


class MuonAndAdamW(torch.optim.Optimizer):  # type: ignore[misc]
    """Groups with `muon: True` hold matrices only. Muon's steps are scaled to the size of AdamW's, so one learning rate serves both."""

    def __init__(self, groups: list[dict[str, Any]], *, lr: float, betas: tuple[float, float], eps: float) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0, "muon": False})
        self._parts: dict[bool, Any] = {}
        for muon in (True, False):
            own = [group for group in self.param_groups if group["muon"] is muon]
            if own:
                copies = [{"params": group["params"], "weight_decay": group["weight_decay"]} for group in own]
                if muon:
                    self._parts[muon] = torch.optim.Muon(copies, lr=lr, adjust_lr_fn="match_rms_adamw")
                else:
                    self._parts[muon] = torch.optim.AdamW(copies, lr=lr, betas=betas, eps=eps)

    def step(self, closure: Any = None) -> Any:
        loss = closure() if closure is not None else None
        for muon, part in self._parts.items():
            own = [group for group in self.param_groups if group["muon"] is muon]
            for group, copied in zip(own, part.param_groups, strict=True):
                copied.update(params=group["params"], lr=group["lr"], weight_decay=group["weight_decay"])
            part.state = self.state
            part.step()
        return loss
