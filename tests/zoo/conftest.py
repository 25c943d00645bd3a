"""One agent, trained by the Zoo's own command on a real game, that the other commands then use."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

GAME = "PongNoFrameskip-v4"


def run_python(arguments: str, cwd: Path, check: bool = True, **env: str) -> "subprocess.CompletedProcess[str]":
    """Run ``python ARGUMENTS`` as a user would, in a folder of its own."""
    process = subprocess.run(
        [sys.executable, *shlex.split(arguments)],
        cwd=cwd,
        text=True,
        capture_output=True,
        env={**os.environ, "MPLBACKEND": "agg", "SDL_VIDEODRIVER": "dummy", "OMP_NUM_THREADS": "1", **env},
        timeout=600,
    )
    if check:
        assert process.returncode == 0, process.stdout[-3000:] + process.stderr[-3000:]
    return process


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which `train` has run; ``logs/`` is below it."""
    folder = tmp_path_factory.mktemp("trained")
    run_python(
        f"-m rl_zoo3.train --algo ddqn --env {GAME} --seed 0 -n 600 --eval-freq 300 --eval-episodes 2 --save-freq 400 "
        "-params learning_starts:100 buffer_size:1000 n_envs:2 gradient_steps:1",
        cwd=folder,
    )
    return folder
