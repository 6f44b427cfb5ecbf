"""Outputs encoded and written by a few threads, and noted once they stand."""

from __future__ import annotations

import contextlib
import hashlib
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from torch import Tensor

from memdist import rundir
from memdist.errors import CheckpointError
from memdist.predict.folder import Folder, Line, Manifest
from memdist.predict.inputs import Shard
from memdist.predict.record import Record
from memdist.train import validate

ROOM = 2**30
"""Bytes of pixels that wait to be written, at most: outputs have the size of their pictures, which may be large."""


class Writer:
    """Writes what one process makes. Use it as a context, so that its threads end."""

    def __init__(self, place: Folder, record: Record, shard: Shard, threads: int, at_most: int) -> None:
        """Keep at most so many outputs in memory."""
        self._place, self._at_most = place, at_most
        self._manifest = Manifest(place.out, record.fingerprint, shard)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="memdist write")
        self._waiting: deque[tuple[Future[Line], int, float, int | None]] = deque()
        """With the bytes of each, the seconds that it took and its replicate."""
        self._bytes = 0

    def put(self, name: str, digest: str, output: Tensor, seconds: float, replicate: int | None) -> None:
        """Write an output, uint8 [3 or 1, H, W], of a picture whose file has the SHA-256 `digest`.

        An error of writing, a CheckpointError, is raised here or in `finish`.
        """
        size = output.nbytes
        while self._waiting and (
            len(self._waiting) >= self._at_most or self._bytes + size > ROOM or self._waiting[0][0].done()
        ):
            self._note()
        self._waiting.append((self._pool.submit(self._write, name, digest, output), size, seconds, replicate))
        self._bytes += size

    def finish(self) -> None:
        """Wait until all is written."""
        while self._waiting:
            self._note()

    def __enter__(self) -> Writer:
        """Use as a context."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the threads; what was made is written and noted even after an interrupt, unless writing is what fails."""
        self._pool.shutdown(cancel_futures=isinstance(error, CheckpointError))
        with contextlib.suppress(CheckpointError):
            for future, _, seconds, replicate in self._waiting:
                if future.done() and not future.cancelled() and future.exception() is None:
                    self._manifest.write(future.result(), seconds, replicate)
        self._manifest.close()

    def _note(self) -> None:
        """Wait for the first one, and note it."""
        future, size, seconds, replicate = self._waiting.popleft()
        self._bytes -= size
        self._manifest.write(future.result(), seconds, replicate)

    def _write(self, name: str, digest: str, output: Tensor) -> Line:
        data = validate.png(output)
        rundir.write_bytes(self._place.out / name, data)
        return Line(name, digest, hashlib.sha256(data).hexdigest())
