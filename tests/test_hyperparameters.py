import math
import re
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.envs import FakeImageEnv
from stable_baselines3.common.type_aliases import TrainFrequencyUnit
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack
from stable_baselines3.dqn.policies import DQNPolicy

from dqn_ext import DDQN, FrameReplayBuffer
from dqn_ext.errors import Diverged, InvalidInput
from dqn_ext.features import NatureCNN
from dqn_ext.hyperparameters import argument_names, check_names, check_values
from dqn_ext.policies import CnnPolicy


@pytest.mark.parametrize("name", ["batch_size", "buffer_size", "target_update_interval", "n_steps", "train_freq"])
@pytest.mark.parametrize("value", [0, -1, 1.5, "4", None, True])
def test_counts_below_one(name, value):
    with pytest.raises(InvalidInput, match=rf"^{name} must be a whole number of at least 1.* not {value!r}\.$"):
        check_values({name: value})


@pytest.mark.parametrize("name", ["gamma", "tau", "exploration_fraction", "exploration_final_eps"])
@pytest.mark.parametrize("value", [-0.1, 1.01, float("nan"), "0.99"])
def test_fractions_outside_the_unit_interval(name, value):
    with pytest.raises(InvalidInput, match=rf"^{name} must lie in \[0, 1\], not be {value!r}\.$"):
        check_values({name: value})


@pytest.mark.parametrize("value", [(4, "episodes"), (0, "step"), (1, "step", 2)])
def test_train_freq_with_a_unit(value):
    with pytest.raises(InvalidInput, match="train_freq must be"):
        check_values({"train_freq": value})
    check_values({"train_freq": (4, "episode")})


def test_buffer_smaller_than_a_batch():
    with pytest.raises(InvalidInput, match=r"^buffer_size must be at least batch_size \(32\), not 31\.$"):
        check_values({"batch_size": 32, "buffer_size": 31})
    check_values({"batch_size": 32, "buffer_size": 32})


@pytest.mark.parametrize("value", [0, -1e-4, "1e-4", float("nan"), 1e300, np.float32(0.1)])
def test_learning_rate(value):
    with pytest.raises(InvalidInput, match="learning_rate must be a plain number above 0"):
        check_values({"learning_rate": value})


@pytest.mark.parametrize("value", [0, -100, "100", True, float("nan"), 1e300])
def test_reward_bound(value):
    with pytest.raises(
        InvalidInput,
        match="^reward_bound must be a number above 0, at most 1e9, or None, not " + re.escape(repr(value)),
    ):
        check_values({"reward_bound": value})
    check_values({"reward_bound": 1})


def test_the_constructor_checks():
    with pytest.raises(InvalidInput, match="gamma must lie"):
        DDQN("MlpPolicy", "CartPole-v1", gamma=2)


VALUES = [None, -1, 0, 1, 0.5, 1.5, math.nan, math.inf, "x", "", [], {}, (1, 2, 3), True, 1e300, object(), 10**30]
VALUES += [np.float32(0.5), np.int64(3)]
NOT_OF_A_RUN = {"policy", "device", "verbose", "seed", "tensorboard_log"}


SETTINGS = {"learning_starts": 10, "buffer_size": 200, "batch_size": 8, "device": "cpu", "seed": 0}


def test_the_settings_that_values_are_tried_with():
    assert DDQN("MlpPolicy", "CartPole-v1", **SETTINGS).learn(20)._n_updates > 0


@pytest.mark.parametrize("name", sorted(argument_names(DDQN) - NOT_OF_A_RUN))
def test_any_value_runs_or_gets_a_sentence(name):
    """And nothing else: no traceback from the depths, no agent whose weights are no numbers."""
    for value in VALUES:
        if name == "train_freq" and value == 10**30:  # would run, for ages
            continue
        try:
            model = DDQN("MlpPolicy", "CartPole-v1", **{**SETTINGS, name: value})
            model.learn(20)
        except (InvalidInput, Diverged):
            continue
        assert all(weights.isfinite().all() for weights in model.policy.parameters()), (name, value)


NESTED = {
    "policy_kwargs": argument_names(CnnPolicy),
    "features_extractor_kwargs": argument_names(NatureCNN),
    "replay_buffer_kwargs": argument_names(FrameReplayBuffer),
}


