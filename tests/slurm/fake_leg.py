"""Stands for Python in a job: the leg as it is, but what it starts is a moment's work that leaves one file a share.

`fake_leg.py -P -m memdist.cluster.leg ...` is how job scripts call it.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from memdist.cluster import leg, ranks


def work(words: Sequence[str]) -> list[str]:
    """The command of a share: it writes a file that must not be there yet; the verification counts them."""
    out = Path(words[words.index("--out") + 1]) / "work"
    if "--verify" in words:
        total = len(list(Path(words[2]).iterdir()))
        return ["sh", "-c", 'test "$(ls "$1" | wc -l)" = "$2"', "sh", str(out), str(total)]
    share = words[words.index("--shard") + 1].replace("/", "-of-")
    return ["sh", "-c", 'mkdir -p "$1" && set -C && : >"$1/$2"', "sh", str(out), share]


if __name__ == "__main__":
    del sys.argv[1 : sys.argv.index("memdist.cluster.leg") + 1]
    vars(ranks)["memdist"] = work
    sys.exit(leg.main())
