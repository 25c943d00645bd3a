"""Where a replay memory's trajectories break off without an end."""

import numpy as np
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer


def break_off(memory: ReplayBuffer | None) -> None:
    """The next transition belongs to other episodes than the last one, which may not have come to their end.

    SB3's ``NStepReplayBuffer`` would let returns of several steps run on there: its last transitions are marked as
    truncated, so that returns end there and bootstrap. A ``FrameReplayBuffer`` sees that by itself.
    """
    if isinstance(memory, NStepReplayBuffer) and memory.size() > 0:
        last = memory.pos - 1
        memory.timeouts[last] = np.logical_or(memory.timeouts[last], np.logical_not(memory.dones[last]))
