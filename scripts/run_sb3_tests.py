"""Run Stable-Baselines3's own tests with DDQN in DQN's place, or FrameReplayBuffer in its replay buffers' place.

    git clone https://github.com/DLR-RM/stable-baselines3
    python scripts/run_sb3_tests.py ddqn stable-baselines3 [pytest arguments]
    python scripts/run_sb3_tests.py replay stable-baselines3 [pytest arguments]

The checkout should be of the installed version of SB3. Only the files that mention DQN, or a replay buffer, are run.
"""

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stable_baselines3
import torch as th
from gymnasium import spaces
from stable_baselines3.common import buffers, off_policy_algorithm

from dqn_ext import DDQN, FrameReplayBuffer


class BytesReplayBuffer(FrameReplayBuffer):
    """SB3's tests observe vectors of numbers: their bytes are the frame, and the only one of the stack."""

    n_steps_by_default = 1

    def __init__(self, buffer_size: int, observation_space: spaces.Space, *args: Any, **kwargs: Any) -> None:
        self.numbers = observation_space
        image = spaces.Box(0, 255, (self.numbers.sample().nbytes, 1, 1), np.uint8)
        kwargs = {"n_steps": self.n_steps_by_default, "n_stack": 1, **kwargs}
        super().__init__(buffer_size, image, *args, **kwargs)
        self.observations = np.zeros(0, self.numbers.dtype)  # the tests ask the type of SB3's

    def _bytes(self, obs: np.ndarray) -> np.ndarray:
        obs = np.ascontiguousarray(obs, self.numbers.dtype).reshape(self.n_envs, -1)
        return obs.view(np.uint8).reshape(self.n_envs, -1, 1, 1)

    def add(self, obs: np.ndarray, next_obs: np.ndarray, *args: Any) -> None:
        super().add(self._bytes(obs), self._bytes(next_obs), *args)

    def _observations(self, batch: Any) -> tuple[th.Tensor, th.Tensor]:
        numbers = []
        for part in (batch[:, 0], batch[:, -1]):
            part = part.copy().view(self.numbers.dtype).reshape(-1, *self.numbers.shape)  # type: ignore[misc]
            numbers.append(self._to_device(part))
        return numbers[0], numbers[1]

    def _gather(self, draw: Any, env: Any) -> Any:
        samples = super()._gather(draw, env)
        if env is None:
            return samples
        names = ("observations", "next_observations")  # normalized, which images never are
        return samples._replace(
            **{name: self._to_device(env.normalize_obs(getattr(samples, name).numpy())) for name in names}
        )


class BytesNStepReplayBuffer(BytesReplayBuffer):
    """The one that SB3's algorithms take if n_steps is above 1."""

    n_steps_by_default = 3


def main() -> None:
    """Swap the classes where the tests, and SB3's algorithms, import them from; then run the tests."""
    if len(sys.argv) < 3 or sys.argv[1] not in ("ddqn", "replay") or not Path(sys.argv[2], "tests").is_dir():
        sys.exit(__doc__)
    what, checkout = sys.argv[1:3]
    if what == "ddqn":
        stable_baselines3.DQN = stable_baselines3.dqn.DQN = DDQN  # type: ignore[misc]
        mentioned = ["DQN"]
    else:
        ours = {"ReplayBuffer": BytesReplayBuffer, "NStepReplayBuffer": BytesNStepReplayBuffer}
        vars(off_policy_algorithm).update(ours)
        # Not in the module itself, where SB3's other buffers call them their parents
        sys.modules[buffers.__name__] = types.ModuleType(buffers.__name__)
        vars(sys.modules[buffers.__name__]).update(vars(buffers), **ours)
        mentioned = [" ReplayBuffer", "NStepReplayBuffer"]
    paths = sorted(Path(checkout, "tests").glob("test_*.py"))
    files = [str(path) for path in paths if any(name in path.read_text() for name in mentioned)]
    sys.exit(pytest.main([*files, "-p", "no:cacheprovider", "-o", "addopts=", "--rootdir", checkout, *sys.argv[3:]]))


if __name__ == "__main__":
    main()
