"""scripts/overestimation.py: its arithmetic, against a chain whose values are known, and a real run."""

import json
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv

from dqn_ext import DDQN
from tests.zoo.conftest import run_python

SCRIPT = Path(__file__).parent.parent / "scripts" / "overestimation.py"


@pytest.fixture
def overestimation(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    import overestimation

    return overestimation


def test_discounted_returns_by_hand(overestimation):
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


def test_a_chain_of_known_values(overestimation):
    """An agent that takes every state to be worth 10; the three states are worth 1.75, 1.5 and 1."""
    env = DummyVecEnv([Countdown] * 2)
    agent = DDQN("MlpPolicy", env, gamma=0.5, policy_kwargs={"net_arch": []}, device="cpu")
    with th.no_grad():
        agent.q_net.q_net[0].weight.zero_()
        agent.q_net.q_net[0].bias.copy_(th.tensor([9.0, 10.0]))
    estimates, returns = overestimation.estimates_and_returns(agent, env, n_states=20)
    assert (estimates == 10).all()
    assert len(estimates) == len(returns) == 24  # 20 states lie within the fourth episode of each
    assert sorted(set(returns)) == [1, 1.5, 1.75]
    assert returns.mean() == pytest.approx((1.75 + 1.5 + 1) / 3)


def test_a_run(tmp_path):
    run_python(
        "-m rl_zoo3.train --algo ddqn --env CartPole-v1 -n 1500 --save-freq 600 --eval-freq -1 --seed 1", cwd=tmp_path
    )
    run = "logs/ddqn/CartPole-v1_1"
    command = [sys.executable, str(SCRIPT), run, f"again={run}", "--states", "200", "--output", "o/study.json"]
    output = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    rows = json.loads((tmp_path / "o/study.json").read_text())["rows"]
    assert [(row["label"], row["steps"]) for row in rows] == [
        (label, steps) for label in ("ddqn", "again") for steps in (600, 1200, 1500)
    ]
    assert all(row["states"] >= 200 and row["return"] > 5 for row in rows)  # gamma 0.99, ten steps and more
    assert len(output.splitlines()) >= 6
    assert (tmp_path / "o/study.png").read_bytes().startswith(b"\x89PNG")
    process = subprocess.run([sys.executable, str(SCRIPT), "logs/none"], cwd=tmp_path, capture_output=True, text=True)
    assert "Error: logs/none is no run of the Zoo's with saved agents" in process.stderr
