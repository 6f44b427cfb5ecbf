"""`search.pack=auto`: processes side by side as long as they fit and pay, measured once."""

from pathlib import Path
from typing import Any

import pytest

from memdist import config, rundir
from memdist.search import cells, folder, on_ray, packing
from memdist.search.measure import Pairs
from memdist.search.packing import Speed
from memdist.search.settings import read as settings
from memdist.search.space import read


@pytest.mark.parametrize(
    ("speeds", "most", "expected", "tried"),
    [
        ([10, 20, 40, 41], 64, 4, [1, 2, 4, 8]),  # 8 do not pay
        ([10, 10.4], 64, 1, [1, 2]),
        ([10, 10.6, 12], 4, 4, [1, 2, 4]),
        ([10, 20, 40, 50], 5, 5, [1, 2, 4, 5]),
        ([10], 1, 1, [1]),
        ([10, 20, None], 64, 2, [1, 2]),  # 4 find no room
        ([None], 64, 0, []),
    ],
)
def test_choice(speeds: list[float | None], most: int, expected: int, tried: list[int]) -> None:
    left = iter(speeds)

    def speed(count: int) -> Speed | None:
        found = next(left)
        return None if found is None else Speed(found, "cuda", 0)

    found, told = packing.choose(speed, lambda: most)
    assert found == expected and list(told) == tried


def test_why() -> None:
    assert "8 make it +2 %, which does not pay" in packing.why(4, {1: 10, 2: 20, 4: 40, 8: 41}, 16, 64)
    assert packing.why(4, {1: 10, 2: 20, 4: 40}, 4, 64).endswith("there are no CPUs for more")
    assert packing.why(4, {1: 10, 2: 20, 4: 40}, 16, 4).endswith("memory has room for no more")
    assert packing.why(4, {1: 10, 2: 20, 4: 40}, 16, 16).endswith("more found no room")


def _settings(*words: str) -> dict[str, Any]:
    space = read("quick")
    return config.plain(cells.resolve(space, cells.cell(space, 0), ["device=cpu", "data.size=16", *words]))


def test_memory_is_an_end() -> None:
    there, gib = Pairs(20, 4, False), 2**30
    few = packing.fitting(_settings(), there, "cuda", 4 * gib)
    assert few < packing.fitting(_settings(), there, "cuda", 16 * gib)
    assert packing.fitting(_settings("model.channels=64", "data.size=128"), there, "cuda", 16 * gib) < 16
    assert packing.fitting(_settings(), there, "cuda", 0) == 1 == packing.fitting(_settings(), there, "mps", 99 * gib)


def test_processes_take_steps_side_by_side() -> None:
    found = packing.beside(_settings(), 4, 2, 1, seconds=0.2)
    assert found is not None and found.device == "cpu" and found.steps > 0 and found.free > 0
    # A process that cannot take a step is no room, not an error.
    assert packing.beside({**_settings(), "device": "cuda:77"}, 4, 1, 1, seconds=0.1) is None


def test_it_is_measured_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    counts: list[int] = []

    def beside(given: dict[str, Any], micro: int, count: int, threads: int) -> Speed:
        counts.append(count)
        return Speed(10.0 * count, "cpu", 2**40)

    monkeypatch.setattr(packing, "beside", beside)
    monkeypatch.setattr("memdist.launch.local.cores", lambda: 6)
    space = read("quick", ["device=cpu"])
    search = settings({}, ["search.pack=auto", "search.cpus=2"])
    assert packing.asked(search) and not packing.asked(settings({}, ["search.pack=auto", "search.gpus=1"]))
    run = cells.resolve(space, cells.cell(space, 0))
    need = {"CPU": 2.0, "GPU": 0.0}
    assert packing.settled(tmp_path, space, search, run, need, away=False) == 3 and counts == [1, 2, 3]
    assert rundir.read_json(tmp_path / folder.PACK)["trials"] == 3
    assert "3 side by side" in capsys.readouterr().out
    assert packing.settled(tmp_path, space, search, run, need, away=False) == 3 and counts == [1, 2, 3]


def test_on_a_cluster_it_is_measured_with_a_whole_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def there(need: dict[str, float], function: Any, *arguments: Any) -> dict[str, Any]:
        asked.append((need, function))
        return {"trials": 4, "why": "said"}

    monkeypatch.setattr(on_ray, "there", there)
    space = read("quick")
    search = settings({}, ["search.pack=auto"])
    run = cells.resolve(space, cells.cell(space, 0))
    assert packing.settled(tmp_path, space, search, run, {"CPU": 2.0, "GPU": 1.0}, away=True) == 4
    assert asked == [({"CPU": 2.0, "GPU": 1.0}, packing.find)]
