"""What can be wrong with a file, a pair or a set of pairs: each kind with what it is and what to do about it."""

from __future__ import annotations

from enum import Enum, StrEnum
from pathlib import Path
from typing import NamedTuple


class Level(StrEnum):
    """How bad a finding is."""

    FAULT = "fault"
    """Cannot, or should not, be trained on."""
    WARNING = "warning"
    """Trains, but a person should look."""


class Kind(Enum):
    """Kind of finding: (level, title, what it is and what to do)."""

    # A name in a folder
    NO_MAP = (
        Level.FAULT,
        "picture without map",
        "no map has the picture's stem, so that it is left out: add the map or take the picture away",
    )
    NO_IMAGE = (
        Level.FAULT,
        "map without picture",
        "no picture has the map's stem, so that it is left out: add the picture or take the map away",
    )
    SAME_STEM = (Level.FAULT, "two files with one stem", "training refuses to choose between them: keep one")
    SOURCE = (Level.FAULT, "cannot be paired", "the data are not what their settings say: mend what the line names")
    BROKEN_LINK = (Level.FAULT, "broken link", "a symbolic link to a file that is not there: restore or remove it")
    FOLDER = (Level.FAULT, "folder with a picture's name", "it cannot be read as a picture: rename it")
    SPECIAL = (Level.FAULT, "not a regular file", "a pipe, socket or device cannot be a picture: remove it")
    ODD_NAME = (
        Level.FAULT,
        "unsafe name",
        "lists of stems and split.csv cannot hold control characters, bytes that are not UTF-8 or blanks at an end: rename",
    )
    SIMILAR_NAMES = (
        Level.WARNING,
        "names alike",
        "differ only in case or Unicode normalisation, which some file systems take for one name: rename",
    )
    PASSED_OVER = (
        Level.WARNING,
        "passed over",
        "hidden, a folder, or of no known ending, so never read: rename or move",
    )

    # Bytes of a file
    EMPTY = (Level.FAULT, "empty file", "it has zero bytes: restore it")
    UNREADABLE = (Level.FAULT, "cannot be opened", "the system refuses to read it: mend its permissions or its disk")
    BOMB = (Level.FAULT, "too many pixels", "over Pillow's bound against decompression bombs: make it smaller")
    NO_PICTURE = (
        Level.FAULT,
        "not a picture",
        "its content is none that can be read, whatever its ending says: replace it",
    )
    TORN = (Level.FAULT, "truncated or damaged", "a part of its pixels is lost: restore it from its source")
    UNREAD = (
        Level.FAULT,
        "stored in an unread way",
        "whole, but training refuses it: save it as grey or RGB with 8 or 16 bits without a sign",
    )
    DEPTH_32 = (Level.FAULT, "32 bits a channel", "training refuses it: save it with 8 or 16 bits")
    NON_FINITE = (Level.FAULT, "not finite", "it holds NaN or infinity: compute it again")
    ENDING = (Level.WARNING, "wrong ending", "its content is of another format than its ending says: rename it")

    # Pixels of a file
    DEPTH_16 = (Level.WARNING, "16 bits a channel", "brought to 8 bits: see that it spans the whole of its range")
    DEPTH_1 = (Level.WARNING, "1 bit", "black and white only: was it meant to have greys?")
    PALETTE = (
        Level.WARNING,
        "palette",
        "its colours are those of a table: labels or a screen format rather than a photograph?",
    )
    ALPHA = (Level.WARNING, "transparent", "what is transparent is laid on black: flatten it as you want it seen")
    ROTATED = (
        Level.WARNING,
        "EXIF rotation",
        "it is turned upright as the tag says: see that its partner is turned too",
    )
    COLOURS = (Level.WARNING, "CMYK or other colours", "converted to RGB without a colour profile: save it as RGB")
    FRAMES = (Level.WARNING, "several frames", "only the first is taken: save the one you mean")
    FLAT_PICTURE = (Level.WARNING, "flat picture", "every pixel is the same: there is nothing to learn from it")
    FLAT_MAP = (Level.WARNING, "constant map", "every pixel is the same, so that CC is undefined: is it meant?")
    BLACK_MAP = (
        Level.WARNING,
        "all-black map",
        "nothing stands out in it, so that CC, SIM and KL are undefined: is it meant?",
    )
    COLOUR_LOST = (
        Level.WARNING,
        "colour is lost",
        "a coloured map where data.map_channels=1: give data.map_channels=3",
    )
    GREY = (Level.WARNING, "grey picture", "it has no colour, unlike most of the others: was its colour lost?")
    SMALL = (
        Level.WARNING,
        "smaller than data.size",
        "it is enlarged for training: give larger files or a smaller data.size",
    )

    # Pairs and sets
    ASPECT = (
        Level.WARNING,
        "map of another shape",
        "picture and map are brought to one shape differently: do they show the same frame?",
    )
    OTHER_SIZE = (
        Level.WARNING,
        "map of another size",
        "picture and map are resized apart: see that they show the same frame",
    )
    SIZES = (Level.WARNING, "sizes differ", "all are brought to a square of data.size, each in its own proportion")
    MAP_IS_PICTURE = (
        Level.FAULT,
        "map is the picture",
        "the same pixels stand for both: put the right map in its place",
    )
    SAME_MAP = (Level.WARNING, "map used twice", "different pictures share one map: was it copied by mistake?")
    SAME_ACROSS = (
        Level.FAULT,
        "same picture in two splits",
        "scores would be of pictures that were trained on: take one out, or, where fractions cut the splits, group them "
        "(--group-duplicates, data.groups)",
    )
    SAME_WITHIN = (Level.WARNING, "same picture twice", "it counts twice in its split: keep one")
    NEAR_ACROSS = (
        Level.WARNING,
        "near duplicate in two splits",
        "scores may be of pictures that were trained on: take one out, or, where fractions cut the splits, group them "
        "(--group-duplicates, data.groups)",
    )
    NEAR_WITHIN = (Level.WARNING, "near duplicate", "nearly the same picture in one split: keep one, or group them")
    GROUP_STRADDLES = (Level.FAULT, "group in two splits", "a group belongs to one split: mend the lists of stems")
    GROUPS_KEPT = (
        Level.FAULT,
        "groups not written",
        "the file is as it was: name a new one, or one that data.groups reads as well",
    )
    NO_SPLIT = (Level.FAULT, "no split", "train, val and test cannot be made of these pairs: do what the line says")

    def __init__(self, level: Level, title: str, advice: str) -> None:
        self.level = level
        self.title = title
        self.advice = advice


class Finding(NamedTuple):
    """One thing that is wrong, and where."""

    kind: Kind
    file: Path
    """The file, or the folder for what concerns all of its files."""
    detail: str = ""
    """What was found there, in a few words; may hold names as they stand on the disk."""
