"""Checks of DDQN's hyperparameters, before anything is built from them."""

import difflib
import inspect
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from typing import Any

from dqn_ext.errors import InvalidInput
from dqn_ext.replay import check_settings as check_replay_settings

_WHOLE_NUMBERS = {
    "batch_size": 1,
    "buffer_size": 1,
    "target_update_interval": 1,
    "n_steps": 1,
    "n_envs": 1,
    "checkpoint_freq": 0,  # 0: no checkpoints
    "learning_starts": 0,
    "gradient_steps": -1,  # -1: as many as steps were collected
}
_FRACTIONS = ("gamma", "tau", "exploration_fraction", "exploration_initial_eps", "exploration_final_eps")


def check_names(names: Iterable[str], allowed: Iterable[str], owner: str = "ddqn") -> None:
    """:raises InvalidInput: on a name that is not ``allowed``, with the nearest one that is"""
    allowed = sorted(allowed)
    for name in names:
        if name not in allowed:
            nearest = difflib.get_close_matches(name, allowed, n=1, cutoff=0)[0]
            raise InvalidInput(f"{name!r} is not a hyperparameter of {owner}; did you mean {nearest!r}?")


def check_values(hyperparams: Mapping[str, Any]) -> None:
    """Check the values that are given; names that are absent or of other owners are passed over.

    :raises InvalidInput: on a value that is of the wrong type or out of range
    """
    for name, least in _WHOLE_NUMBERS.items():
        if name in hyperparams and not _is_whole(hyperparams[name], least):
            raise InvalidInput(f"{name} must be a whole number of at least {least}, not {hyperparams[name]!r}.")

    for name in _FRACTIONS:
        value = hyperparams.get(name, 0)
        if not (_is_real(value) and 0 <= value <= 1):
            raise InvalidInput(f"{name} must lie in [0, 1], not be {value!r}.")

    for name in ("double_q", "overlap"):
        if not isinstance(hyperparams.get(name, True), bool):
            raise InvalidInput(f"{name} must be True or False, not {hyperparams[name]!r}.")

    for name in ("learning_rate", "max_grad_norm"):
        value = hyperparams.get(name, 1)
        # A learning rate may also be a schedule.
        if not callable(value) and not (_is_real(value) and value > 0):
            raise InvalidInput(f"{name} must be a number above 0, not {value!r}.")

    train_freq = hyperparams.get("train_freq", 1)
    frequency, unit = (
        train_freq if isinstance(train_freq, (tuple, list)) and len(train_freq) == 2 else (train_freq, "step")
    )
    if not _is_whole(frequency, 1) or getattr(unit, "value", unit) not in ("step", "episode"):
        raise InvalidInput(
            f"train_freq must be a whole number of at least 1, alone or with its unit 'step' or 'episode', "
            f"not {train_freq!r}."
        )

    check_replay_settings(hyperparams.get("replay_buffer_kwargs") or {})

    buffer_size, batch_size = hyperparams.get("buffer_size"), hyperparams.get("batch_size")
    if buffer_size is not None and batch_size is not None and buffer_size < batch_size:
        raise InvalidInput(f"buffer_size must be at least batch_size ({batch_size}), not {buffer_size}.")


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least


def _is_real(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def argument_names(algorithm: type) -> set[str]:
    """The keywords that an algorithm's constructor and its parents' take, and a user may set."""
    names: set[str] = set()
    for cls in algorithm.__mro__:
        parameters = inspect.signature(vars(cls)["__init__"]).parameters.values() if "__init__" in vars(cls) else []
        names |= {parameter.name for parameter in parameters}
        if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters):
            break  # this one hands nothing on to its parent
    # The Zoo sets these itself
    return {name for name in names if not name.startswith("_")} - {"self", "env", "args", "kwargs"}
