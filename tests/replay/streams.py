"""Streams of transitions as SB3 hands them to a replay memory, and SB3's own buffers as the oracle."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer

Transition = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]


class RandomStream:
    """Random frames, actions and rewards; terminals, timeouts and life losses at random; stacks as VecFrameStack's.

    :param interleaved: whether the stack is the innermost axis in memory, as VecTransposeImage leaves it
    """

    def __init__(
        self,
        seed: int,
        n_envs: int,
        shape: tuple[int, int] = (6, 5),
        n_stack: int = 4,
        n_channels: int = 1,
        end_probability: float = 0.15,
        interleaved: bool = True,
        channels_first: bool = True,
    ) -> None:
        self.rng = np.random.default_rng(seed)
        self.n_envs, self.shape, self.n_stack, self.n_channels = n_envs, shape, n_stack, n_channels
        self.end_probability, self.interleaved, self.channels_first = end_probability, interleaved, channels_first
        channels = n_stack * n_channels
        self.observation_space = spaces.Box(
            0, 255, (channels, *shape) if channels_first else (*shape, channels), np.uint8
        )
        self.action_space = spaces.Discrete(6)
        self.stacks = np.zeros((n_envs, *shape, channels), np.uint8)
        self.reset(range(n_envs))

    def frame(self) -> np.ndarray:
        """Some frames are black: they must not be taken for padding."""
        return self.rng.integers(0, 256, (*self.shape, self.n_channels)) * (self.rng.random() > 0.1)

    def reset(self, envs: Any) -> None:
        """Begin an episode."""
        for env in envs:
            self.stacks[env] = 0
            self.stacks[env, ..., -self.n_channels :] = self.frame()

    def observation(self) -> np.ndarray:
        obs = self.stacks.copy()
        if not self.channels_first:
            return obs
        obs = obs.transpose(0, 3, 1, 2)
        return obs if self.interleaved else np.ascontiguousarray(obs)

    def step(self) -> Transition:
        """The next transition of every environment."""
        obs = self.observation()
        self.stacks = np.roll(self.stacks, -self.n_channels, axis=-1)
        for env in range(self.n_envs):
            self.stacks[env, ..., -self.n_channels :] = self.frame()
        next_obs = self.observation()
        done = self.rng.random(self.n_envs) < self.end_probability
        timeout = done & (self.rng.random(self.n_envs) < 0.4)
        infos = [{"TimeLimit.truncated": bool(t)} if rare else {} for t, rare in zip(timeout, done, strict=True)]
        self.reset(np.flatnonzero(done))
        action = self.rng.integers(0, 6, self.n_envs)
        reward = self.rng.normal(size=self.n_envs).astype(np.float32)
        return obs, next_obs, action, reward, done, infos

    def steps(self, n: int) -> Iterator[Transition]:
        for _ in range(n):
            yield self.step()


def oracle(stream: RandomStream, buffer_size: int, n_steps: int = 1, gamma: float = 0.9, **kwargs: Any) -> ReplayBuffer:
    """SB3's buffer."""
    arguments = (buffer_size, stream.observation_space, stream.action_space, "cpu", stream.n_envs)
    if n_steps > 1:
        return NStepReplayBuffer(*arguments, n_steps=n_steps, gamma=gamma, **kwargs)
    return ReplayBuffer(*arguments, **kwargs)


def transitions(buffer: Any, positions: Any, envs: Any) -> Any:
    """Those of a FrameReplayBuffer at these positions, of these environments."""
    return buffer._gather(buffer._draw(np.asarray(positions) * buffer.n_envs + envs), None)


def assert_equal_samples(samples: Any, expected: Any) -> None:
    """Every field agrees."""
    for name in ("observations", "actions", "next_observations", "dones"):
        ours, theirs = getattr(samples, name), getattr(expected, name)
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours.cpu().numpy(), theirs.numpy(), err_msg=name)
    for name in ("rewards", "discounts"):
        ours, theirs = getattr(samples, name), getattr(expected, name)
        assert (ours is None) == (theirs is None)
        if theirs is not None:
            assert ours.dtype == theirs.dtype
            np.testing.assert_allclose(ours.cpu().numpy(), theirs.numpy(), rtol=1e-5, atol=1e-6, err_msg=name)
