"""SB3's environments beside ours, and a twin of ours made of SB3's wrappers."""

from typing import Any

import ale_py
import cv2
import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.atari_wrappers import (
    AtariWrapper,
    ClipRewardEnv,
    EpisodicLifeEnv,
    FireResetEnv,
    MaxAndSkipEnv,
)
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv

gym.register_envs(ale_py)


def make(game: str, wrapper: Any = AtariWrapper, n_envs: int = 1, seed: int = 0, **kwargs: Any) -> VecEnv:
    """SB3's environments of a game, as the Zoo makes them. Without no-op starts unless ``wrapper_kwargs`` say so."""
    wrapper_kwargs = {"noop_max": 0, **kwargs.pop("wrapper_kwargs", {})}
    return make_vec_env(
        lambda **env_kwargs: gym.make(f"{game}NoFrameskip-v4", **env_kwargs),
        n_envs=n_envs,
        seed=seed,
        wrapper_class=wrapper,
        wrapper_kwargs=wrapper_kwargs,
        **kwargs,
    )


class Grey(gym.ObservationWrapper):
    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self.observation_space = spaces.Box(0, 255, env.observation_space.shape[:2], np.uint8)

    def observation(self, frame):
        return cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)


class Resize(gym.ObservationWrapper):
    def __init__(self, env: gym.Env, size: int) -> None:
        super().__init__(env)
        self.size = size
        self.observation_space = spaces.Box(0, 255, (size, size, 1), np.uint8)

    def observation(self, frame):
        return cv2.resize(frame, (self.size, self.size), interpolation=cv2.INTER_AREA)[:, :, None]


def grey_first(
    env: gym.Env,
    noop_max: int,
    frame_skip: int = 4,
    screen_size: int = 84,
    terminal_on_life_loss: bool = True,
    clip_reward: bool = True,
) -> gym.Env:
    """AtariWrapper, except that the maximum of two frames is taken of their greys: ours, of SB3's parts."""
    assert noop_max == 0
    env = Grey(env)
    if frame_skip > 1:
        env = MaxAndSkipEnv(env, skip=frame_skip)
    if terminal_on_life_loss:
        env = EpisodicLifeEnv(env)
    if "FIRE" in env.unwrapped.get_action_meanings():
        env = FireResetEnv(env)
    env = Resize(env, screen_size)
    return ClipRewardEnv(env) if clip_reward else env
