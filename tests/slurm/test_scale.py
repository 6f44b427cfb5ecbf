"""A thousand shares of work that takes no time: what is left is what memdist and Slurm make of them."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from memdist.cluster import book
from tests.slurm.cluster import ROOT, Cluster
from tests.slurm.site import SETTINGS, Site

pytestmark = pytest.mark.slow

SHARES = 1000


@pytest.fixture
def site(bare: Cluster, tmp_path: Path) -> Iterator[Site]:
    made = Site(bare, tmp_path)
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} {ROOT / "tests" / "slurm" / "fake_leg.py"} "$@"\n')
    python.chmod(0o700)
    profile = tmp_path / "config" / "memdist" / "clusters" / "debug.yaml"
    profile.write_text(json.dumps({**json.loads(profile.read_text()), "python": str(python)}))
    made.reference("trained", "epochs=1")
    yield made


def test_a_thousand_shares(site: Site) -> None:
    assert SETTINGS
    pictures = site.folder / "pictures"
    pictures.mkdir()
    picture = next((site.folder / "data" / "images").iterdir())
    for number in range(SHARES):
        (pictures / f"{number}{picture.suffix}").hardlink_to(picture)
    words = (
        "predict",
        "trained",
        "pictures",
        "--out",
        "maps",
        "--shards",
        SHARES,
        "--cluster",
        "debug",
        "--gpus-per-node",
        0,
        "--at-most",  # other tests want to go on, too
        8,
    )
    said = site.submit(*words)
    # Indices of an array stay below 1001, so that 1000 shares are one array.
    assert f"predict, {SHARES} of {SHARES}" in said and len(book.submitted(site.folder / "maps")) == 2
    verified = book.attempts_file(site.folder / "maps", "verify")
    seen: list[str] = []

    def over() -> bool:
        seen.append(site.memdist("status", "maps"))
        return bool((found := book.attempts(verified)) and found[-1].kind)

    site.cluster.wait_for(over, 900, "the verification of all shares")
    assert book.attempts(verified)[-1].kind == "finished", site.told("maps")
    assert len(list((site.folder / "maps" / "work").iterdir())) == SHARES
    files = list((site.folder / "maps" / "jobs" / "attempts").glob(f"*-of-{SHARES}.jsonl"))
    assert len(files) == SHARES
    assert all([attempt.kind for attempt in book.attempts(file)] == ["finished"] for file in files)
    assert any("finished" in screen and "queued" in screen for screen in seen[:-1])
    assert f"{SHARES + 1:,} finished" in site.memdist("status", "maps")  # and the verification
