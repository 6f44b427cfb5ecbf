"""Nothing that the environment or a command line keeps secret ends up in what a run writes or exports."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests import tiny

ROOT = Path(__file__).parents[2]
SECRETS = {
    "WANDB_API_KEY": "k3y-of-wandb",
    "AWS_SECRET_ACCESS_KEY": "k3y-of-aws",
    "HF_TOKEN": "t0ken-of-a-hub",
    "MY_PASSWORD": "pa55word-of-mine",
    "RELEASE_TOKEN": "t0ken-in-a-folders-name",
    "DATABASE_URL": "postgres://me:pa55word-in-a-url@host/db",
}


@pytest.mark.slow
def test_no_secret_is_written(tmp_path: Path) -> None:
    data, run = tiny.data(tmp_path / "data"), tmp_path / "run"
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny.raw("unet", data, epochs=1, **{"log.tensorboard": True})))
    commands = [
        ["train", str(tmp_path / "tiny.yaml"), "--out", str(run)],
        ["evaluate", str(run)],
        ["compare", str(run), "--html", str(tmp_path / "page.html")],
        ["export", str(run), "--out", str(tmp_path / "export")],
        ["import", "memdist", str(tmp_path / "export"), "--out", str(tmp_path / "back")],
    ]
    here = tmp_path / SECRETS["RELEASE_TOKEN"]
    here.mkdir()
    for words in commands:
        command = [sys.executable, "-c", "from memdist.cli import main; main()", *words]
        done = subprocess.run(
            command,
            env={**os.environ, **SECRETS, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=300,
            cwd=here,
        )
        assert done.returncode == 0, done.stderr
        assert not any(secret in done.stdout + done.stderr for secret in SECRETS.values())
    files = [p for p in tmp_path.rglob("*") if p.is_file() and data not in p.parents]
    assert len(files) > 15
    for path in files:
        content = path.read_bytes()
        for name, secret in SECRETS.items():
            assert secret.encode() not in content, (path, name)
    for path in (tmp_path / "export").iterdir():
        assert str(tmp_path).encode() not in path.read_bytes(), path
