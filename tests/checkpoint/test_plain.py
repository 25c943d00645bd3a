"""Environments of a user's own: what of them is kept with a checkpoint, and what is said where it cannot be."""

import enum

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv

from dqn_ext.checkpoint.plain import NotPlain, attributes
from dqn_ext.checkpoint.state import env_state, set_env_state


class Walk(gym.Env):
    """A number that goes up and down by chance."""

    observation_space, action_space = spaces.Box(-np.inf, np.inf, (3,), np.float32), spaces.Discrete(2)

    def __init__(self) -> None:
        self.reset()

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = np.zeros(3, np.float32)
        return self.place.copy(), {}

    def step(self, action):
        self.place += (2 * action - 1) * self.np_random.random(3)
        return self.place.copy(), float(self.place[0]), False, False, {}


class TwoNames(Walk):
    """One array, and one generator, under two names each."""

    def reset(self, *, seed=None, options=None):
        observation, info = super().reset(seed=seed)
        self.same_place, self.generator = self.place, self.np_random
        return observation, info

    def step(self, action):
        self.same_place += self.generator.random(3)
        return super().step(action)


class Row(Walk):
    """An array, and a part of it."""

    def reset(self, *, seed=None, options=None):
        self.board = np.zeros((2, 3), np.float32)
        super().reset(seed=seed)
        self.place = self.board[1]
        return self.place.copy(), {}


class Way(enum.Enum):
    """Which way it goes."""

    UP, DOWN = 1, 2


class Turning(Walk):
    """What it does next is a member of an enumeration."""

    way = Way.UP

    def step(self, action):
        self.way = Way.DOWN if self.way is Way.UP else Way.UP
        return super().step(self.way.value - 1)


class Adapter(Walk):
    """A game inside another one, which is no wrapper."""

    def __init__(self) -> None:
        self.game = gym.make("CartPole-v1")
        super().__init__()


def steps(env, n):
    return np.array([env.step(np.array([step % 2]))[0] for step in range(n)])


@pytest.mark.parametrize("kind", [Walk, TwoNames])
def test_they_go_on(kind):
    env, other = DummyVecEnv([kind]), DummyVecEnv([kind])
    for each, seed in ((env, 1), (other, 2)):
        each.seed(seed)
        each.reset()
    steps(env, 5)
    set_env_state(other, env_state(env))
    assert np.array_equal(steps(other, 5), steps(env, 5))


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Row, "Row keeps one array in board and place"),
        (Turning, "Turning keeps a Way in way"),
        (Adapter, r"Adapter keeps a \w*TimeLimit in game"),
    ],
)
def test_they_start_anew_and_it_is_said(kind, reason):
    """Rather than go on from half of a state."""
    env = DummyVecEnv([kind])
    env.reset()
    steps(env, 2)
    with pytest.raises(NotPlain, match=f"^{reason}$"):
        attributes(env.envs[0])
    assert isinstance(env_state(env), str)
