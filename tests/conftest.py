"""What every test may count on: one thread, no settings of the caller's, a cache of its own, the time of each suite.

A suite is a folder of `tests/`. With `--named-skips` a skip whose reason is not a line of `skips.txt` is a failure, so
that no test goes missing unseen.
"""

import os
import sys
from collections import Counter, defaultdict
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent

# Before torch is imported: sums have one order, and as many processes as cores may test at once.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"
# What is tested must not depend on the job or the terminal that the tests run in; subprocesses inherit this.
for name in list(os.environ):
    if name in ("RANK", "WORLD_SIZE", "FORCE_COLOR", "COLUMNS") or (
        name.startswith(("SLURM_", "MEMDIST_", "ACCELERATE_", "LOCAL_", "MASTER_"))
    ):
        del os.environ[name]
os.environ["NO_COLOR"] = "1"
os.environ["TERM"] = "dumb"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--named-skips", action="store_true", help="fail on skips whose reason is not in tests/skips.txt")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Folder of decoded pictures for all tests of this process, apart from the person's."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["MEMDIST_CACHE"] = str(folder)
    yield folder
    del os.environ["MEMDIST_CACHE"]


@pytest.fixture(autouse=True)
def same_start() -> None:
    """Every test finds torch's global generator at the same place, whichever tests ran before."""
    if "torch" in sys.modules:
        import torch

        torch.manual_seed(0)
        torch.set_num_threads(1)


def _reasons() -> set[str]:
    lines = (HERE / "skips.txt").read_text().splitlines()
    return {line.strip() for line in lines if line.strip() and not line.startswith("#")}


def _refuse_unnamed(report: pytest.TestReport | pytest.CollectReport) -> None:
    if report.skipped and not hasattr(report, "wasxfail") and isinstance(report.longrepr, tuple):
        reason = report.longrepr[2].removeprefix("Skipped: ").removeprefix("Skipped").strip()
        if reason not in _reasons():
            report.outcome = "failed"
            report.longrepr = f"skipped for {reason!r}, which is no line of tests/skips.txt"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if item.config.getoption("--named-skips"):
        _refuse_unnamed(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if collector.config.getoption("--named-skips"):
        _refuse_unnamed(report)
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the work of each suite: seconds of its tests, summed over processes."""
    seconds: defaultdict[str, float] = defaultdict(float)
    tests: Counter[str] = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                suite = _suite(report.nodeid)
                seconds[suite] += report.duration
                tests[suite] += report.when == "call"
    terminalreporter.section("suites")
    for suite in sorted(seconds):
        terminalreporter.write_line(f"{suite:<12} {tests[suite]:>5} tests {seconds[suite]:>8.1f} s")


def _suite(node: str) -> str:
    parts = node.split("::")[0].split("/")
    return parts[1] if len(parts) > 2 else "other"
