"""Which game is played and how its frames are preprocessed, read off environments that SB3 has built."""

from dataclasses import dataclass
from typing import Any

import ale_py
import gymnasium as gym
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker
from stable_baselines3.common.atari_wrappers import (
    AtariWrapper,
    ClipRewardEnv,
    EpisodicLifeEnv,
    FireResetEnv,
    MaxAndSkipEnv,
    NoopResetEnv,
    StickyActionEnv,
    WarpFrame,
)
from stable_baselines3.common.monitor import Monitor

from dqn_ext.errors import InvalidInput

# From outside in, as AtariWrapper nests them. Each may be absent, except for WarpFrame and Monitor
WRAPPERS: list[type[gym.Wrapper]] = [
    AtariWrapper,
    ClipRewardEnv,
    WarpFrame,
    FireResetEnv,
    EpisodicLifeEnv,
    MaxAndSkipEnv,
    NoopResetEnv,
    StickyActionEnv,
    Monitor,
    OrderEnforcing,
    PassiveEnvChecker,
]

# What a game may be made with, and the values that AtariEnv takes by itself
GAME_KWARGS: dict[str, Any] = {
    "game": None,
    "frameskip": 4,
    "repeat_action_probability": 0.25,
    "full_action_space": False,
    "max_num_frames_per_episode": None,
    "obs_type": "rgb",
    "render_mode": None,  # unused: native environments show nothing
}
NO_CAP = 2**31 - 1  # of an int in C++


@dataclass(frozen=True)
class AtariSettings:
    """The settings of SB3's ``AtariWrapper`` and of the game under it.

    :param game: ale-py's name of it, ``"ms_pacman"``
    :param noop_max: a game starts with fewer no-ops than this, in emulator frames
    :param frame_skip: emulator frames of a step
    :param height: of the frames, in pixels
    :param width: of the frames, in pixels
    :param episodic_life: whether a lost life ends an episode
    :param fire_reset: whether FIRE starts an episode
    :param clip_reward: whether rewards are -1, 0 or 1
    :param repeat_action_probability: of each emulator frame, to repeat the action of the last one
    :param full_action_space: all 18 actions, instead of those that the game knows
    :param max_frames: emulator frames after which a game is truncated
    """

    game: str
    noop_max: int
    frame_skip: int
    height: int
    width: int
    episodic_life: bool
    fire_reset: bool
    clip_reward: bool
    repeat_action_probability: float
    full_action_space: bool
    max_frames: int


def wrappers_of(env: gym.Env) -> list[Any]:
    """:return: the wrappers of an environment, from outside in"""
    wrappers = []
    while isinstance(env, gym.Wrapper):
        wrappers.append(env)
        env = env.env
    return wrappers


def read_settings(env: gym.Env) -> AtariSettings:
    """The settings of one of SB3's environments.

    :param env: an ale-py game in SB3's Atari wrappers
    :raises InvalidInput: on anything in it that native environments would do otherwise
    """
    if not isinstance(env.unwrapped, ale_py.AtariEnv) or env.unwrapped.spec is None:
        raise InvalidInput(f"native environments are games of ale-py, and {env.unwrapped} is none.")
    spec = env.unwrapped.spec
    kwargs = {**GAME_KWARGS, **spec.kwargs}
    if unknown := kwargs.keys() - GAME_KWARGS.keys():
        raise InvalidInput(f"native environments know no env_kwargs {', '.join(sorted(unknown))}.")
    if kwargs["obs_type"] != "rgb":
        raise InvalidInput(f"native environments need obs_type 'rgb', not {kwargs['obs_type']!r}.")
    if kwargs["frameskip"] != 1:
        raise InvalidInput(f"native environments need a game without frame skip of its own, and {spec.id} has one.")

    wrappers = {type(wrapper): wrapper for wrapper in wrappers_of(env)}
    if unknown_wrappers := [wrapper.__name__ for wrapper in wrappers if wrapper not in WRAPPERS]:
        raise InvalidInput(f"native environments know no {', '.join(unknown_wrappers)}.")
    if [type(wrapper) for wrapper in wrappers_of(env)] != [wrapper for wrapper in WRAPPERS if wrapper in wrappers]:
        raise InvalidInput("native environments know the wrappers of AtariWrapper once each, in its order.")
    if WarpFrame not in wrappers or Monitor not in wrappers:
        raise InvalidInput("native environments do what AtariWrapper does: env_wrapper must name it.")
    monitor = wrappers[Monitor]
    if monitor.info_keywords or monitor.reset_keywords:
        raise InvalidInput("native environments know no monitor_kwargs info_keywords and reset_keywords.")
    repeat_action_probability = kwargs["repeat_action_probability"]
    if StickyActionEnv in wrappers:
        if repeat_action_probability > 0:
            raise InvalidInput(f"native environments repeat actions by one rule, and {spec.id} has one beside yours.")
        repeat_action_probability = wrappers[StickyActionEnv].action_repeat_probability

    return AtariSettings(
        game=kwargs["game"],
        noop_max=wrappers[NoopResetEnv].noop_max if NoopResetEnv in wrappers else 0,
        frame_skip=wrappers[MaxAndSkipEnv]._skip if MaxAndSkipEnv in wrappers else 1,
        height=wrappers[WarpFrame].height,
        width=wrappers[WarpFrame].width,
        episodic_life=EpisodicLifeEnv in wrappers,
        fire_reset=FireResetEnv in wrappers,
        clip_reward=ClipRewardEnv in wrappers,
        repeat_action_probability=repeat_action_probability,
        full_action_space=kwargs["full_action_space"],
        max_frames=kwargs["max_num_frames_per_episode"] or NO_CAP,
    )
