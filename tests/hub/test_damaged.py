"""Each file of a pushed agent truncated at every kilobyte and with flipped bits: a sentence, or what was written."""

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
import yaml

from dqn_ext import DDQN
from dqn_ext.errors import InvalidInput
from dqn_ext.hub import metrics, zoo_file
from dqn_ext.hub.agent_file import DESCRIPTION, WEIGHTS, Agent
from dqn_ext.hub.card import CARD, RESULTS, check
from tests.damage import damaged
from tests.hub.test_card import card

ENV = "CartPole-v1"
HYPERPARAMETERS = {"policy": "MlpPolicy", "policy_kwargs": "dict(net_arch=[32])", "gamma": 0.98}


def try_all(path: Path, read: Callable[[], Any], is_same: Callable[[Any], bool], n_flips: int = 200) -> int:
    """:return: how many of the damaged contents of a file are refused; the others are read as what was written"""
    content, refused = path.read_bytes(), 0
    for bad in damaged(content, n_flips):
        path.write_bytes(bad)
        try:
            found = read()
        except InvalidInput:
            refused += 1
        else:
            assert is_same(found), f"{path.name} is read as something else"
    path.write_bytes(content)
    assert is_same(read())
    return refused


@pytest.fixture(scope="module")
def model() -> DDQN:
    return DDQN("MlpPolicy", ENV, policy_kwargs={"net_arch": [32]}, gamma=0.98, device="cpu")


def same_weights(agent: Agent, model: DDQN) -> bool:
    expected = model.q_net.state_dict()
    return agent.weights.keys() == expected.keys() and all(
        th.equal(agent.weights[name], expected[name]) for name in expected
    )


def test_our_files(model, tmp_path):
    Agent.of(model, "ddqn", ENV, HYPERPARAMETERS, {}).write(tmp_path)
    description, weights = tmp_path / DESCRIPTION, tmp_path / WEIGHTS
    expected = Agent.read(description, weights).description

    def is_same(agent: Agent) -> bool:
        return agent.description == expected and same_weights(agent, model)

    for path in (description, weights):
        assert try_all(path, lambda: Agent.read(description, weights), is_same) > 180


def test_the_zoos_zip(model, tmp_path):
    model.save(tmp_path / "model.zip")
    (tmp_path / "config.yml").write_text(yaml.dump(HYPERPARAMETERS))
    (tmp_path / "args.yml").write_text(yaml.dump({"env": ENV}))
    paths = [tmp_path / name for name in ("model.zip", "config.yml", "args.yml")]
    refused = try_all(paths[0], lambda: zoo_file.read(*paths, "ddqn", ENV), lambda agent: same_weights(agent, model))
    assert refused > 100  # half of it is the optimizer's, which is not read


def test_the_trainings_record(tmp_path):
    rows = "".join(f"{score}.0,{score},{score / 7:.6f}\n" for score in range(300))
    (tmp_path / "0.monitor.csv").write_text('#{"t_start": 0.0, "env_id": null}\nr,l,t\n' + rows)
    np.savez(tmp_path / "evaluations.npz", timesteps=np.arange(9), results=np.ones((9, 5)))
    packed, written = tmp_path / "packed.zip", tmp_path / "written.zip"
    metrics.pack(tmp_path, packed)

    def read() -> dict[str, bytes]:
        metrics.rewrite(packed, written)
        with zipfile.ZipFile(written) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        if "evaluations.npz" in members:  # whose zip tells the time
            with np.load(io.BytesIO(members["evaluations.npz"])) as arrays:
                members["evaluations.npz"] = b"".join(arrays[name].tobytes() for name in sorted(arrays))
        return members

    expected = read()
    # A flip in the list of names hides a file; what is read of the others is what was written
    assert try_all(packed, read, lambda found: found.items() <= expected.items()) > 100


def test_the_card(tmp_path):
    """Its score is never read as another one without a word."""
    expected = card(tmp_path, 300.25, 82.5, 10).score
    for name in (CARD, RESULTS):
        content = (tmp_path / name).read_bytes()
        for bad in damaged(content, 300):
            (tmp_path / name).write_bytes(bad)
            report = check(str(tmp_path))
            assert report.score == expected or any("agreement" in what or "score" in what for what in report.missing)
        (tmp_path / name).write_bytes(content)
    assert json.loads((tmp_path / RESULTS).read_text())["mean_reward"] == 300.25
