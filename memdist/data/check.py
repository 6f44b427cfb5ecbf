"""All files of a configuration's data, examined alone and against one another; nothing is written.

`listing` says which files there are, `examine` reads them, `compare` lays them side by side. `cheap` is what training does
of it before it decodes anything.
"""

from __future__ import annotations

import functools
import os
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from memdist import config
from memdist.data import examine as examine_
from memdist.data import groups as groups_
from memdist.data import header, names, sources
from memdist.data.examine import Facts
from memdist.data.findings import Finding, Kind
from memdist.data.pairs import PairFile, Part, Role, View
from memdist.data.workers import Progress, spread
from memdist.errors import DataError

COMMAND = "`memdist data check CONFIG` looks at every file"
_FEW = 3


@dataclass
class Listing:
    """Files of the data, before any is opened."""

    pairs: list[PairFile]
    """Sorted by stem."""
    place: Path
    """Folder or file that the data come from."""
    others: list[Part] = field(default_factory=list)
    """Pictures that belong to no pair: without partner, or the second of their stem."""
    findings: list[Finding] = field(default_factory=list)
    groups: dict[str, str] = field(default_factory=dict)
    """Group of each stem that has one."""
    grouped: bool = True
    """Whether the groups that are given could be read."""


def listing(data: config.Data) -> Listing:
    """Find all pictures and maps; what does not pair is a finding. Raises DataError where there is none."""
    surveyed = sources.survey(data)
    if not surveyed.pairs and all(problem.kind == "empty" for problem in surveyed.problems):
        raise DataError(surveyed.problems[0].sentence)
    place = data.csv or data.side_by_side or data.images
    assert place is not None
    found: list[Finding] = []
    others: list[Part] = []
    folders = names.folders(data)
    unpaired: dict[Role, list[Path]] = {"image": [], "map": []}
    for problem in surveyed.problems:
        role = folders.get(problem.file.parent, "image")
        if problem.kind == "partner":
            found.append(Finding(Kind.NO_MAP if role == "image" else Kind.NO_IMAGE, problem.file))
            unpaired[role].append(problem.file)
        elif problem.kind in _NAMES:
            found.append(Finding(_NAMES[problem.kind], problem.file))
        else:
            found.append(Finding(Kind.SOURCE, problem.file, problem.sentence))
            continue
        others.append((problem.file, None, role))
    alike = {(path.parent.name, names.folded(path.stem)): path for path in unpaired["map"]}
    for path in unpaired["image"]:
        folder = path.parent.name if data.images != path.parent or data.maps is None else data.maps.name
        if (partner := alike.get((folder, names.folded(path.stem)))) is not None:
            found.append(Finding(Kind.SIMILAR_NAMES, path, f"its map may be {partner.name}"))
    found += names.scan(data)
    listed = Listing(surveyed.pairs, place, others, list(dict.fromkeys(found)))
    try:
        listed.groups, _ = groups_.merged(surveyed.pairs, data)
    except DataError:
        listed.grouped = False  # the split, which needs them as well, says why
    return listed


_NAMES = {"stem": Kind.SAME_STEM, "name": Kind.ODD_NAME}


def examine(
    files: Sequence[Part], side: int, data: config.Data, workers: int | None = None, progress: Progress | None = None
) -> dict[Part, Facts]:
    """Examine files in processes; thumbnails are `side` x `side`, read as `data` says; else as in `workers.spread`."""
    work = functools.partial(examine_.examine, View.of(data, side))
    once = list(dict.fromkeys(files))  # several pairs may share a map
    parts = spread(work, once, title="examining files", chunk=32, workers=workers, progress=progress)
    return dict(zip(once, (fact for part in parts for fact in part), strict=True))


def compare(listed: Listing, facts: Mapping[Part, Facts], data: config.Data) -> list[Finding]:
    """What is wrong with files beside others of their kind, and with pairs."""
    found: list[Finding] = []
    for role in ("image", "map"):
        files = [pair.image_part if role == "image" else pair.map_part for pair in listed.pairs]
        whole = [part for part in files if facts[part].looks is not None]
        small = [Finding(Kind.SMALL, p[0], _size(facts[p])) for p in whole if min(facts[p].size or (0,)) < data.size]
        found += _mostly(small, len(whole))
        if role == "image":
            grey = [
                Finding(Kind.GREY, p[0]) for p in whole if data.image_channels == 3 and not _looks(facts[p]).coloured
            ]
            found += grey if len(grey) <= len(whole) / 2 else []
            sizes = sorted({facts[p].size or (0, 0) for p in whole})
            if len(sizes) > 1:
                ends = min(sizes, key=lambda s: s[0] * s[1]), max(sizes, key=lambda s: s[0] * s[1])
                few, many = (f"{width} x {height}" for width, height in ends)
                found.append(Finding(Kind.SIZES, whole[0][0].parent, f"{len(sizes)} sizes, from {few} to {many}"))
    aspects, sizes_ = [], []
    for pair in listed.pairs:
        image, map_ = facts[pair.image_part], facts[pair.map_part]
        if _same(image, map_) if pair.image_half else image.sha256 and image.sha256 == map_.sha256:
            found.append(Finding(Kind.MAP_IS_PICTURE, pair.map))
        if image.size is None or map_.size is None or image.size == map_.size:
            continue
        detail = f"{_size(map_)}, its picture {_size(image)}"
        if other_shape(image.size, map_.size):
            aspects.append(Finding(Kind.ASPECT, pair.map, detail))
        else:
            sizes_.append(Finding(Kind.OTHER_SIZE, pair.map, detail))
    return found + aspects + _mostly(sizes_, len(listed.pairs))


