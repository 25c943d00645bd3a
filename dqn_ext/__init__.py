"""Double DQN for Stable-Baselines3 and the RL Zoo.

The names below load on first use, so that ``import dqn_ext`` costs nothing.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dqn_ext.ddqn import DDQN
    from dqn_ext.replay import FrameReplayBuffer

__version__ = "0.1.0"
__all__ = ["DDQN", "FrameReplayBuffer", "__version__"]

_HOME = {"DDQN": "dqn_ext.ddqn", "FrameReplayBuffer": "dqn_ext.replay"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'dqn_ext' has no attribute '{name}'")
    import importlib

    return getattr(importlib.import_module(_HOME[name]), name)
