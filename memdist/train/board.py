"""TensorBoard's event files, written in the thread that has something to say.

TensorBoard's own writer hands everything to a thread: a full disk ends that thread with a traceback of its own, and the
training's next word to it raises, or waits for ever. Here each record has left the process when a call returns, and what the
file system refuses is an OSError like any other.
"""

from __future__ import annotations

import io
import platform
import time
import uuid
from collections.abc import Mapping
from pathlib import Path

import torch


class Board:
    """One event file of a folder."""

    def __init__(self, folder: Path, purge_step: int) -> None:
        """Begin a file; what former files say from `purge_step` on is not shown any more. Raises OSError."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder.mkdir(parents=True, exist_ok=True)
        # The shape of the name is TensorBoard's: it shows files in the order of their names.
        name = f"events.out.tfevents.{int(time.time()):010d}.{platform.node()}.{uuid.uuid4().hex[:8]}"
        self._file = open(folder / name, "wb", buffering=0)
        self._records = RecordWriter(_Whole(self._file))
        self._write(Event(file_version="brain.Event:2"))
        self._write(Event(step=purge_step, session_log=SessionLog(status=SessionLog.START)))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write values by name. Raises OSError."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        shown = [Summary.Value(tag=name, simple_value=float(value)) for name, value in values.items()]
        self._write(Event(step=step, summary=Summary(value=shown)))

    def image(self, step: int, name: str, picture: torch.Tensor) -> None:
        """Write a picture: uint8 [3, H, W] on the CPU. Raises OSError."""
        from PIL import Image
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        buffer = io.BytesIO()
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(buffer, "PNG")
        _, height, width = picture.shape
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=buffer.getvalue())
        self._write(Event(step=step, summary=Summary(value=[Summary.Value(tag=name, image=image)])))

    def close(self) -> None:
        """Close the file. Raises OSError."""
        self._file.close()

    def _write(self, event: object) -> None:
        event.wall_time = time.time()  # type: ignore[attr-defined]
        self._records.write(event.SerializeToString())  # type: ignore[attr-defined]


class _Whole:
    """A raw file that takes all it is given, or raises."""

    def __init__(self, file: io.FileIO) -> None:
        self._file = file

    def write(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            left = left[self._file.write(left) :]
