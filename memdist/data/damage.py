"""What is lost of a file's bytes, although a decoder may pass over it."""

from __future__ import annotations

import re
import zlib

_MARKER = re.compile(rb"\xff+[^\x00\xd0-\xd7\xff]", re.DOTALL)
"""What ends the coded pixels of a JPEG: neither a stuffed byte nor a restart."""


def find(format_: str, data: bytes) -> str | None:
    """What is missing or broken in the bytes of a file, even where its decoder would not mind; None if whole."""
    if format_ == "PNG":
        return _png(data)
    if format_ in ("JPEG", "MPO"):
        return _jpeg(data)
    if format_ == "WEBP" and int.from_bytes(data[4:8], "little") + 8 > len(data):
        return f"{int.from_bytes(data[4:8], 'little') + 8 - len(data)} bytes are missing"
    return None


def _jpeg(data: bytes) -> str | None:
    """Go from marker to marker up to the end of the first picture: phones put films, previews and more behind it."""
    at, scans = 2, 0
    while (found := _MARKER.search(data, at)) is not None:
        at, code = found.end(), data[found.end() - 1]
        if code == 0xD9:
            return None if scans else "it ends before its pixels"
        if code not in (0x01, 0xD8):  # all others have a length
            at += max(2, int.from_bytes(data[at : at + 2], "big"))
        scans += code == 0xDA
    return "its end marker is missing"


def _png(data: bytes) -> str | None:
    at, view = 8, memoryview(data)
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        name = data[at + 4 : at + 8].decode("latin-1")
        if end > len(data):
            return f"it ends within its chunk {name!r}"
        if zlib.crc32(view[at + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            return f"the checksum of its chunk {name!r} is wrong"
        if name == "IEND":
            return None
        at = end
    return "it ends before its last chunk"
