"""Where a replay memory's trajectories break off without an end."""

import warnings

import numpy as np
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer

from dqn_ext.replay.buffer import FrameReplayBuffer


def break_off(memory: ReplayBuffer | None) -> None:
    """The next transition belongs to other episodes than the last one, which may not have come to their end.

    A ``FrameReplayBuffer`` sees that by itself. In SB3's buffers the last transitions are marked as ends:

    - in ``NStepReplayBuffer`` and ``HerReplayBuffer`` as timeouts, which bootstrap: returns of several steps would run
      on there, and goals would be another episode's;
    - as terminal states where a buffer knows no others: with ``handle_timeout_termination=False``, and with
      ``optimize_memory_usage``, where the next observation is the next transition's.
    """
    if memory is None or memory.size() == 0 or isinstance(memory, FrameReplayBuffer):
        return
    last = memory.pos - 1
    if isinstance(memory, HerReplayBuffer):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it does what it is called for
            memory.truncate_last_trajectory()
    elif isinstance(memory, NStepReplayBuffer) and memory.handle_timeout_termination:
        memory.timeouts[last] = np.logical_or(memory.timeouts[last], np.logical_not(memory.dones[last]))
    elif isinstance(memory, NStepReplayBuffer) or memory.optimize_memory_usage:
        memory.dones[last] = True
