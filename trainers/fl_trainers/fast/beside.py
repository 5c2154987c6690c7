"""A branch of a CUDA graph: small products, which leave most of a card idle, run beside large ones."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@functools.cache
def _stream() -> Any:
    """The branch's, one for all graphs."""
    return torch.cuda.Stream()


class Beside:
    """Without a graph that is being captured everything is launched in its place."""

    held: list[Any] = []  # noqa: RUF012 - there is one branch
    """What the branch reads and writes: memory that was given back before it is joined would be handed out again."""

    def __init__(self) -> None:
        self.on = False
        """Whether what is launched on the branch allocates nothing and gives autograd nothing."""

    @contextmanager
    def branch(self, *held: Any) -> Iterator[None]:
        """What is launched within goes on from here, and the graph's main line goes on beside it."""
        if not (self.on and torch.cuda.is_current_stream_capturing()):
            yield
            return
        _stream().wait_stream(torch.cuda.current_stream())
        self.held.extend(held)
        with torch.cuda.stream(_stream()):
            yield

    def mark(self) -> Any:
        """A place on the branch; None: there is none."""
        if not self.held:
            return None
        return torch.cuda.current_stream().record_event()

    def wait(self, mark: Any) -> None:
        """The main line waits for that place."""
        if mark is not None:
            torch.cuda.current_stream().wait_event(mark)

    @classmethod
    def join(cls) -> None:
        """The main line waits for all of the branch."""
        if cls.held:
            torch.cuda.current_stream().wait_stream(_stream())
            cls.held.clear()
