"""A folder of pairs in which every kind of bad file is planted, each under a name that says what it is."""

import os
import struct
import unicodedata
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from memdist.data.findings import Kind

WIDTH, HEIGHT = 48, 40
Expected = set[tuple[Kind, Path]]


def scene(seed: int, width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    """A coloured picture unlike those of other seeds."""
    cells = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC)


def blob(seed: int, width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    """A grey map: one bright place on black."""
    y, x = np.mgrid[:height, :width]
    cy, cx = np.random.default_rng(seed).uniform(0.3, 0.7, 2)
    light = np.exp(-((x / width - cx) ** 2 + (y / height - cy) ** 2) / 0.02)
    return Image.fromarray((255 * np.where(light > 0.05, light, 0)).astype(np.uint8))


def encoded(picture: Image.Image, format_: str, **options: object) -> bytes:
    file = BytesIO()
    picture.save(file, format_, **options)
    return file.getvalue()


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of chunks as they are."""
    parts = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def header(width: int, height: int, bits: int, colour: int) -> tuple[bytes, bytes]:
    return b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)


def tiff(pixels: np.ndarray, order: Literal["<", ">"] = "<", planes: bool = False, **tags: int) -> bytes:
    """An uncompressed TIFF of [H, W] or [H, W, channels], byte by byte; `order` is < (II) or > (MM), `t262` a tag."""
    height, width, channels = (*pixels.shape, 1)[:3]
    stored = pixels.transpose(2, 0, 1) if planes else pixels
    data = stored.astype(pixels.dtype.newbyteorder(order)).tobytes()
    parts = channels if planes else 1
    values = {256: [width], 257: [height], 258: [pixels.dtype.itemsize * 8] * channels, 259: [1]}
    values |= {262: [1 if channels == 1 else 2], 277: [channels], 278: [height], 284: [1 + planes]}
    values |= {279: [len(data) // parts] * parts, **{int(tag[1:]): [value] for tag, value in tags.items()}}

    def head(start: int) -> bytes:
        places = values | {273: [start + at * len(data) // parts for at in range(parts)]}
        out, extra = struct.pack(f"{order}H", len(places)), b""
        for tag, numbers in sorted(places.items()):
            raw = struct.pack(f"{order}{len(numbers)}I", *numbers)
            if len(raw) > 4:
                extra += raw
                raw = struct.pack(f"{order}I", 8 + 2 + 12 * len(places) + 4 + len(extra) - len(raw))
            out += struct.pack(f"{order}HHI", tag, 4, len(numbers)) + raw
        return (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8) + out + bytes(4) + extra

    return head(len(head(0))) + data


class Folder:
    """Two folders of pairs; each new stem has its own picture and map."""

    def __init__(self, place: Path) -> None:
        self.images, self.maps = place / "images", place / "maps"
        for folder in (self.images, self.maps):
            folder.mkdir(parents=True)
        self.splits: dict[str, list[str]] = {"val": [], "test": []}
        self._seed = 0

    def seed(self) -> int:
        self._seed += 1
        return self._seed

    def picture(self, name: str, data: bytes | None = None) -> Path:
        """A good picture `name`, or one of `data`, with no map."""
        path = self.images / name
        path.write_bytes(encoded(scene(self.seed()), "PNG") if data is None else data)
        return path

    def map(self, name: str, data: bytes | None = None) -> Path:
        path = self.maps / name
        path.write_bytes(encoded(blob(self.seed()), "PNG") if data is None else data)
        return path

    def with_map(self, name: str, data: bytes | None = None) -> Path:
        """A picture of `data` beside a good map."""
        self.map(f"{Path(name).stem}.png")
        return self.picture(name, data)

    def with_picture(self, name: str, data: bytes | None = None) -> Path:
        """A map of `data` beside a good picture."""
        self.picture(f"{Path(name).stem}.png")
        return self.map(name, data)


def good(folder: Folder) -> Expected:
    """Formats and modes that are as they should be."""
    for number in range(150):
        folder.with_map(f"good {number:03}.png")
    for format_, ending in (("JPEG", "jpg"), ("JPEG", "JPEG"), ("WEBP", "webp"), ("BMP", "bmp"), ("TIFF", "tif")):
        for progressive in (False, True) if format_ == "JPEG" else (False,):
            options = {"progressive": True} if progressive else {}
            name = f"good {format_} {'progressive' if progressive else 'plain'} {ending}.{ending}"
            folder.with_map(name, encoded(scene(folder.seed()), format_, **options))
    folder.with_map("good with full alpha.png", encoded(scene(folder.seed()).convert("RGBA"), "PNG"))
    folder.with_map("good jpeg with a tail.jpg", encoded(scene(folder.seed()), "JPEG") + b"\0" * 40)
    film = np.random.default_rng(8).bytes(
        200_000
    )  # behind the picture, as phones put it; some of it looks like markers
    for progressive in (False, True):
        moving = encoded(scene(folder.seed()), "JPEG", progressive=progressive) + film
        folder.with_map(f"good motion photo{' progressive' if progressive else ''}.jpg", moving)
    several = encoded(scene(folder.seed()), "MPO", save_all=True, append_images=[scene(folder.seed())])
    folder.with_map("good jpeg with a preview.jpg", several)
    whole = tiff(np.asarray(scene(folder.seed())).astype(np.uint8), planes=True)
    folder.with_map("good planes of 8 bits.tif", whole)
    exif = Image.Exif()
    exif[0x0112] = 1
    folder.with_map("good upright by exif.jpg", encoded(scene(folder.seed()), "JPEG", exif=exif))
    folder.with_map("good [red]marked[bold] ünï 写真.png")
    folder.with_picture("good map in rgb.png", encoded(blob(folder.seed()).convert("RGB"), "PNG"))
    folder.with_picture("good map as jpeg.jpg", encoded(blob(folder.seed()), "JPEG"))
    (folder.images / "Thumbs.db").write_bytes(b"what Windows leaves")
    (folder.maps / ".DS_Store").write_bytes(b"what a Mac leaves")
    folder.splits["val"] += [f"good {number:03}" for number in range(10)]
    folder.splits["test"] += [f"good {number:03}" for number in range(10, 30)]
    return set()


def _with_preview(jpeg: bytes) -> bytes:
    """A JPEG with a small one in its metadata, the end of which is not its own."""
    small = encoded(scene(1, 16, 16), "JPEG")
    return jpeg[:2] + b"\xff\xe2" + struct.pack(">H", len(small) + 2) + small + jpeg[2:]


def bytes_(folder: Folder) -> Expected:
    """Files whose content is no whole picture."""
    noise = np.random.default_rng(5).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    whole = {f: encoded(Image.fromarray(noise), f) for f in ("PNG", "JPEG", "WEBP", "BMP", "TIFF")}
    rough = whole["PNG"]
    flipped = bytearray(rough)
    flipped[len(rough) // 2] ^= 1
    progressive = encoded(Image.fromarray(noise), "JPEG", progressive=True)
    film = b"\xff\xd9".join(np.random.default_rng(9).bytes(100) for _ in range(3))
    torn = {
        "jpeg whose end is only in its preview.jpg": _with_preview(whole["JPEG"])[: -len(whole["JPEG"]) // 2],
        "png with a film.png": whole["PNG"][: len(whole["PNG"]) // 2] + film,
        "jpeg cut in half.jpg": whole["JPEG"][: len(whole["JPEG"]) // 2],
        "jpeg without end marker.jpg": whole["JPEG"][:-2],
        "jpeg progressive cut.jpg": progressive[: len(progressive) // 2],
        "jpeg header only.jpg": whole["JPEG"][:100],
        "png cut in half.png": rough[: len(rough) // 2],
        "png with a flipped bit.png": bytes(flipped),
        "png without its last chunk.png": whole["PNG"][:-12],
        "png signature only.png": whole["PNG"][:20],
        "webp cut.webp": whole["WEBP"][: len(whole["WEBP"]) * 3 // 4],
        "bmp cut.bmp": whole["BMP"][: len(whole["BMP"]) // 2],
        "tiff cut.tif": whole["TIFF"][: len(whole["TIFF"]) // 2],
    }
    none = {
        "text.png": b"I am a picture, believe me\n",
        "error page.jpg": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
        "random bytes.webp": np.random.default_rng(6).bytes(4000),
        "zeros.bmp": bytes(4000),
        "postscript.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n%%EndComments\nshowpage\n",
    }
    bombs = {
        "bomb.png": png(header(60_000, 60_000, 8, 2), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")),
        "a little too large.png": png(header(10_000, 9_000, 8, 0), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")),
    }
    found: Expected = set()
    for kind, files in ((Kind.TORN, torn), (Kind.NO_PICTURE, none), (Kind.BOMB, bombs)):
        found |= {(kind, folder.with_map(name, data)) for name, data in files.items()}
    found |= {
        (Kind.EMPTY, folder.with_map("empty picture.png", b"")),
        (Kind.EMPTY, folder.with_picture("empty.png", b"")),
    }
    found.add((Kind.TORN, folder.with_picture("map cut.png", rough[: len(rough) // 3])))
    return found


def unread(folder: Folder) -> Expected:
    """Whole files that are stored in ways that training refuses."""
    rng = np.random.default_rng(7)
    colours = rng.integers(0, 65536, (HEIGHT, WIDTH, 3), dtype=np.uint16)
    five = rng.integers(0, 256, (HEIGHT, WIDTH, 5), dtype=np.uint8)
    lines = zlib.compress(b"".join(b"\0" + line.tobytes() for line in five[..., :3]))
    large = zlib.compress(bytes(3 * 2**20))

    def with_chunk(name: bytes, data: bytes) -> bytes:
        return png(header(WIDTH, HEIGHT, 8, 2), (name, data), (b"IDAT", lines), (b"IEND", b""))

    files = {
        "planes of 16 bits.tif": tiff(colours, planes=True),
        "planes of 16 bits, big end.tif": tiff(colours, ">", planes=True),
        "signed 8 bits.tif": tiff(five[..., 0].view(np.int8), t339=2),
        "signed 8 bits rgb.tif": tiff(five[..., :3].view(np.int8), t339=2),
        "signed 16 bits.tif": tiff(colours[..., 0].view(np.int16), t339=2),
        "half floats.tif": tiff(colours[..., 0].astype(np.float16), t339=3),
        "double floats.tif": tiff(colours[..., 0].astype(np.float64), t339=3),
        "floats rgb.tif": tiff(colours.astype(np.float32), t339=3),
        "five channels.tif": tiff(five, t262=1),
        "lab.tif": tiff(five[..., :3], t262=8),
        "large text.png": with_chunk(b"zTXt", b"a\0\0" + large),
        "large profile.png": with_chunk(b"iCCP", b"a\0\0" + large),
    }
    found: Expected = {(Kind.UNREAD, folder.with_map(name, data)) for name, data in files.items()}
    cut = {"double floats cut.tif": files["double floats.tif"][:-20]}
    found |= {(Kind.TORN, folder.with_map(name, data)) for name, data in cut.items()}
    nothing = png(header(0, HEIGHT, 8, 2), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
    found.add((Kind.NO_PICTURE, folder.with_map("no width.png", nothing)))
    return found


def modes(folder: Folder) -> Expected:
    """Pictures that are whole, but not as training expects them."""

    def new() -> Image.Image:
        return scene(folder.seed())

    found: Expected = set()

    def add(kinds: Kind | set[Kind], path: Path) -> None:
        found.update((kind, path) for kind in (kinds if isinstance(kinds, set) else {kinds}))

    add(Kind.ENDING, folder.with_map("png named jpg.jpg", encoded(new(), "PNG")))
    add(Kind.ENDING, folder.with_map("jpeg named png.png", encoded(new(), "JPEG")))
    add(Kind.NO_PICTURE, folder.with_map("gif named png.png", encoded(new().quantize(64), "GIF")))
    deep = np.asarray(blob(folder.seed())).astype(np.uint16) * 257
    add(Kind.DEPTH_16, folder.with_picture("16 bit map.png", encoded(Image.fromarray(deep), "PNG")))
    add(Kind.DEPTH_16, folder.with_picture("16 bit map tiff.tiff", encoded(Image.fromarray(deep[::-1].copy()), "TIFF")))
    lines = np.asarray(new()).astype(">u2") * 257
    raw = b"".join(b"\0" + line.astype(">u2").tobytes() for line in lines)
    colour = png(header(WIDTH, HEIGHT, 16, 2), (b"IDAT", zlib.compress(raw)), (b"IEND", b""))
    add(Kind.DEPTH_16, folder.with_map("16 bit colour.png", colour))
    values = np.asarray(blob(folder.seed())).astype(np.float32)
    add(Kind.DEPTH_32, folder.with_picture("float map.tif", encoded(Image.fromarray(values / 255), "TIFF")))
    add(Kind.DEPTH_32, folder.with_picture("int32 map.tif", encoded(Image.fromarray(values.astype(np.int32)), "TIFF")))
    for name, wrong in (("nan", np.nan), ("infinite", np.inf)):
        values[3, 4] = wrong
        add(
            {Kind.DEPTH_32, Kind.NON_FINITE},
            folder.with_picture(f"{name}.tif", encoded(Image.fromarray(values), "TIFF")),
        )
    add(Kind.DEPTH_1, folder.with_picture("1 bit map.png", encoded(blob(folder.seed()).convert("1"), "PNG")))
    add(Kind.PALETTE, folder.with_map("palette.png", encoded(new().quantize(64), "PNG")))
    clear = encoded(new().quantize(64), "PNG", transparency=0)
    add({Kind.PALETTE, Kind.ALPHA}, folder.with_map("palette with a clear colour.png", clear))
    see_through = new().convert("RGBA")
    see_through.putalpha(blob(folder.seed()).point(lambda v: 255 - v))
    add(Kind.ALPHA, folder.with_map("transparent.png", encoded(see_through, "PNG")))
    map_ = Image.merge("LA", (blob(folder.seed()), blob(folder.seed())))
    add(Kind.ALPHA, folder.with_picture("transparent map.png", encoded(map_, "PNG")))
    for orientation in (3, 6):
        exif = Image.Exif()
        exif[0x0112] = orientation
        picture = new() if orientation == 3 else scene(folder.seed(), HEIGHT, WIDTH)
        add(Kind.ROTATED, folder.with_map(f"exif {orientation}.jpg", encoded(picture, "JPEG", exif=exif)))
    whole = encoded(scene(folder.seed(), HEIGHT, WIDTH), "PNG")
    late = png((b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")))[8:]
    add(Kind.ROTATED, folder.with_map("exif after the pixels.png", whole[:-12] + late + whole[-12:]))
    add(Kind.COLOURS, folder.with_map("cmyk.jpg", encoded(new().convert("CMYK"), "JPEG")))
    add(Kind.COLOURS, folder.with_map("cmyk.tiff.tif", encoded(new().convert("CMYK"), "TIFF")))
    for name, format_ in (("animation.webp", "WEBP"), ("animated.png", "PNG"), ("pages.tif", "TIFF")):
        several = encoded(new(), format_, save_all=True, append_images=[new()])
        add(Kind.FRAMES, folder.with_map(name, several))
    add(
        Kind.FLAT_PICTURE, folder.with_map("flat picture.png", encoded(Image.new("RGB", (WIDTH, HEIGHT), "red"), "PNG"))
    )
    add(Kind.FLAT_MAP, folder.with_picture("constant map.png", encoded(Image.new("L", (WIDTH, HEIGHT), 90), "PNG")))
    add(Kind.BLACK_MAP, folder.with_picture("black map.png", encoded(Image.new("L", (WIDTH, HEIGHT), 0), "PNG")))
    add(
        Kind.BLACK_MAP,
        folder.with_picture("nearly black.jpg", encoded(Image.new("RGB", (WIDTH, HEIGHT), (1, 0, 1)), "JPEG")),
    )
    add(Kind.COLOUR_LOST, folder.with_picture("coloured map.png", encoded(new(), "PNG")))
    add(Kind.GREY, folder.with_map("grey.png", encoded(new().convert("L"), "PNG")))
    add(Kind.GREY, folder.with_map("grey in rgb.jpg", encoded(new().convert("L").convert("RGB"), "JPEG")))
    small = folder.with_map("tiny.png", encoded(scene(folder.seed(), 12, 10), "PNG"))
    found |= {(Kind.SMALL, small), (Kind.OTHER_SIZE, folder.maps / "tiny.png")}
    small = folder.with_picture("tiny map.png", encoded(blob(folder.seed(), 12, 10), "PNG"))
    add({Kind.SMALL, Kind.OTHER_SIZE}, small)
    add(Kind.OTHER_SIZE, folder.with_picture("half map.png", encoded(blob(folder.seed(), 24, 20), "PNG")))
    add(Kind.ASPECT, folder.with_picture("map on its side.png", encoded(blob(folder.seed(), HEIGHT, WIDTH), "PNG")))
    return found


def names(folder: Folder) -> Expected:
    """Names that pair with nothing, or should not be."""
    found: Expected = {(Kind.NO_MAP, folder.picture("no map.png")), (Kind.NO_IMAGE, folder.map("no picture.png"))}
    folder.with_map("twin.jpg", encoded(scene(folder.seed()), "JPEG"))
    found.add((Kind.SAME_STEM, folder.picture("twin.png")))
    folder.with_map("twin map.png")
    found.add((Kind.SAME_STEM, folder.map("twin map.webp", encoded(blob(folder.seed()), "WEBP"))))
    for link, target in (("broken link.png", "nowhere.png"), ("link to itself.png", "link to itself.png")):
        folder.map(link)
        (folder.images / link).symlink_to(target)
        kind = Kind.UNREADABLE if link == target else Kind.BROKEN_LINK
        found.add((kind, folder.images / link))
    folder.map("folder.png")
    (folder.images / "folder.png").mkdir()
    found.add((Kind.FOLDER, folder.images / "folder.png"))
    found |= {(Kind.NO_IMAGE, folder.maps / name) for name in ("folder.png", "pipe.png")}
    folder.map("pipe.png")
    os.mkfifo(folder.images / "pipe.png")
    found.add((Kind.SPECIAL, folder.images / "pipe.png"))
    found.add((Kind.PASSED_OVER, folder.picture(".hidden.png")))
    found.add((Kind.PASSED_OVER, folder.picture("of a phone.heic", b"ftypheic")))
    found.add((Kind.PASSED_OVER, folder.map("no ending", b"words")))
    (folder.maps / "inner").mkdir()
    found.add((Kind.PASSED_OVER, folder.maps / "inner"))
    for stem in ("Case", "case"):
        folder.with_map(f"{stem}.png")
    composed = unicodedata.normalize("NFC", "é twice")
    for stem in (composed, unicodedata.normalize("NFD", composed)):
        folder.with_map(f"{stem}.png")
    found |= {
        (Kind.SIMILAR_NAMES, f / name) for f in (folder.images, folder.maps) for name in ("case.png", f"{composed}.png")
    }
    lone = folder.picture(f"{unicodedata.normalize('NFC', 'ö')} apart.png")
    other = folder.map(f"{unicodedata.normalize('NFD', 'ö')} apart.png")
    found |= {(Kind.NO_MAP, lone), (Kind.SIMILAR_NAMES, lone), (Kind.NO_IMAGE, other)}
    for name in ("escape \x1b[31m.png", "two\nlines.png", "not utf-8 \udcff.png", "blank at the end .png"):
        folder.with_map(name)
        found |= {(Kind.ODD_NAME, folder.images / name), (Kind.ODD_NAME, folder.maps / name)}
    return found


def repetitions(folder: Folder) -> Expected:
    """Pictures and maps that stand twice. Copies sort after their originals."""
    found: Expected = set()

    def copy(name: str, kind: Kind, change: Callable[[Image.Image], bytes] | None, split: str | None = None) -> None:
        original = scene(folder.seed(), 120, 100).resize((WIDTH, HEIGHT))
        data = encoded(original, "PNG")
        folder.with_map(f"{name}, first.png", data)
        ending = "png" if change is None else "jpg"
        path = folder.with_map(f"{name}, then.{ending}", data if change is None else change(original))
        if split is not None:
            folder.splits[split].append(path.stem)
        found.add((kind, path))

    copy("same within", Kind.SAME_WITHIN, None)
    copy("same across", Kind.SAME_ACROSS, None, "test")
    copy("recompressed within", Kind.NEAR_WITHIN, lambda p: encoded(p, "JPEG", quality=40))
    copy("recompressed across", Kind.NEAR_ACROSS, lambda p: encoded(p, "JPEG", quality=40), "val")
    copy("brighter", Kind.NEAR_ACROSS, lambda p: encoded(p.point(lambda v: min(255, int(v * 1.15))), "JPEG"), "test")
    flip = Image.Transpose.FLIP_LEFT_RIGHT
    copy("mirrored", Kind.NEAR_WITHIN, lambda p: encoded(p.transpose(flip), "JPEG", quality=90))
    shared = folder.with_picture("map, first.png").read_bytes()
    found.add((Kind.SAME_MAP, folder.with_picture("map, then.png", shared)))
    folder.map("map is the picture.png", (picture := folder.with_map("map is the picture.png")).read_bytes())
    found |= {(Kind.MAP_IS_PICTURE, folder.maps / picture.name), (Kind.COLOUR_LOST, folder.maps / picture.name)}
    return found


def plant(place: Path) -> tuple[Folder, Expected]:
    """Everything in one pair of folders, beside the good; what should be found, and where."""
    folder, found = Folder(place), set[tuple[Kind, Path]]()
    for part in (good, bytes_, unread, modes, names, repetitions):
        found |= part(folder)
    found.add((Kind.SIZES, folder.images))
    return folder, found
