"""Objects as plain data, which ``torch.load(weights_only=True)`` reads: no program hides in a checkpoint's state."""

import types
from collections import deque
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from ale_py import Action, ALEInterface, ALEState
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from stable_baselines3.common.monitor import ResultsWriter
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecEnvWrapper
from stable_baselines3.common.vec_env.stacked_observations import StackedObservations

_PLAIN = (type(None), bool, int, float, str, bytes)
# Never change while a run goes on; the random generator of an action space is kept with the agent
_CONSTANT = (spaces.Space, EnvSpec, type, types.FunctionType, types.MethodType, types.BuiltinFunctionType, Action)
# Parts of a layer, whose attributes are its state
_PARTS = (StackedObservations, RunningMeanStd)
_GENERATORS = ("PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64")


class NotPlain(Exception):
    """An object whose state cannot be read."""


def attributes(layer: object) -> dict[str, Any]:
    """The state of one object: those of its attributes that may change.

    :raises NotPlain: where one of them is no plain data, or an array shares memory with another's
    """
    state: dict[str, Any] = {}
    names: dict[int, str] = {}  # of those that can be changed in place, by identity
    arrays: dict[str, np.ndarray] = {}
    for name, value in vars(layer).items():
        if _is_constant(value) or _is_elsewhere(layer, name, value):
            continue
        if type(value) not in _PLAIN and names.setdefault(id(value), name) != name:
            state[name] = {"same": names[id(value)]}
            continue
        try:
            state[name] = encode(value)
        except NotPlain as error:
            raise NotPlain(f"{type(layer).__name__} keeps a {error} in {name}") from error
        if isinstance(value, np.ndarray):
            for other, array in arrays.items():
                if np.may_share_memory(value, array):
                    raise NotPlain(f"{type(layer).__name__} keeps one array in {other} and {name}")
            arrays[name] = value
    return state


def set_attributes(layer: object, state: dict[str, Any]) -> None:
    """The inverse of :func:`attributes`, for an object that was built alike."""
    for name, value in state.items():
        if isinstance(value, dict) and "same" in value:
            setattr(layer, name, getattr(layer, value["same"]))
        else:
            # Some have no such attribute before their first reset
            setattr(layer, name, decode(value, vars(layer).get(name)))


def _is_elsewhere(layer: object, name: str, value: Any) -> bool:
    """What a wrapper wraps is a layer of its own, as is a file; and SB3's VecEnvWrapper lists its class's members."""
    wraps = isinstance(layer, (gym.Wrapper, VecEnvWrapper)) and name in ("env", "venv", "class_attributes")
    return wraps or isinstance(value, ResultsWriter)


def _is_constant(value: Any) -> bool:
    return isinstance(value, _CONSTANT) or (
        isinstance(value, (list, tuple)) and len(value) > 0 and all(_is_constant(item) for item in value)
    )


def encode(value: Any) -> Any:
    """Numbers, strings, arrays, random generators, emulators, and containers of these, as plain data.

    :raises NotPlain: with the type's name, where it is something else
    """
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind is list:
        return [encode(item) for item in value]
    if isinstance(value, np.ndarray):
        return _tensor(value)
    if isinstance(value, np.generic):
        return {"scalar": _tensor(np.asarray(value))}
    if kind is tuple:
        return {"tuple": [encode(item) for item in value]}
    if kind is deque:
        return {"deque": [encode(item) for item in value], "maxlen": value.maxlen}
    if isinstance(value, dict):
        return {"dict": [[encode(key), encode(item)] for key, item in value.items()]}
    if isinstance(value, np.random.Generator):
        return {"generator": type(value.bit_generator).__name__, "state": encode(value.bit_generator.state)}
    if isinstance(value, _PARTS):
        return {"part": attributes(value)}
    if isinstance(value, ALEInterface):
        return {"emulator": value.cloneState(include_rng=True).serialize()}
    raise NotPlain(kind.__name__)


def decode(encoded: Any, current: Any = None) -> Any:
    """The inverse of :func:`encode`.

    :param current: what stands in its place now: parts and emulators are not made anew, but set to their state
    """
    if isinstance(encoded, th.Tensor):
        return encoded.numpy()
    if isinstance(encoded, list):
        return [decode(item) for item in encoded]
    if not isinstance(encoded, dict):
        return encoded
    tag = next(iter(encoded))
    content = encoded[tag]
    if tag == "scalar":
        return content.numpy()[()]
    if tag == "tuple":
        return tuple(decode(item) for item in content)
    if tag == "deque":
        return deque((decode(item) for item in content), encoded["maxlen"])
    if tag == "dict":
        known = current if isinstance(current, dict) else {}
        return {decode(key): decode(item, known.get(decode(key))) for key, item in content}
    if tag == "generator" and content in _GENERATORS:
        bit_generator = getattr(np.random, content)()
        bit_generator.state = decode(encoded["state"])
        return np.random.Generator(bit_generator)
    if tag == "part" and isinstance(current, _PARTS):
        set_attributes(current, content)
        return current
    if tag == "emulator" and isinstance(current, ALEInterface):
        current.restoreState(ALEState(content))
        return current
    raise ValueError(f"it holds an unknown {tag}")


def _tensor(array: np.ndarray) -> th.Tensor:
    try:
        # Strides and all: they decide how a convolution is computed, and so its rounding
        return th.from_numpy(array.copy(order="K"))
    except (TypeError, ValueError) as error:
        raise NotPlain(f"{array.dtype} array") from error
