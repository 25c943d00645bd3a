"""Native environments: Atari games on ale-py's C++ emulators, for training.

In a YAML file of the Zoo's::

    env_wrapper:
      - stable_baselines3.common.atari_wrappers.AtariWrapper
    frame_stack: 4
    vec_env_wrapper: dqn_ext.atari.native_when_training
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from stable_baselines3.common.vec_env import VecEnv

from dqn_ext.atari.settings import AtariSettings
from dqn_ext.atari.vec_env import AtariVecEnv
from dqn_ext.errors import InvalidInput

__all__ = ["AtariSettings", "AtariVecEnv", "native_when_training", "training"]

_is_training = ContextVar("_is_training", default=False)


@contextmanager
def training() -> Iterator[None]:
    """What :func:`native_when_training` is given in here is for training."""
    token = _is_training.set(True)
    try:
        yield
    finally:
        _is_training.reset(token)


def native_when_training(venv: VecEnv) -> VecEnv:
    """Native environments in the place of the Zoo's, if these are to train on. For the Zoo's key ``vec_env_wrapper``.

    A run's saved hyperparameters carry the key, so that all commands come by here. Environments are to train on where
    the Zoo's experiment manager makes them and says that they are not for evaluation: those of ``train`` and those of
    the trials of ``-optimize``. Everybody else gets what they gave: evaluations, ``enjoy``, ``record_video``,
    ``push_to_hub``.

    So does training where native environments would do something else than the Zoo's (another wrapper, a game's mode,
    rendering, ``--vec-env subproc``); it says so.

    :param venv: the Zoo's environments
    :return: an :class:`AtariVecEnv`, or ``venv`` as it is
    """
    if not _is_training.get():
        return venv
    try:
        if venv.render_mode is not None:
            raise InvalidInput(f"native environments cannot be rendered (render_mode {venv.render_mode!r}).")
        return AtariVecEnv(venv)
    except InvalidInput as reason:
        print(f"Training on the Zoo's environments: {reason}")
        return venv