def _same(image: Facts, map_: Facts) -> bool:
    """Whether two halves of a file look the same: their content hash, that of the file, does not tell."""
    if image.looks is None or map_.looks is None or image.looks.coloured != map_.looks.coloured:
        return False
    one, other = (_grey(facts.looks.thumbnail) for facts in (image, map_) if facts.looks)
    return bool(np.ptp(one) > examine_.STEP and np.abs(one - other).max() <= examine_.STEP)


def _grey(thumbnail: examine_.Bytes) -> npt.NDArray[np.float64]:
    """Luminance [t, t] of a thumbnail of 1 or 3 channels, in steps of 255."""
    weights = np.array([0.299, 0.587, 0.114] if len(thumbnail) == 3 else [1.0])
    return np.einsum("c,chw->hw", weights, thumbnail)


def other_shape(image: tuple[int, int], map_: tuple[int, int]) -> bool:
    """Whether two (width, height) differ in aspect by more than rounding to pixels, and a hundredth, can explain."""
    return abs(map_[0] - map_[1] * image[0] / image[1]) > 1 + 0.01 * map_[0]


def _mostly(findings: list[Finding], total: int) -> list[Finding]:
    """What more than half of the files have is one line on their folder."""
    if len(findings) <= max(_FEW, total / 2):
        return findings
    first = findings[0]
    detail = f"{len(findings)} of {total}, such as {first.file.name}: {first.detail}"
    return [Finding(first.kind, first.file.parent, detail)]


def _looks(facts: Facts) -> examine_.Looks:
    assert facts.looks is not None
    return facts.looks


def _size(facts: Facts) -> str:
    assert facts.size is not None
    return f"{facts.size[0]} x {facts.size[1]}"


def cheap(pairs: Sequence[PairFile]) -> list[str]:
    """Sentences on files that train but need a look, from sizes and headers alone: one for each kind of finding.

    Raises DataError that names files that cannot be trained on.
    """
    found: list[Finding] = []
    for pair in pairs:
        image = _glance(pair.image, found)
        map_ = _glance(pair.map, found) if pair.map != pair.image else None
        if image and map_ and other_shape(image, map_):
            detail = f"{map_[0]} x {map_[1]} beside {image[0]} x {image[1]}"
            found.append(Finding(Kind.ASPECT, pair.map, detail))
    by_kind: defaultdict[Kind, list[Finding]] = defaultdict(list)
    for finding in found:
        by_kind[finding.kind].append(finding)
    faults = [f for kind in _REFUSED for f in by_kind[kind]]
    if faults:
        named = ", ".join(f"{str(f.file)!r} ({f.kind.title})" for f in faults[:_FEW])
        more = f" and {len(faults) - _FEW} more" if len(faults) > _FEW else ""
        raise DataError(
            f"{_files(faults)} cannot be trained on: {named}{more}; replace what is named or take it out ({COMMAND})"
        )
    notes = []
    for kind in _REMARKED:
        if these := by_kind[kind]:
            detail = f" ({these[0].detail})" if these[0].detail else ""
            notes.append(f"{kind.title}: {_files(these)}, such as {these[0].file.name!r}{detail}; {kind.advice}")
    return [*notes, f"{COMMAND}"] if notes else []


def _files(findings: Sequence[Finding]) -> str:
    return "1 file" if len(findings) == 1 else f"{len(findings)} files"


_NO_FILE = (Kind.EMPTY, Kind.BROKEN_LINK, Kind.FOLDER, Kind.SPECIAL, Kind.UNREADABLE)
_REFUSED = (*_NO_FILE, Kind.BOMB, Kind.NO_PICTURE, Kind.TORN, Kind.UNREAD, Kind.DEPTH_32)
_REMARKED = (Kind.ALPHA, Kind.COLOURS, Kind.ROTATED, Kind.PALETTE, Kind.FRAMES, Kind.ENDING, Kind.ASPECT)


def _glance(path: Path, found: list[Finding]) -> tuple[int, int] | None:
    """Note what the header of a file tells; gives its upright (width, height) if it has one."""
    from PIL import Image

    if (entry := header.entry(path)) is not None:
        found.append(entry)
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(path, formats=header.formats()) as file:
                if file.format not in header.READ:
                    found.append(Finding(Kind.NO_PICTURE, path, f"it is {file.format}, which is not read"))
                    return None
                of_header = header.read(path, file)
                size = file.size
                if file.has_transparency_data:
                    of_header.append(Finding(Kind.ALPHA, path, "it has an alpha channel"))
        except (Image.DecompressionBombWarning, Image.DecompressionBombError):
            found.append(Finding(Kind.BOMB, path))
            return None
        except Exception as error:  # as many ways as there are formats
            try:
                found.append(header.unopened(path, path.read_bytes(), error))
            except OSError as refused:
                found.append(Finding(Kind.UNREADABLE, path, (refused.strerror or str(refused)).lower()))
            return None
    found += of_header
    turned = any(f.kind is Kind.ROTATED and f.detail[-1] in "5678" for f in of_header)
    return size[::-1] if turned else size


def relative(path: Path, data: config.Data) -> Path:
    """A file's place from the folder that holds all of the data."""
    places = [p for p in (data.images, data.maps, data.side_by_side, data.csv and data.csv.parent) if p is not None]
    common = Path(os.path.commonpath([str(p) for p in places]))
    parent = common if len(set(places)) == 2 else common.parent
    return path.relative_to(parent) if path.is_relative_to(parent) else path
