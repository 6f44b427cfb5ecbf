"""Outputs encoded and written by a few threads, and noted once they stand."""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from torch import Tensor

from memdist import rundir
from memdist.errors import CheckpointError
from memdist.predict.folder import Folder, Line, Manifest
from memdist.predict.inputs import Picture, Shard
from memdist.predict.record import Record

Lines = list[tuple[Line, float, int | None]]


class Writer:
    """Writes what one process makes. Use it as a context, so that its threads end."""

    def __init__(self, place: Folder, record: Record, shard: Shard, threads: int, at_most: int) -> None:
        """Keep at most so many pictures' outputs in memory."""
        self._place, self._at_most = place, at_most
        self._manifest = Manifest(place.out, record.fingerprint, shard)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="memdist write")
        self._waiting: deque[Future[Lines]] = deque()

    def put(self, picture: Picture, digest: str, outputs: Sequence[Tensor], seconds: float) -> None:
        """Write the outputs, uint8 [3 or 1, H, W] each, of a picture whose file has the SHA-256 `digest`.

        An error of writing, a CheckpointError, is raised here or in `finish`.
        """
        while len(self._waiting) >= self._at_most or (self._waiting and self._waiting[0].done()):
            self._note(self._waiting.popleft())
        self._waiting.append(self._pool.submit(self._write, picture, digest, outputs, seconds))

    def finish(self) -> None:
        """Wait until all is written."""
        while self._waiting:
            self._note(self._waiting.popleft())

    def __enter__(self) -> Writer:
        """Use as a context."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the threads; what was made is written and noted even after an interrupt, unless writing is what fails."""
        self._pool.shutdown(cancel_futures=isinstance(error, CheckpointError))
        with contextlib.suppress(CheckpointError):
            for future in self._waiting:
                if future.done() and not future.cancelled() and future.exception() is None:
                    self._note(future)
        self._manifest.close()

    def _note(self, future: Future[Lines]) -> None:
        for line in future.result():
            self._manifest.write(*line)

    def _write(self, picture: Picture, digest: str, outputs: Sequence[Tensor], seconds: float) -> Lines:
        lines: Lines = []
        names = self._place.layout.outputs(picture)
        for at, (name, one) in enumerate(zip(names, outputs, strict=True)):
            data = _png(one)
            rundir.write_bytes(self._place.out / name, data)
            replicate = at + 1 if at < len(names) - 1 else None
            lines.append((Line(name, digest, hashlib.sha256(data).hexdigest()), seconds, replicate))
        return lines


def _png(picture: Tensor) -> bytes:
    """Encode uint8 [3 or 1, H, W]."""
    from PIL import Image

    array = picture.permute(1, 2, 0).contiguous().numpy()
    buffer = io.BytesIO()
    Image.fromarray(array[..., 0] if array.shape[2] == 1 else array).save(buffer, "PNG")
    return buffer.getvalue()
