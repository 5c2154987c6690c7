"""A branch of a CUDA graph: small products, which leave most of a card idle, run beside large ones."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch

BEHIND = 1
"""How many launches the branch may be behind the main line. What it reads is kept meanwhile; more brought nothing (8B, an H200)."""


@functools.cache
def _stream() -> Any:
    """The branch's, one for all graphs."""
    return torch.cuda.Stream()


class Beside:
    """Without a graph that is being captured everything is launched in its place."""

    _held: ClassVar[deque[tuple[Any, tuple[Any, ...]]]] = deque()
    """Launches that the main line has not waited for, there being one branch: an event after each, and what it reads and writes.

    Memory that was given back before would be handed out again.
    """

    def __init__(self) -> None:
        self.on = False
        """Whether what is launched on the branch allocates nothing and gives autograd nothing."""

    @contextmanager
    def branch(self, *held: Any) -> Iterator[None]:
        """What is launched within goes on from here, and the graph's main line goes on beside it."""
        if not (self.on and torch.cuda.is_current_stream_capturing()):
            yield
            return
        self.join(BEHIND)
        _stream().wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(_stream()):
            yield
            self._held.append((torch.cuda.current_stream().record_event(), held))

    def mark(self) -> Any:
        """A place on the branch, within it; None: there is none."""
        if self.on and torch.cuda.is_current_stream_capturing():
            return torch.cuda.current_stream().record_event()
        return None

    @staticmethod
    def wait(mark: Any) -> None:
        """The main line waits for that place."""
        if mark is not None:
            torch.cuda.current_stream().wait_event(mark)

    @classmethod
    def join(cls, behind: int = 0) -> None:
        """The main line waits for all launches but the last few."""
        last = None
        while len(cls._held) > behind:
            last, _ = cls._held.popleft()
        cls.wait(last)
