"""scripts/idle_units.py: its shares by hand, and a real run."""

import json
import subprocess
import sys
from pathlib import Path

import idle_units
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.envs import FakeImageEnv

from dqn_ext import DDQN
from tests.ending import error_of
from tests.zoo.conftest import run_python

SCRIPT = Path(__file__).parent.parent / "scripts" / "idle_units.py"


def test_shares_by_hand():
    env = FakeImageEnv(screen_height=40, screen_width=40, n_channels=4, discrete=True, channel_first=True)
    kwargs = {"features_extractor_kwargs": {"features_dim": 4}}
    agent = DDQN("CnnPolicy", env, policy_kwargs=kwargs, device="cpu")
    first, last = agent.q_net.features_extractor.cnn[0], agent.q_net.features_extractor.linear[0]
    states = np.random.default_rng(0).integers(0, 256, (8, 4, 40, 40), dtype=np.uint8)
    with th.no_grad():
        agent.q_net.q_net[0].weight *= 100
        spread = float(agent.q_net(th.from_numpy(states)).max(dim=1).values.numpy().std(ddof=1))
    assert idle_units.measure(agent, states)["spread"] == pytest.approx(spread, abs=1e-4)
    assert spread > 0.01
    with th.no_grad():
        for bias, units in ((-1e3, slice(0, 8)), (1e3, slice(8, 12))):  # of 32
            first.bias[units] = bias
        last.bias[:] = th.tensor([-1e9, 1e9, 1e9, -1e9])
    found = idle_units.measure(agent, states)
    assert len(found["off"]) == len(found["always_on"]) == 4
    assert found["off"][0] >= 8 / 32
    assert found["always_on"][0] >= 4 / 32
    assert (found["off"][-1], found["always_on"][-1]) == (0.5, 0.5)

    with th.no_grad():
        first.bias[:] = -1e3
        last.bias[:] = 0  # values of 1e9 differ in their last bits
    dark = idle_units.measure(agent, states)
    assert (dark["off"][0], dark["spread"]) == (1.0, 0.0)


def test_a_run(tmp_path, capsys):
    run_python(
        "-m rl_zoo3.train --algo ddqn --env PongNoFrameskip-v4 -n 200 --save-freq 104 --eval-freq -1 -f logs "
        "-params learning_starts:100",
        cwd=tmp_path,
    )
    output = tmp_path / "idle.json"
    command = [sys.executable, str(SCRIPT), "pack=logs/ddqn/PongNoFrameskip-v4_1", "--states", "16", "--output", output]
    subprocess.run(command, cwd=tmp_path, check=True)
    record = json.loads(output.read_text())
    assert [row["steps"] for row in record["rows"]] == [104, 200]
    for row in record["rows"]:
        assert row["label"] == "pack"
        shares = zip(row["off"], row["always_on"], strict=True)
        assert all(0 <= off <= off + always <= 1 for off, always in shares)
    error = error_of(idle_units.main, "a=nowhere", tmp_path, capsys)
    assert error == "Error: nowhere is no run of the Zoo's with saved agents (--save-freq).\n"
