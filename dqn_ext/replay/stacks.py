"""Stacked observations as they lie in memory, compared and taken apart without a copy."""

import sys
from typing import Any

import numpy as np


class StackLayout:
    """Reads stacks of frames, newest last, of several environments.

    In memory the stack is either the innermost axis (``VecFrameStack`` concatenates channels, and
    ``VecTransposeImage`` only turns the axes) or the outermost one of an observation. Observations are taken as flat
    bytes, (n_envs, bytes), in the order of the first one.

    :param obs: an observation of all environments, (n_envs, C, H, W) or (n_envs, H, W, C)
    :param channels_first: which of both it is
    :param n_stack: frames in an observation
    """

    def __init__(self, obs: np.ndarray, channels_first: bool, n_stack: int) -> None:
        self.obs_shape, self.n_stack = obs.shape, n_stack
        channel_axis = 1 if channels_first else 3
        innermost = obs.strides[channel_axis] == min(obs.strides)
        self._axes = [0, 1, 2, 3]
        self._axes.insert(3 if innermost else 1, self._axes.pop(channel_axis))
        self.n_envs, self.n_channels = len(obs), obs.shape[channel_axis] // n_stack
        n_bytes = obs[0].size
        self.frame_size = n_bytes // n_stack
        self._innermost = innermost
        # Eight bytes are compared at once, where they divide into such words
        self._word = np.uint64 if self.frame_size % 8 == 0 else np.uint8
        if innermost:
            # A stack that moves on by one frame moves by so many bytes ...
            self._shift = self.n_channels
            # ... but for its newest frame, at whose bytes anything may stand
            position = np.arange(n_bytes) % (n_stack * self._shift)
            self._is_newest = np.tile(position >= (n_stack - 1) * self._shift, self.n_envs)
            # Fresh arrays would cost more, in page faults, than to fill them
            self._is_same = np.ones_like(self._is_newest)
            # Where a word holds whole stacks, the bytes of older frames are the same in all words
            words = np.logical_not(self._is_newest).view(self._word)
            self._older_bytes = int(words[0]) if (words == words[0]).all() else None
        # A pixel's stack as one number, whose highest byte is the newest frame's
        self._pixel: Any = None
        if innermost and self.n_channels == 1 and n_stack in (2, 4, 8) and sys.byteorder == "little":
            self._pixel = np.dtype(f"u{n_stack}")
            self._newest = np.empty((self.n_envs, self.frame_size), np.uint8)

    def flat(self, obs: np.ndarray) -> np.ndarray:
        """The bytes of each environment's observation, (n_envs, bytes); a view if they lie as the first ones did."""
        return np.ascontiguousarray(obs.reshape(self.obs_shape).transpose(self._axes)).reshape(self.n_envs, -1)

    def has_moved_on(self, flat: np.ndarray, next_flat: np.ndarray) -> bool:
        """Whether the next stacks' frames, but for the newest, are those of these stacks."""
        if not self._innermost:
            now, later = (array.view(self._word).reshape(self.n_envs, self.n_stack, -1) for array in (flat, next_flat))
            return bool((now[:, 1:] == later[:, :-1]).all())
        same = self._is_same
        np.equal(flat.reshape(-1)[self._shift :], next_flat.reshape(-1)[: -self._shift], out=same[: -self._shift])
        if self._older_bytes is not None:
            return int(np.bitwise_and.reduce(same.view(self._word))) & self._older_bytes == self._older_bytes
        return bool(np.logical_or(same, self._is_newest).all())

    def differ(self, flat: np.ndarray, other_flat: np.ndarray) -> np.ndarray:
        """Which environments' stacks are not the same, (n_envs,)."""
        return (flat.view(self._word) != other_flat.view(self._word)).any(axis=1)

    def frames(self, flat: np.ndarray) -> np.ndarray:
        """The stacks' frames, oldest first, (n_envs, n_stack, frame_size)."""
        if self._innermost:
            flat = flat.reshape(self.n_envs, -1, self.n_stack * self.n_channels).transpose(0, 2, 1)
        return flat.reshape(self.n_envs, self.n_stack, self.frame_size)

    def from_frames(self, frames: np.ndarray) -> np.ndarray:
        """The inverse of :meth:`frames`."""
        if self._innermost:
            frames = frames.reshape(self.n_envs, self.n_stack * self.n_channels, -1).transpose(0, 2, 1)
        return frames.reshape(self.n_envs, -1)

    def newest(self, flat: np.ndarray) -> np.ndarray:
        """The stacks' newest frames, (n_envs, frame_size); until the next call."""
        if self._pixel is not None:
            shift = 8 * (self.n_stack - 1)
            return np.right_shift(flat.view(self._pixel), shift, out=self._newest, casting="unsafe")
        return self.frames(flat)[:, -1]
