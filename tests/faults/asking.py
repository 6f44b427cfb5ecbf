"""How the tests here start `tests.faults.forks`, and what two runs are compared by."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from memdist import rundir
from memdist.train import checkpoint

ROOT = Path(__file__).parents[2]


def ask(requests: list[dict[str, Any]]) -> list[Any]:
    """Answers to requests, which are done in order by processes that one process forks."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-m", "tests.faults.forks", json.dumps(requests)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-6000:]
    return json.loads(done.stdout.splitlines()[-1])


def outcome(out: Path) -> dict[str, bytes]:
    """Everything that must not depend on faults: metrics, pictures, and each file of each checkpoint but for times."""
    found = {rundir.METRICS: (out / rundir.METRICS).read_bytes()}
    for step in checkpoint.steps(out):
        for name in (checkpoint.NETS, checkpoint.AVERAGES, checkpoint.OPTIM):
            found[f"{step} {name}"] = (checkpoint.folder(out, step) / name).read_bytes()
        state = json.loads((checkpoint.folder(out, step) / checkpoint.STATE).read_text())
        state["lengths"].pop("timing")
        found[f"{step} state"] = json.dumps(state | {"seconds": 0}).encode()
    for path in sorted((out / rundir.SAMPLES).iterdir()):
        found[path.name] = path.read_bytes()
    return found
