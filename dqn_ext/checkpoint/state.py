"""What decides how a run goes on, beside the weights and the replay memory, which have files of their own."""

import inspect
import random
import time
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch as th
from stable_baselines3 import DQN
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper

from dqn_ext.checkpoint.plain import NotPlain, attributes, decode, encode, set_attributes
from dqn_ext.ddqn import DDQN
from dqn_ext.errors import InvalidInput
from dqn_ext.replay.seams import break_off

_COUNTERS = (
    "num_timesteps",
    "_episode_num",
    "_n_calls",
    "_n_updates",
    "_current_progress_remaining",
    "exploration_rate",
    "ep_info_buffer",
    "ep_success_buffer",
)
_COUNTERS_OF_DDQN = ("_num_timesteps_at_last_train", "_due")
_LAST_STEP = ("_last_obs", "_last_episode_starts", "_last_original_obs")


def identity(model: DQN) -> dict[str, str]:
    """What must be the same where a checkpoint is read again."""
    return {
        "algorithm": type(model).__name__,
        "observation space": str(model.observation_space),
        "action space": str(model.action_space),
        "environments": str(model.n_envs),
    }


def capture(model: DQN, callbacks: Mapping[str, BaseCallback]) -> dict[str, Any]:
    """The state of a run, as plain data. Changes nothing."""
    assert model.env is not None
    games = env_state(model.env)
    counters = _COUNTERS + _COUNTERS_OF_DDQN if isinstance(model, DDQN) else _COUNTERS
    return {
        "counters": {name: encode(getattr(model, name)) for name in counters},
        "learns": isinstance(model, DDQN) and model.is_learning,
        "bfloat16": getattr(model.q_net, "compute_dtype", None) == th.bfloat16,
        "games": games,
        "last_step": {name: encode(getattr(model, name)) for name in _LAST_STEP} if isinstance(games, list) else None,
        "seconds": _seconds(model.env),
        "normalization": None if model._vec_normalize_env is None else _statistics(model._vec_normalize_env),
        "callbacks": {name: _callback_state(callback) for name, callback in callbacks.items()},
        "evaluation": {
            name: env_state(callback.eval_env) for name, callback in callbacks.items() if hasattr(callback, "eval_env")
        },
        "random": _random_state(model),
    }


def restore(model: DQN, callbacks: Mapping[str, BaseCallback], state: dict[str, Any], seed: int) -> str | None:
    """The inverse of :func:`capture`, for a run that was set up alike.

    :param seed: for games that start anew, since their state could not be kept
    :return: why they do, if so
    """
    assert model.env is not None
    if isinstance(model, DDQN) and state["learns"]:
        model.prepare_learning().go_on(state.get("bfloat16"))  # not in older checkpoints
    if state["normalization"] is not None:
        set_attributes(model._vec_normalize_env, state["normalization"])
    games, reason = state["games"], None
    if isinstance(games, list):
        set_env_state(model.env, games)
        for name, value in state["last_step"].items():
            setattr(model, name, decode(value))
    else:
        reason = str(games)
        model.env.seed(seed % 2**32)
        model._last_obs = model.env.reset()  # type: ignore[assignment]
        break_off(model.replay_buffer)
        if model._vec_normalize_env is not None:
            model._last_original_obs = model._vec_normalize_env.get_original_obs()
    _set_seconds(model.env, state.get("seconds"))  # not in the oldest checkpoints
    for key, callback in callbacks.items():
        set_attributes(callback, state["callbacks"].get(key, {}))
        if isinstance(games := state["evaluation"].get(key), list):
            set_env_state(callback.eval_env, games)  # type: ignore[attr-defined]
    for name, value in state["counters"].items():
        setattr(model, name, decode(value))
    model._num_timesteps_at_start = model.num_timesteps
    # At last: what stands above may have drawn
    _set_random_state(model, state["random"])
    return reason


# ---------------------------------------------------------------------- random generators


def _random_state(model: DQN) -> dict[str, Any]:
    return {
        "python": encode(random.getstate()),
        "numpy": encode(np.random.get_state(legacy=False)),
        "torch": th.get_rng_state(),
        "cuda": th.cuda.get_rng_state_all() if model.device.type == "cuda" else [],
        "actions": encode(model.action_space.np_random),
    }


