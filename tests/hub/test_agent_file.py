"""An agent comes back from its two files as it was."""

from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import rl_zoo3
import torch as th
import yaml
from gymnasium import spaces
from stable_baselines3 import DQN
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import FakeImageEnv, SimpleMultiObsEnv
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn

from dqn_ext import DDQN
from dqn_ext.errors import InvalidInput
from dqn_ext.hub.agent_file import (
    DESCRIPTION,
    HYPERPARAMETERS,
    NOT_CARRIED,
    WEIGHTS,
    Agent,
    check_description,
    plain_hyperparameters,
)
from dqn_ext.hyperparameters import argument_names
from dqn_ext.zoo import HYPERPARAMS_DIR
from dqn_ext.zoo.manager import ZOO_KEYS


class Images(FakeImageEnv):
    def __init__(self):
        super().__init__(screen_height=40, screen_width=40, n_channels=4, discrete=True, channel_first=True)


AGENTS = [
    ("dqn", "MlpPolicy", "CartPole-v1", "dict(net_arch=[8, 8], activation_fn=nn.Tanh)"),
    ("ddqn", "MlpPolicy", "CartPole-v1", "{'net_arch': [8], 'optimizer_class': th.optim.AdamW}"),
    ("dqn", "MlpPolicy", "CliffWalking-v1", {"net_arch": [8]}),
    ("ddqn", "MlpPolicy", "CartPole-v1", {"net_arch": [8], "dueling": True}),
    ("ddqn", "CnnPolicy", Images, "dict(dueling=True, features_extractor_kwargs=dict(features_dim=16))"),
    ("dqn", "CnnPolicy", Images, {"features_extractor_kwargs": {"features_dim": 16}}),
    ("ddqn", "CnnPolicy", Images, {"features_extractor_kwargs": {"features_dim": 16, "width": 0.5, "centered": True}}),
    ("ddqn", "CnnPolicy", Images, {"features_extractor_kwargs": {"features_dim": 16}, "normalize_images": True}),
    (
        "ddqn",
        "CnnPolicy",
        Images,
        {"features_extractor_class": "impala", "features_extractor_kwargs": {"features_dim": 16}, "net_arch": [8]},
    ),
]


@pytest.mark.parametrize(("algo", "policy", "env", "policy_kwargs"), AGENTS)
def test_there_and_back(algo, policy, env, policy_kwargs, tmp_path):
    def make():
        return gym.make(env) if isinstance(env, str) else env()

    objects = (
        eval(policy_kwargs, {"nn": nn, "th": th}) if isinstance(policy_kwargs, str) else policy_kwargs
    )  # as the Zoo does
    settings = {"buffer_size": 200, "learning_starts": 40, "device": "cpu", "seed": 3}
    own = {"reward_bound": 1} if algo == "ddqn" else {}
    model = {"dqn": DQN, "ddqn": DDQN}[algo](policy, make(), policy_kwargs=objects, **settings, **own)
    model.learn(60)
    hyperparams = {"policy": policy, "policy_kwargs": policy_kwargs, "buffer_size": 200, "learning_rate": "lin_1e-3"}
    hyperparams |= own
    Agent.of(model, algo, "CartPole-v1", hyperparams, {}).write(tmp_path)
    agent = Agent.read(tmp_path / DESCRIPTION, tmp_path / WEIGHTS)
    loaded = agent.build()
    assert type(loaded) is type(model)
    assert type(loaded.policy) is type(model.policy)
    assert loaded.observation_space == model.observation_space
    assert loaded.action_space == model.action_space
    assert (loaded.num_timesteps, loaded.exploration_rate, loaded.buffer_size) == (60, model.exploration_rate, 200)
    assert loaded.lr_schedule(0.5) == pytest.approx(5e-4)
    assert own.items() <= vars(loaded).items()
    observations = np.array([model.observation_space.sample() for _ in range(20)])
    for network in ("q_net", "q_net_target"):
        q_values = getattr(loaded, network)(loaded.policy.obs_to_tensor(observations)[0])
        assert (q_values == model.q_net(model.policy.obs_to_tensor(observations)[0])).all()
    # And again through SB3's own file
    loaded.save(tmp_path / "model.zip")
    again = type(model).load(tmp_path / "model.zip", env=make(), device="cpu")
    again.learn(50)


def test_running_averages(tmp_path):
    env = VecNormalize(make_vec_env("CartPole-v1"), clip_obs=5.0)
    model = DQN("MlpPolicy", env, buffer_size=100, device="cpu")
    model.learn(50)
    hyperparams = {"policy": "MlpPolicy", "normalize": "{'clip_obs': 5.0}", "normalize_kwargs": {"clip_obs": 5.0}}
    Agent.of(model, "dqn", "CartPole-v1", hyperparams, {}).write(tmp_path)
    Agent.read(tmp_path / DESCRIPTION, tmp_path / WEIGHTS).build_normalization().save(
        str(tmp_path / "vec_normalize.pkl")
    )
    loaded = VecNormalize.load(str(tmp_path / "vec_normalize.pkl"), make_vec_env("CartPole-v1"))
    observations = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    assert (loaded.normalize_obs(observations) == env.normalize_obs(observations)).all()
    assert (loaded.ret_rms.var, loaded.ret_rms.count) == (env.ret_rms.var, env.ret_rms.count)
    assert loaded.training  # the Zoo stops it where it evaluates and plays


