"""Warnings of decoders put aside, for all threads that decode.

Filters of warnings belong to the process, not to a thread: were each thread to set and restore them itself, one would take
away what another relies upon, and a decompression bomb in it would pass. The first one in sets them, the last one restores.
"""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Iterator

_lock = threading.Lock()
_inside = 0
_held = contextlib.ExitStack()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Pass over remarks on odd metadata, which nobody can act upon; a decompression bomb is an error (PIL.Image's warning)."""
    global _inside
    from PIL import Image

    with _lock:
        if not _inside:
            _held.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                _held.close()
