"""One agent, trained by the Zoo's own command on a real game, that the other commands then use."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.zoo import forked

GAME = "PongNoFrameskip-v4"


def run_python(
    arguments: str, cwd: Path, check: bool = True, stdin: str | None = None, **env: str
) -> "subprocess.CompletedProcess[str]":
    """Run ``python ARGUMENTS`` as a user would, in a folder of its own."""
    env = {**os.environ, "MPLBACKEND": "agg", "SDL_VIDEODRIVER": "dummy", "OMP_NUM_THREADS": "1", **env}
    words = shlex.split(arguments)
    # The hook is for the start of a process
    if words[0] == "-m" and stdin is None and "DQN_EXT_NO_HOOK" not in env and sys.platform == "linux":
        process = subprocess.CompletedProcess(words, *forked.run_module(words[1:], cwd, env, timeout=600))
    else:
        process = subprocess.run(
            [sys.executable, *words], cwd=cwd, input=stdin, text=True, capture_output=True, env=env, timeout=600
        )
    if check:
        assert process.returncode == 0, process.stdout[-3000:] + process.stderr[-3000:]
    return process


def run_several(commands: list[str], cwd: Path, check: bool = True) -> "list[subprocess.CompletedProcess[str]]":
    """Run commands ``-m MODULE FLAGS`` one after another in one process, where what it imports first does not matter.

    :return: what each would have been in a process of its own
    """
    script = Path(__file__).with_name("one_after_another.py")
    process = run_python(shlex.quote(str(script)), cwd, stdin=json.dumps(commands))
    stdout, stderr = (re.split(r"^### (\d+)\n", text, flags=re.M)[:-1] for text in (process.stdout, process.stderr))
    done = [
        subprocess.CompletedProcess(command, int(code), said, error)
        for command, code, said, error in zip(commands, stdout[1::2], stdout[::2], stderr[::2], strict=True)
    ]
    for one in done if check else []:
        assert one.returncode == 0, one.stdout[-3000:] + one.stderr[-3000:]
    return done


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
