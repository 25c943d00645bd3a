"""scripts/harder_settings.py on an agent that has hardly begun."""

import json
import subprocess
import sys
from pathlib import Path

import harder_settings
import pytest

from dqn_ext import DDQN
from tests.ending import error_of

SCRIPT = Path(__file__).parent.parent / "scripts" / "harder_settings.py"
ENV = "PongNoFrameskip-v4"


def test_settings_of_a_game():
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


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ("--env CartPole-v1", "Error: --env must be a game of ale-py's, not CartPole-v1."),
        (f"--env {ENV}", f"Error: logs/ddqn/{ENV}_1 has not come to its end: it has no {ENV}.zip."),
        (f"--env {ENV} -f nowhere", f"Error: There is no run of ddqn on {ENV} in 'nowhere'"),
        (f"--env {ENV} --n-games 0", "--n-games must be at least 1"),
    ],
)
def test_bad_input(tmp_path, capsys, flags, sentence):
    for env in (ENV, "CartPole-v1"):
        (tmp_path / f"logs/ddqn/{env}_1").mkdir(parents=True)
    (tmp_path / "logs/ddqn/CartPole-v1_1/CartPole-v1.zip").touch()
    assert sentence in error_of(harder_settings.main, flags, tmp_path, capsys)


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
    assert all(len(row["scores"]) == len(row["lengths"]) == 2 for row in record["rows"])
    assert all(row["cut"] == 0 for row in record["rows"])
