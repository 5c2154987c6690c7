"""Being asked to stop. The first signal lets the current step finish and saves a checkpoint, the second ends at once."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

from fl_trainers.errors import Stopped

REPEATS_WITHIN = 2.0
"""Seconds. A launcher signals the whole group and torchrun passes the signal on: what comes twice so fast was meant once."""


class Stop:
    """The flag, and what a signal does now: end the process (before the loop) or set the flag (in it, and while saving)."""

    def __init__(self) -> None:
        self.requested = False
        self.deferred = False
        self._first = 0.0

    def install(self) -> None:
        """Takes SIGTERM and SIGINT; also when the parent had them ignored."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._handle)

    def _handle(self, number: int, _frame: Any) -> None:
        if self.requested:
            if time.monotonic() - self._first >= REPEATS_WITHIN:
                os._exit(Stopped.exit_code)
            return
        self.requested, self._first = True, time.monotonic()
        if "TORCHELASTIC_RUN_ID" not in os.environ:
            signal.signal(number, signal.SIG_DFL)  # the second one needs no interpreter to end the process
        if not self.deferred:
            raise Stopped(f"stopped by {signal.Signals(number).name} before the first step")

    def agreed(self) -> bool:
        """Whether any rank was asked to stop. Every rank calls it at the same step border."""
        if self._group is None:
            return self.requested
        import torch

        flag = torch.tensor([int(self.requested)])
        torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX, group=self._group)
        self.requested = bool(flag.item())
        return self.requested

    _group: Any = None

    def join(self) -> None:
        """Makes the processes' own channel for the flag: on the CPU, so that asking never waits for the accelerator."""
        import torch

        if torch.distributed.is_available() and torch.distributed.is_initialized():
            self._group = torch.distributed.new_group(backend="gloo")


stop = Stop()
