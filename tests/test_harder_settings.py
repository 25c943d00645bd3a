"""scripts/harder_settings.py on an agent that has hardly begun."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dqn_ext import DDQN

SCRIPT = Path(__file__).parent.parent / "scripts" / "harder_settings.py"
ENV = "PongNoFrameskip-v4"


def test_settings_of_a_game(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    import harder_settings

    settings = harder_settings.other_settings(ENV)
    assert list(settings) == [
        "as trained",
        "sticky actions",
        "difficulty 1",
        "difficulty 2",
        "difficulty 3",
        "mode 1",
    ]
    assert settings["as trained"] == {}


@pytest.mark.slow
def test_table(tmp_path):
    flags = f"--algo ddqn --env {ENV} -n 400 --eval-freq -1 -f logs -params learning_starts:200"
    subprocess.run([sys.executable, "-m", "rl_zoo3.train", *flags.split()], cwd=tmp_path, check=True)
    command = [sys.executable, str(SCRIPT), "--env", ENV, "--n-games", "2", "--output", "record.json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    output = done.stdout
    assert output.count("+/-") == 6
    record = json.loads((tmp_path / "record.json").read_text())
    agent = DDQN.load(tmp_path / f"logs/ddqn/{ENV}_1/{ENV}.zip", buffer_size=1)
    assert (record["steps"], record["n_games"], record["epsilon"]) == (400, 2, agent.exploration_rate)
    assert all(len(row["scores"]) == 2 for row in record["rows"])
