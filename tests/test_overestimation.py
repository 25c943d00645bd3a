"""scripts/overestimation.py: its arithmetic, against a chain whose values are known, and a real run."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import overestimation
import pytest
import torch as th
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit
from saved_agents import saved_agents
from stable_baselines3.common.vec_env import DummyVecEnv

from dqn_ext import DDQN
from tests.ending import error_of
from tests.zoo.conftest import run_python

SCRIPT = Path(__file__).parent.parent / "scripts" / "overestimation.py"


def test_discounted_returns_by_hand():
    assert overestimation.discounted_returns([1, 0, -1, 2], 0.5).tolist() == [1 + 0 - 0.25 + 0.25, 0, 0, 2]
    assert overestimation.discounted_returns([], 0.5).tolist() == []


class Countdown(gym.Env):
    """Three steps of reward 1 whatever is done."""

    observation_space = spaces.Box(0, 3, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        self.left = 3
        return np.array([self.left], np.float32), {}

    def step(self, action):
        self.left -= 1
        return np.array([self.left], np.float32), 1.0, self.left == 0, False, {}


class Forever(gym.Env):
    observation_space = spaces.Box(0, 1, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        return np.zeros(1, np.float32), {}

    def step(self, action):
        return np.zeros(1, np.float32), 1.0, False, False, {}


def test_a_chain_of_known_values():
    """An agent that takes every state to be worth 10; the three states are worth 1.75, 1.5 and 1."""
    env = DummyVecEnv([Countdown] * 2)
    agent = DDQN("MlpPolicy", env, gamma=0.5, policy_kwargs={"net_arch": []}, device="cpu")
    with th.no_grad():
        agent.q_net.q_net[0].weight.zero_()
        agent.q_net.q_net[0].bias.copy_(th.tensor([9.0, 10.0]))
    episodes = overestimation.play_episodes(agent, env, n_states=20)
    estimates, returns = (np.concatenate(arrays) for arrays in zip(*episodes, strict=True))
    assert len(episodes) == 8
    assert (estimates == 10).all()
    assert len(estimates) == len(returns) == 24  # 20 states lie within the fourth episode of each
    assert sorted(set(returns)) == [1, 1.5, 1.75]
    assert returns.mean() == pytest.approx((1.75 + 1.5 + 1) / 3)
    found = overestimation.summary(episodes)
    assert (found["estimate"], found["return"]) == (10, 1.4167)
    assert found["standard_error"] == 0  # all episodes are alike


def test_standard_error_by_hand():
    """Excesses of 1 and 3 in the states of one episode, of 4 in the only one of another: 8/3 on average.

    The episodes' sums differ from what that makes by -4/3 and 4/3; of two, 2 / (2 - 1) times their squares.
    """
    episodes = [(np.array([1.0, 3.0]), np.zeros(2)), (np.array([5.0]), np.ones(1))]
    found = overestimation.summary(episodes)
    assert found["estimate"] - found["return"] == pytest.approx(8 / 3, abs=1e-3)
    assert found["standard_error"] == pytest.approx(np.sqrt(2 * (16 / 9 + 16 / 9)) / 3, abs=1e-4)
    assert overestimation.summary(episodes[:1])["standard_error"] is None


def test_time_limits_are_no_ends():
    """An agent that values every state right, at a reward of 1 forever; each game is cut after 20 steps."""
    env = DummyVecEnv([lambda: TimeLimit(Forever(), 20)])
    agent = DDQN("MlpPolicy", env, gamma=0.5, policy_kwargs={"net_arch": []}, device="cpu")
    with th.no_grad():
        agent.q_net.q_net[0].weight.zero_()
        agent.q_net.q_net[0].bias.fill_(2.0)
    found = overestimation.summary(overestimation.play_episodes(agent, env, n_states=40))
    assert found["states"] == 2 * 14  # of 20: 0.5 ** 7 is below 1%
    assert found["return"] == pytest.approx(2, abs=0.02)


def test_a_run(tmp_path, capsys):
    run_python(
        "-m rl_zoo3.train --algo ddqn --env CartPole-v1 -n 1500 --save-freq 600 --eval-freq -1 --seed 1", cwd=tmp_path
    )
    run = "logs/ddqn/CartPole-v1_1"
    command = [sys.executable, str(SCRIPT), run, f"again={run}", "--states", "200", "--output", "o/study.json"]
    output = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    study = tmp_path / "o/study.json"
    other = {"label": "other", "env": "CartPole-v1", "seed": 9, "steps": 600, "estimate": 1.0, "return": 2.0}
    before = json.loads(study.read_text())["rows"]
    study.write_text(json.dumps({"rows": [*before, other]}))
    subprocess.run(command[:3] + command[4:], cwd=tmp_path, check=True)  # the first run alone
    rows = json.loads(study.read_text())["rows"]
    assert sorted(map(str, rows)) == sorted(map(str, [*before, other]))  # the same seed plays the same
    rows = before
    assert [(row["label"], row["steps"]) for row in rows] == [
        (label, steps) for label in ("ddqn", "again") for steps in (600, 1200, 1500)
    ]
    assert all(row["states"] >= 200 and row["return"] > 5 for row in rows)  # gamma 0.99, ten steps and more
    assert all(row["seed"] == 1 and row["epsilon"] == 0.1 and row["standard_error"] > 0 for row in rows)
    assert len(output.splitlines()) >= 6
    assert (tmp_path / "o/study.png").read_bytes().startswith(b"\x89PNG")

    (tmp_path / "logs/ppo/CartPole-v1_1").mkdir(parents=True)
    study.write_text("{")
    (tmp_path / "throughput.json").write_text('{"rows": {"dqn": {}}}')
    for arguments, sentence in [
        ("logs/none", "Error: logs/none is no run of the Zoo's with saved agents"),
        ("logs/ppo/CartPole-v1_1", "Error: logs/ppo/CartPole-v1_1 is of ppo, and only agents of dqn and ddqn"),
        (f"{run} --output o/study.json", "Error: o/study.json is no record of this script's"),
        (f"{run} --output throughput.json", "Error: throughput.json is no record of this script's"),
        (f"{run} {run} --output o/two.json", "Error: two of these runs are of ddqn on CartPole-v1 with seed 1"),
    ]:
        assert sentence in error_of(overestimation.main, arguments, tmp_path, capsys)
    assert not (tmp_path / "o/two.json").exists()  # it is said before anything is measured

    shutil.move(tmp_path / "logs", tmp_path / "rate=1")
    folder = tmp_path / "rate=1/ddqn/CartPole-v1_1"
    assert [saved_agents(word).label for word in (str(folder), f"mine={folder}")] == ["ddqn", "mine"]
    assert saved_agents(str(folder.rename(f"{folder}_8b0f-of--uuid"))).args["env"] == "CartPole-v1"