@pytest.mark.parametrize(
    ("hyperparams", "says"),
    [
        ({"policy": "MyPolicy"}, "policy must be one of MlpPolicy, CnnPolicy"),
        ({"policy": "MlpPolicy", "policy_kwargs": {"activation_fn": nn.Softmax}}, "activation_fn must be one of"),
        ({"policy": "MlpPolicy", "policy_kwargs": "dict(**{})"}, "policy_kwargs is not a literal"),
        ({"policy": "MlpPolicy", "policy_kwargs": "{[1]: 2}"}, "policy_kwargs is not a literal"),
        ({"policy": "MlpPolicy", "policy_kwargs": "(" * 500}, "policy_kwargs is not a literal"),
        (
            {"policy": "MlpPolicy", "vec_env_wrapper": "my.Wrapper"},
            "vec_env_wrapper must be one of dqn_ext.atari.native",
        ),
        ({}, "lacks policy"),
    ],
)
def test_what_has_no_plain_value(hyperparams, says):
    with pytest.raises(InvalidInput, match=says.replace("*", r"\*")):
        plain_hyperparameters(hyperparams)


@pytest.mark.parametrize("path", [HYPERPARAMS_DIR / "ddqn.yml", Path(rl_zoo3.__file__).parent / "hyperparams/dqn.yml"])
def test_packaged_hyperparameters_have_plain_values(path):
    for entry in yaml.safe_load(path.read_text()).values():
        assert plain_hyperparameters(entry)["policy"] == entry["policy"]


def test_classes_of_the_command_line():
    given = {"activation_fn": nn.Tanh, "optimizer_class": th.optim.AdamW, "net_arch": (64,)}
    given["optimizer_kwargs"] = {"betas": (0.9, 0.99)}
    plain = plain_hyperparameters({"policy": "MlpPolicy", "policy_kwargs": given, "train_freq": (4, "step")})
    expected = {"activation_fn": "Tanh", "optimizer_class": "AdamW", "net_arch": [64]}
    assert plain["policy_kwargs"] == {**expected, "optimizer_kwargs": {"betas": [0.9, 0.99]}}
    assert plain["train_freq"] == [4, "step"]


def test_running_averages_of_rewards_alone(tmp_path):
    env = VecNormalize(make_vec_env("CartPole-v1"), norm_obs=False)
    model = DQN("MlpPolicy", env, buffer_size=100, device="cpu").learn(50)
    hyperparams = {"policy": "MlpPolicy", "normalize": {"norm_obs": False}}
    Agent.of(model, "dqn", "CartPole-v1", hyperparams, {}).write(tmp_path)
    loaded = Agent.read(tmp_path / DESCRIPTION, tmp_path / WEIGHTS)
    assert loaded.build_normalization().ret_rms.var == env.ret_rms.var
    loaded.description["hyperparameters"]["normalize"] = True
    with pytest.raises(InvalidInput, match="must have obs where observations are normalized"):
        loaded.build_normalization()


def test_running_averages_that_do_not_go_together():
    env = VecNormalize(make_vec_env("FrozenLake-v1"), norm_obs=False)
    model = DQN("MlpPolicy", env, buffer_size=100, device="cpu")
    hyperparams = {"policy": "MlpPolicy", "normalize": {"norm_obs": False}}
    with pytest.raises(InvalidInput, match="normalization must be of a box of observations"):
        Agent.of(model, "dqn", "FrozenLake-v1", hyperparams, {})
    model = DQN("MlpPolicy", VecNormalize(make_vec_env("CartPole-v1")), buffer_size=100, device="cpu")
    description = Agent.of(model, "dqn", "CartPole-v1", {"policy": "MlpPolicy", "normalize": True}, {}).description
    description["hyperparameters"]["frame_stack"] = 4
    with pytest.raises(InvalidInput, match="must not have both normalize and frame_stack"):
        check_description(description)


def test_agents_that_cannot_be_described():
    model = DQN("MultiInputPolicy", SimpleMultiObsEnv(), buffer_size=10, device="cpu")
    with pytest.raises(InvalidInput, match="A space of the type Dict cannot be described"):
        Agent.of(model, "dqn", "CartPole-v1", {"policy": "MlpPolicy"}, {})
    model = DQN("MlpPolicy", "CartPole-v1", policy_kwargs={"net_arch": [8]}, buffer_size=10, device="cpu")
    with pytest.raises(InvalidInput, match="must be float32 of shape"):  # a config.yml of another agent
        Agent.of(model, "dqn", "CartPole-v1", {"policy": "MlpPolicy", "policy_kwargs": {"net_arch": [9]}}, {})


def test_every_argument_is_carried_or_not_for_a_reason():
    """A new argument of DDQN's needs a decision: else an agent that sets it can no longer be described."""
    not_of_a_run = {"policy", "device", "verbose", "seed", "tensorboard_log"}
    decided = set(HYPERPARAMETERS) | NOT_CARRIED | not_of_a_run
    assert argument_names(DDQN) <= decided, argument_names(DDQN) - decided
    assert ZOO_KEYS - decided == {"env_kwargs"}  # they stand beside the hyperparameters


def test_bounds_of_observations():
    def space(**values):
        fields = {"type": "box", "shape": [2], "dtype": "float32", "low": None, "high": None, **values}
        description = {"observation_space": fields, "action_space": {"n": 2, "start": 0}}
        return Agent(description, {}).spaces()[0]

    assert space() == spaces.Box(-np.inf, np.inf, (2,))
    assert space(low=[0, None], high=1) == spaces.Box(np.float32([0, -np.inf]), np.float32([1, 1]))
    assert space(dtype="uint8", low=0, high=255) == spaces.Box(0, 255, (2,), np.uint8)
    for wrong in (
        {"low": [0, 0, 0]},
        {"dtype": "uint8"},
        {"dtype": "uint8", "low": 0, "high": 256},
        {"low": 1, "high": 0},
    ):
        with pytest.raises(InvalidInput):
            space(**wrong)
