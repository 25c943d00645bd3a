"""The packaged hyperparameters: every entry loads through the Zoo and builds an agent."""

from collections import Counter

import ale_py
import gymnasium as gym
import pytest
import yaml

from dqn_ext import DDQN
from dqn_ext.hyperparameters import argument_names, check_names, check_values
from dqn_ext.zoo import HYPERPARAMS_DIR
from dqn_ext.zoo.manager import ZOO_KEYS
from tests.zoo.conftest import run_python, run_several

PACK = yaml.safe_load((HYPERPARAMS_DIR / "ddqn.yml").read_text())
GAMES = "SpaceInvaders Pong Breakout Seaquest Qbert MsPacman BeamRider Enduro Asterix RoadRunner".split()  # noqa: SIM905
gym.register_envs(ale_py)
ALL_GAMES = sorted(name for name in gym.registry if name.endswith("NoFrameskip-v4") and "-ram" not in name)


def test_entries():
    control = {"CartPole-v1", "LunarLander-v3", "Acrobot-v1", "MountainCar-v0"}
    assert {f"{game}NoFrameskip-v4" for game in GAMES} | control | {"atari", "default"} == set(PACK)


def test_no_key_twice():
    """YAML would silently take the last."""
    lines = (HYPERPARAMS_DIR / "ddqn.yml").read_text().splitlines()
    keys = Counter(line.split(":")[0] for line in lines if line and line[0] not in " #")
    assert max(keys.values()) == 1


@pytest.mark.parametrize("entry", PACK)
def test_entry_holds_only_what_ddqn_takes(entry):
    check_names(PACK[entry], ZOO_KEYS | argument_names(DDQN))
    hyperparams = dict(PACK[entry])
    if str(hyperparams.get("learning_rate")).startswith("lin_"):
        hyperparams["learning_rate"] = float(hyperparams["learning_rate"][4:])
    check_values(hyperparams)
    if entry not in ("atari", "default"):
        assert entry in gym.registry


@pytest.mark.parametrize("entry", [entry for entry in PACK if "NoFrameskip" in entry])
def test_one_update_per_four_steps(entry):
    """The ratio of Mnih et al. 2015."""
    hyperparams = PACK[entry]
    assert hyperparams["gradient_steps"] / (hyperparams["train_freq"] * hyperparams["n_envs"]) == 1 / 4


def test_classic_control_trains(tmp_path):
    """A little more than until learning starts; the entries of CartPole and of games are trained elsewhere."""
    envs = ("MountainCar-v0", "Acrobot-v1", "LunarLander-v3")
    run_several([f"-m rl_zoo3.train --algo ddqn --env {env} -n 1200 --eval-freq -1" for env in envs], cwd=tmp_path)
    for env in envs:
        agent = DDQN.load(tmp_path / f"logs/ddqn/{env}_1/{env}.zip", device="cpu")
        assert agent.num_timesteps >= 1200
        assert agent._n_updates > 100


@pytest.mark.slow
@pytest.mark.parametrize("env", ALL_GAMES)
def test_every_game_trains(env, tmp_path):
    """Those without an entry of their own take `atari`."""
    run_python(
        f"-m rl_zoo3.train --algo ddqn --env {env} -n 400 --eval-freq -1 -params learning_starts:200", cwd=tmp_path
    )
    agent = DDQN.load(tmp_path / f"logs/ddqn/{env}_1/{env}.zip", device="cpu")
    assert agent.num_timesteps == 400
    assert agent.n_steps == PACK.get(env, PACK["atari"]).get("n_steps", 1)


def test_the_games_are_all_there():
    assert len(ALL_GAMES) > 60
    assert {f"{game}NoFrameskip-v4" for game in GAMES} <= set(ALL_GAMES)