@pytest.mark.parametrize(("owner", "name"), [(owner, name) for owner in NESTED for name in sorted(NESTED[owner])])
def test_any_nested_value_makes_an_agent_or_gets_a_sentence(owner, name):
    env = VecFrameStack(DummyVecEnv([lambda: FakeImageEnv(40, 40, n_channels=1, discrete=True)]), 4)
    nested = {"dueling": True, "features_extractor_kwargs": {"features_dim": 16}}
    DDQN("CnnPolicy", env, buffer_size=100, device="cpu", policy_kwargs=nested).replay_buffer.size()  # without a value
    for value in [None, -1, 0, 0.5, 16, "x", [8], ["raw"], {}, (1, 2, 3), object(), 10**30]:
        settings = {"policy_kwargs": {"features_extractor_kwargs": {"features_dim": 16}}, owner: {name: value}}
        if owner == "features_extractor_kwargs":
            settings = {"policy_kwargs": {"dueling": True, owner: {name: value}}}
        with suppress(InvalidInput):
            DDQN("CnnPolicy", env, buffer_size=100, device="cpu", **settings).replay_buffer.size()


def test_a_list_for_train_freq():
    assert DDQN("MlpPolicy", "CartPole-v1", train_freq=[2, "episode"]).train_freq == (2, TrainFrequencyUnit.EPISODE)


def test_several_steps_of_several_environments():
    with pytest.raises(InvalidInput, match=r"n_steps must be at most what buffer_size has of an .* \(64 / 8\), not 9"):
        check_values({"n_envs": 8, "buffer_size": 64, "n_steps": 9})
    check_values({"n_envs": 8, "buffer_size": 64, "n_steps": 8})


def test_nearest_name():
    with pytest.raises(
        InvalidInput, match="'learning_rte' is not a hyperparameter of ddqn; did you mean 'learning_rate'"
    ):
        check_names(["gamma", "learning_rte"], argument_names(DDQN))
    with pytest.raises(InvalidInput, match=r"'x' is not a hyperparameter of a memory; it has none\."):
        check_names(["x"], [], "a memory")


class PopsItsOwn:
    def __init__(self, *names: Any, **options: Any) -> None:
        self.extra = options.pop("extra", 1)
        super().__init__(*names, **options)


class OwnPolicy(PopsItsOwn, DQNPolicy):
    pass


class OwnMemory(PopsItsOwn, ReplayBuffer):
    pass


class FixedPolicy(DQNPolicy):
    pass


def test_arguments_of_classes_of_ones_own():
    """They may take names that no signature has; where none is taken unnamed, a wrong one is still found."""
    settings = {"replay_buffer_class": OwnMemory, "replay_buffer_kwargs": {"extra": 3}}
    model = DDQN(OwnPolicy, "CartPole-v1", policy_kwargs={"extra": 2}, **settings, **SETTINGS)
    assert (model.policy.extra, model.replay_buffer.extra) == (2, 3)
    assert not {"names", "options"} & argument_names(OwnPolicy)
    with pytest.raises(InvalidInput, match="'extra' is not a hyperparameter of FixedPolicy"):
        DDQN(FixedPolicy, "CartPole-v1", policy_kwargs={"extra": 2}, **SETTINGS)
    with pytest.raises(InvalidInput, match=r"replay memory .* cannot be made: .*'extr'"):
        DDQN(
            "MlpPolicy", "CartPole-v1", **{**settings, "replay_buffer_kwargs": {"extr": 3}}, **SETTINGS
        ).replay_buffer.size()


def test_an_error_of_ones_own_schedule_is_no_policys():
    with pytest.raises(ZeroDivisionError):
        DDQN(
            "MlpPolicy",
            "CartPole-v1",
            learning_rate=lambda progress: 1 / (progress - 1),
            policy_kwargs={"net_arch": []},
        )
    with pytest.raises(InvalidInput, match=r"seed must be a whole number from 0 to 2\*\*32 - 1, or None, not -1\."):
        DDQN("MlpPolicy", "CartPole-v1", seed=-1, policy_kwargs={"net_arch": []})


def test_argument_names():
    names = argument_names(DDQN)
    assert {"policy", "learning_rate", "double_q", "n_steps", "max_grad_norm"} <= names
    assert not {"self", "env", "args", "kwargs", "_init_setup_model", "use_sde", "action_noise"} & names
