"""Checks of DDQN's hyperparameters, before anything is built from them."""

import difflib
import inspect
from collections.abc import Iterable, Iterator, Mapping
from numbers import Integral, Real
from typing import Any

from stable_baselines3.common.buffers import ReplayBuffer

from dqn_ext.errors import InvalidInput
from dqn_ext.replay import check_settings as check_replay_settings

_WHOLE_NUMBERS = {
    "batch_size": 1,
    "buffer_size": 1,
    "target_update_interval": 1,
    "n_steps": 1,
    "n_envs": 1,
    "frame_stack": 1,
    "checkpoint_freq": 0,  # 0: no checkpoints
    "learning_starts": 0,
    "gradient_steps": -1,  # -1: as many as steps were collected
    "stats_window_size": 1,
}
_MOST = 2**53  # of a whole number: beyond it numbers of other kinds cannot tell it from the next one
_FRACTIONS = ("gamma", "tau", "exploration_fraction", "exploration_initial_eps", "exploration_final_eps")


def check_names(names: Iterable[str], allowed: Iterable[str], owner: str = "ddqn") -> None:
    """:raises InvalidInput: on a name that is not ``allowed``, with the nearest one that is"""
    allowed = sorted(allowed)
    for name in names:
        if name not in allowed:
            nearest = difflib.get_close_matches(name, allowed, n=1, cutoff=0)
            hint = f"did you mean {nearest[0]!r}?" if nearest else "it has none."
            raise InvalidInput(f"{name!r} is not a hyperparameter of {owner}; {hint}")


def check_arguments(names: Iterable[str], owner: type, described: str, given: Iterable[str] = ()) -> None:
    """Check the names of what a class will be called with. One of the user's that takes ``**kwargs`` may know any.

    :param given: names that are not for the user to set
    :raises InvalidInput: on a name that it does not take
    """
    for cls, parameters in _constructors(owner):
        if not cls.__module__.startswith(("dqn_ext.", "stable_baselines3.")) and _take_any_name(parameters):
            return
    check_names(names, argument_names(owner) - set(given), described)


def check_values(hyperparams: Mapping[str, Any]) -> None:
    """Check the values that are given; names that are absent or of other owners are passed over.

    :raises InvalidInput: on a value that is of the wrong type or out of range
    """
    for name, least in _WHOLE_NUMBERS.items():
        if name in hyperparams and not _is_whole(hyperparams[name], least):
            raise InvalidInput(f"{name} must be a whole number of at least {least}, not {hyperparams[name]!r}.")
        if int(hyperparams.get(name, 0)) > _MOST:
            raise InvalidInput(f"{name} must be at most {_MOST}, not {hyperparams[name]!r}.")

    if not isinstance(value := hyperparams.get("stats_window_size", 1), int):  # SB3 takes Python's own only
        raise InvalidInput(f"stats_window_size must be a plain whole number, not {value!r}.")

    for name in _FRACTIONS:
        value = hyperparams.get(name, 0)
        if not (_is_real(value) and 0 <= value <= 1):
            raise InvalidInput(f"{name} must lie in [0, 1], not be {value!r}.")

    for name in ("double_q", "overlap", "optimize_memory_usage"):
        if not isinstance(hyperparams.get(name, True), bool):
            raise InvalidInput(f"{name} must be True or False, not {hyperparams[name]!r}.")

    value = hyperparams.get("seed")
    if value is not None and not (_is_whole(value, 0) and value < 2**32):
        raise InvalidInput(f"seed must be a whole number from 0 to 2**32 - 1, or None, not {value!r}.")
    value = hyperparams.get("max_grad_norm", 1)
    if not (_is_real(value) and value > 0):
        raise InvalidInput(f"max_grad_norm must be a number above 0, not {value!r}.")
    value = hyperparams.get("reward_bound")
    if value is not None and not (_is_real(value) and 0 < value <= 1e9):
        raise InvalidInput(f"reward_bound must be a number above 0, at most 1e9, or None, not {value!r}.")
    value = hyperparams.get("learning_rate", 1)
    # SB3 takes numbers of Python's own kinds, or a schedule
    if not callable(value) and not (_is_real(value) and isinstance(value, (int, float)) and 0 < value < 1e9):
        raise InvalidInput(f"learning_rate must be a plain number above 0, or a schedule, not {value!r}.")

    for name in ("policy_kwargs", "replay_buffer_kwargs"):
        value = hyperparams.get(name)
        if not (value is None or isinstance(value, Mapping)):
            raise InvalidInput(f"{name} must name arguments and their values, {{name: value}}, not {value!r}.")
    value = hyperparams.get("replay_buffer_class")
    if not (value is None or (isinstance(value, type) and issubclass(value, ReplayBuffer))):
        raise InvalidInput(f"replay_buffer_class must be a subclass of SB3's ReplayBuffer, not {value!r}.")

    train_freq = hyperparams.get("train_freq", 1)
    frequency, unit = (
        train_freq if isinstance(train_freq, (tuple, list)) and len(train_freq) == 2 else (train_freq, "step")
    )
    # Of Python's own kind, SB3 takes no other
    if not (_is_whole(frequency, 1) and isinstance(frequency, int)) or getattr(unit, "value", unit) not in (
        "step",
        "episode",
    ):
        raise InvalidInput(
            f"train_freq must be a whole number of at least 1, alone or with its unit 'step' or 'episode', "
            f"not {train_freq!r}."
        )
    if getattr(unit, "value", unit) == "episode" and hyperparams.get("n_envs", 1) > 1:
        raise InvalidInput(f"train_freq must be in steps with several environments (n_envs), not {train_freq!r}.")

    check_replay_settings(hyperparams.get("replay_buffer_kwargs") or {})

    buffer_size, batch_size = hyperparams.get("buffer_size"), hyperparams.get("batch_size")
    if buffer_size is not None and batch_size is not None and buffer_size < batch_size:
        raise InvalidInput(f"buffer_size must be at least batch_size ({batch_size}), not {buffer_size}.")
    n_steps = hyperparams.get("n_steps")
    n_envs = hyperparams.get("n_envs", 1)
    if buffer_size is not None and n_steps is not None and max(buffer_size // n_envs, 1) < n_steps:
        raise InvalidInput(
            f"n_steps must be at most what buffer_size has of an environment ({buffer_size} / {n_envs}), not {n_steps}."
        )


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least


def _is_real(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def argument_names(owner: type) -> set[str]:
    """The keywords that a class's constructor and its parents' take, and a user may set."""
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = [parameter for _, parameters in _constructors(owner) for parameter in parameters]
    names = {parameter.name for parameter in parameters if parameter.kind not in variadic}
    # The Zoo or the algorithm sets these itself
    given = {"self", "env", "observation_space", "action_space", "lr_schedule"}
    return {name for name in names if not name.startswith("_")} - given


def _constructors(owner: type) -> Iterator[tuple[type, list[inspect.Parameter]]]:
    """A class's and its parents', as far as each hands on what it does not name itself; and what they take."""
    for cls in owner.__mro__:
        if "__init__" in vars(cls):
            parameters = list(inspect.signature(vars(cls)["__init__"]).parameters.values())
            yield cls, parameters
            if not _take_any_name(parameters):
                return


def _take_any_name(parameters: Iterable[inspect.Parameter]) -> bool:
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