def _set_random_state(model: DQN, state: dict[str, Any]) -> None:
    random.setstate(decode(state["python"]))
    np.random.set_state(decode(state["numpy"]))
    th.set_rng_state(state["torch"])
    if state["cuda"] and model.device.type == "cuda":
        th.cuda.set_rng_state_all(state["cuda"][: th.cuda.device_count()])  # this machine may have fewer
    model.action_space._np_random = decode(state["actions"])


# ---------------------------------------------------------------------- environments


def env_state(env: VecEnv) -> list[Any] | str:
    """The state of vectorized environments and all their wrappers, or why it cannot be read."""
    try:
        states: list[Any] = []
        while isinstance(env, VecEnvWrapper):
            states.append(attributes(env))
            env = env.venv
        if type(env) is not DummyVecEnv:
            raise NotPlain(f"the state of {type(env).__name__} cannot be read")
        # Seeds for the next reset, if none has been yet
        states.append({"_seeds": encode(env._seeds), "_options": encode(env._options)})
        states += [[attributes(layer) for layer in _layers(game)] for game in env.envs]
    except NotPlain as error:
        return str(error)
    return states


def set_env_state(env: VecEnv, states: list[Any]) -> None:
    """The inverse of :func:`env_state`."""
    remaining = iter(states)
    while isinstance(env, VecEnvWrapper):
        set_attributes(env, next(remaining))
        env = env.venv
    if type(env) is not DummyVecEnv:
        raise ValueError(f"it was written with a DummyVecEnv, and this is a {type(env).__name__}")
    set_attributes(env, next(remaining))
    for game, layers in zip(env.envs, remaining, strict=True):
        for layer, state in zip(_layers(game), layers, strict=True):
            set_attributes(layer, state)


def _seconds(env: VecEnv) -> list[float] | None:
    """The time that the monitor files count in their column ``t``."""
    return [time.time() - start for start in env.get_attr("t_start")] if env.has_attr("t_start") else None


def _set_seconds(env: VecEnv, seconds: list[float] | None) -> None:
    """Let them count on from there: nothing was done in the time between."""
    if seconds is not None and env.has_attr("t_start"):
        for index, elapsed in enumerate(seconds):
            env.env_method("set_wrapper_attr", "t_start", time.time() - elapsed, indices=index)


def _layers(game: Any) -> Iterator[Any]:
    yield game
    while game is not game.unwrapped:
        game = game.env
        yield game


def _statistics(env: VecEnvWrapper) -> dict[str, Any]:
    return {name: value for name, value in attributes(env).items() if name in ("obs_rms", "ret_rms")}


# ---------------------------------------------------------------------- callbacks


def callbacks_below(root: BaseCallback) -> dict[str, BaseCallback]:
    """All callbacks of a run, by a name that stays the same where others are added (a progress bar, say)."""
    counts: dict[str, int] = {}
    found, waiting = {}, [root]
    while waiting:
        callback = waiting.pop(0)
        name = type(callback).__name__
        counts[name] = counts.get(name, 0) + 1
        found[f"{name} {counts[name]}"] = callback
        for children in (getattr(callback, name, None) for name in ("callbacks", "callback", "callback_on_new_best")):
            waiting += [
                child
                for child in (children if isinstance(children, list) else [children])
                if isinstance(child, BaseCallback)
            ]
    return found


def _callback_state(callback: BaseCallback) -> dict[str, Any]:
    """Counters and records. Settings, which the command gives again, are those of its constructor, and strings."""
    state: dict[str, Any] = {}
    settings = {*inspect.signature(type(callback).__init__).parameters, "verbose", "callbacks", "locals", "globals"}
    for name, value in vars(callback).items():
        if isinstance(value, (int, float, np.generic, np.ndarray, list, tuple, dict, deque)) and name not in settings:
            try:
                state[name] = encode(value)
            except NotPlain:
                continue
    return state


def check_identity(model: DQN, theirs: dict[str, str]) -> None:
    """:raises InvalidInput: where a checkpoint is of another game, algorithm or number of environments"""
    for name, ours in identity(model).items():
        if theirs.get(name) != ours:
            raise InvalidInput(f"its {name} is {theirs.get(name)}, and here it is {ours}")
