"""Stacked observations as they lie in memory, compared and taken apart without a copy."""

import sys

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
        first, last = (0, 2, 3, 1), (0, 3, 1, 2)
        self._axes = (
            (first if channels_first else (0, 1, 2, 3)) if innermost else ((0, 1, 2, 3) if channels_first else last)
        )
        self.n_envs, self.n_channels = len(obs), obs.shape[channel_axis] // n_stack
        n_bytes = obs[0].size
        self.frame_size = n_bytes // n_stack
        self._innermost = innermost
        # A stack that moves on by one frame moves by so many bytes ...
        self._shift = self.n_channels if innermost else self.frame_size
        # ... but for its newest frame, whose bytes these are
        position = np.arange(n_bytes - self._shift) % (n_stack * self.n_channels if innermost else n_bytes)
        self._is_newest = position >= (n_stack - 1) * self._shift
        # Eight bytes at once, where they divide into such words
        self._word = np.uint64 if n_bytes % 8 == 0 else np.uint8
        # Fresh arrays would cost more, in page faults, than to fill them
        self._same_but_newest = np.empty((self.n_envs, n_bytes - self._shift), np.bool_)
        # A pixel's stack as one number, whose highest bytes are the newest frame's
        n_pixel_bytes = n_stack * self.n_channels
        self._pixels: np.ndarray | None = None
        if innermost and n_pixel_bytes in (2, 4, 8) and self._shift < n_pixel_bytes and sys.byteorder == "little":
            self._pixels = np.empty((self.n_envs, n_bytes // n_pixel_bytes), f"u{n_pixel_bytes}")

    def flat(self, obs: np.ndarray) -> np.ndarray:
        """The bytes of each environment's observation, (n_envs, bytes); a view if they lie as the first ones did."""
        return np.ascontiguousarray(obs.reshape(self.obs_shape).transpose(self._axes)).reshape(self.n_envs, -1)

    def has_moved_on(self, flat: np.ndarray, next_flat: np.ndarray) -> bool:
        """Whether the next stacks' frames, but for the newest, are those of these stacks."""
        if self._pixels is not None:
            pixels, next_pixels = flat.view(self._pixels.dtype), next_flat.view(self._pixels.dtype)
            np.left_shift(next_pixels, 8 * self._shift, out=self._pixels)
            np.bitwise_xor(self._pixels, pixels, out=self._pixels)
            return int(self._pixels.max()) < 1 << 8 * self._shift  # no more differs than the oldest frame
        same = np.equal(flat[:, self._shift :], next_flat[:, : -self._shift], out=self._same_but_newest)
        np.logical_or(same, self._is_newest, out=same)
        return bool(same.all())

    def equal(self, flat: np.ndarray, other: np.ndarray) -> np.ndarray:
        """Of each environment, whether its observations are equal, (n_envs,)."""
        return np.equal(flat.view(self._word), other.view(self._word)).all(axis=1)

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
        """The stacks' newest frames, (n_envs, frame_size)."""
        if self._innermost and self.n_channels == 1:
            return flat[:, self.n_stack - 1 :: self.n_stack]
        return self.frames(flat)[:, -1]
