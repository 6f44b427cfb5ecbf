"""Checkpoints are copied to the host between two steps and written by a thread while training goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from memdist.distributed.pieces import Piece, Pieces


class Saver:
    """Writes one checkpoint at a time."""

    def __init__(self, device: torch.device) -> None:
        """Nothing is under way."""
        self._device = device
        self._buffers: dict[str, Tensor] = {}
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    def begin(self, pieces: Pieces, work: Callable[[Pieces], None]) -> None:
        """Let a thread do `work` with copies of the pieces; waits first for the one that is under way, and raises its failure.

        A device copies in the order of its stream, between this step and the next; only the thread waits for it.
        """
        self.wait()
        copies = {name: replace(piece, values=self._copied(name, piece)) for name, piece in pieces.items()}
        ready = torch.cuda.Event() if self._device.type == "cuda" else None  # type: ignore[no-untyped-call]
        if ready is not None:
            ready.record(torch.cuda.current_stream(self._device))

        def run() -> None:
            try:
                if ready is not None:
                    torch.cuda.set_device(self._device)  # a new thread begins on the first
                    ready.synchronize()
                work(copies)
            except BaseException as error:
                self._failure = error

        # A daemon: a peer that is gone must not keep this process from ending.
        self._thread = threading.Thread(target=run, name="checkpoint", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Wait for what is under way; raises its failure."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _copied(self, name: str, piece: Piece) -> Tensor:
        """The piece's values in a row in the host's memory; of memory that is kept from one checkpoint to the next."""
        values, buffer = piece.values.detach(), self._buffers.get(name)
        if buffer is None or (buffer.numel(), buffer.dtype) != (values.numel(), values.dtype):
            pinned = values.device.type == "cuda"
            buffer = torch.empty(values.numel(), dtype=values.dtype, pin_memory=pinned)
            self._buffers[name] = buffer
        # In row-major order, whatever the layout in memory is.
        buffer.view(values.shape).copy_(values, non_blocking=True)
        return buffer
