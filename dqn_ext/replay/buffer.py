"""A replay memory that keeps every frame once, and rebuilds the stacks on sampling."""

import inspect
import io
import sys
import warnings
from collections.abc import Iterator, Mapping
from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import BaseBuffer, ReplayBuffer
from stable_baselines3.common.preprocessing import is_image_space_channels_first
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize

from dqn_ext.errors import Diverged, InvalidInput
from dqn_ext.replay import files
from dqn_ext.replay.frame_stores import STORES, DeviceStore, FrameStore
from dqn_ext.replay.stacks import StackLayout
from dqn_ext.replay.sum_tree import stratified_places


class PrioritizedReplayBufferSamples(NamedTuple):
    """SB3's ``ReplayBufferSamples``, and what prioritized replay adds."""

    observations: th.Tensor
    actions: th.Tensor
    next_observations: th.Tensor
    dones: th.Tensor
    rewards: th.Tensor
    discounts: th.Tensor | None
    weights: th.Tensor  # (B, 1), importance-sampling weights, the largest is 1
    indices: Any  # (B,), for update_priorities; an array, or a tensor where sampling runs on a device


class Draw(NamedTuple):
    """What the host has a say in, of a batch: chance, and how far the replay memory has come."""

    places: Any  # (B,); indices, or, by priorities, places of their running sum
    newest: Any  # position of the newest transition
    time: Any  # and the time of its observation's newest frame
    importance_exponent: Any


class FrameReplayBuffer(ReplayBuffer):
    """SB3's ``ReplayBuffer`` for observations that are stacks of the last frames, newest last, as of ``VecFrameStack``.

    Consecutive observations share all frames but one, so each frame is kept once: a transition of 84x84 frames takes
    7.1 KB raw, where SB3 takes 56 KB. The final observation of every episode is kept, so that saving memory and
    telling timeouts from terminal states go together. For the same indices it returns what SB3's buffers return:
    ``ReplayBuffer``, or ``NStepReplayBuffer`` if ``n_steps`` is above 1. It serves one thread. Pickled it is its
    settings and a file; a subclass with more than that says so in ``__getstate__`` and ``__setstate__``.

    :param buffer_size: transitions of all environments together
    :param observation_space: images of type uint8, channels first or last
    :param action_space: any that SB3's buffers take
    :param device: where the samples go
    :param n_envs: number of environments
    :param optimize_memory_usage: SB3's; memory is saved either way
    :param handle_timeout_termination: tell timeouts (``TimeLimit.truncated``) from terminal states
    :param n_steps: length of the returns; ``samples.discounts`` holds ``gamma`` to the power of the steps really taken
    :param gamma: discount factor of the n-step returns
    :param n_stack: frames in an observation; by default each channel is one
    :param store: ``"raw"``; ``"compressed"``, which takes a thirtieth of it and some time; ``"memmap"``, in a file in
        ``store_dir``, for more than the machine's memory; ``"device"``, where sampling runs on ``device``, too, and
        the host need not wait for it; ``"auto"``: on a CUDA device that has room for it ``"device"``, else
        ``"compressed"``
    :param store_dir: a folder for the memory-mapped file; by default the system's for temporary files
    :param priority_exponent: alpha of prioritized replay (Schaul et al. 2016, eq. 1); 0 samples uniformly
    :param importance_exponent: beta at the start (section 3.4), see :meth:`anneal`
    :raises InvalidInput: on a setting that does not fit
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        device: th.device | str = "auto",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,
        handle_timeout_termination: bool = True,
        *,
        n_steps: int = 1,
        gamma: float = 0.99,
        n_stack: int | None = None,
        store: str = "raw",
        store_dir: str | None = None,
        priority_exponent: float = 0.0,
        importance_exponent: float = 0.4,
    ) -> None:
        BaseBuffer.__init__(self, buffer_size, observation_space, action_space, device, n_envs)
        self.buffer_size = max(buffer_size // n_envs, 1)  # SB3's
        self.optimize_memory_usage = optimize_memory_usage
        self.handle_timeout_termination = handle_timeout_termination
        self.n_steps, self.gamma = n_steps, gamma
        self.store, self.store_dir = store, store_dir
        self.priority_exponent, self.importance_exponent = priority_exponent, importance_exponent
        self._initial_importance_exponent = importance_exponent

        space = observation_space
        if not (isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) == 3):
            raise InvalidInput(f"FrameReplayBuffer keeps images of type uint8, (C, H, W) or (H, W, C), not {space}.")
        self._channels_first = is_image_space_channels_first(space)
        n_channels = space.shape[0 if self._channels_first else -1]
        self.n_stack = n_channels if n_stack is None else n_stack
        self._check_settings(buffer_size, n_channels)

        # Channels, height and width of a frame, and its bytes
        image_size = space.shape[1:] if self._channels_first else space.shape[:2]
        self._frame_shape = (n_channels // self.n_stack, *image_size)
        self._frame_size = int(np.prod(self._frame_shape))
        self.reset()

    def _check_settings(self, buffer_size: int, n_channels: int) -> None:
        check_settings(vars(self))
        if not _is_whole(self.n_steps) or self.n_steps < 1:
            raise InvalidInput(f"n_steps must be a whole number of at least 1, not {self.n_steps!r}.")
        if isinstance(self.gamma, bool) or not isinstance(self.gamma, Real) or not 0 <= self.gamma <= 1:
            raise InvalidInput(f"gamma must lie in [0, 1], not be {self.gamma!r}.")
        if self.buffer_size < self.n_steps:
            raise InvalidInput(
                f"buffer_size must be at least n_envs * n_steps ({self.n_envs * self.n_steps}), not {buffer_size}."
            )
        if not _is_whole(self.n_stack) or not 1 <= self.n_stack <= 255 or n_channels % self.n_stack:
            raise InvalidInput(
                f"n_stack must be a whole number, at most 255, that divides the observation's {n_channels} channels, "
                f"not {self.n_stack!r}."
            )

    def reset(self) -> None:
        """Forget everything. The memory is allocated here."""
        super().reset()
        self.__dict__.pop("_frames", None)  # before the new ones are allocated
        # The oldest transition needs the frames before it, the newest the one after it
        n_frames = self.buffer_size + self.n_stack
        self._store = choose_store(self.store, self.device, (self.n_envs, n_frames, self._frame_size))
        self._warn_of_memory(STORES[self._store].bytes_needed(self.n_envs, n_frames, self._frame_size))
        self._frames = self._make_store(n_frames)

        self._transitions = self._frames.table(
            self.buffer_size * self.n_envs,
            {
                "actions": (self._maybe_cast_dtype(self.action_space.dtype), (self.action_dim,)),
                "rewards": (np.float32, ()),
                "dones": (np.bool_, ()),
                "timeouts": (np.bool_, ()),
                # How many of the frames before the observation's newest are real; the others are black
                "n_history": (np.uint8, ()),
                # Whether the next observation's newest frame is a final frame of the store's
                "has_final": (np.bool_, ()),
            },
        )
        # The same by position and environment
        shape = (self.buffer_size, self.n_envs)
        self.actions = self._transitions["actions"].reshape(*shape, self.action_dim)
        self.rewards = self._transitions["rewards"].reshape(shape)
        self.dones = self._transitions["dones"].reshape(shape)
        self.timeouts = self._transitions["timeouts"].reshape(shape)
        self._n_history = self._transitions["n_history"].reshape(shape)
        self._has_final = self._transitions["has_final"].reshape(shape)
        self._cells_with_final: dict[int, set[int]] = {}  # of each position that has any

        # The time of the newest transition: its observation's newest frame has this number. Room for a first history
        self._time = self.n_stack - 2
        self._layout: StackLayout | None = None  # known with the first observation
        self._loaded_next_frames: np.ndarray | None = None
        # The last next observation as bytes, for bytearray's ==, which is C's memcmp, and as an array; and room for one
        self._last_next, self._spare_next = self._stacks_memory(), self._stacks_memory()
        self._last_n_history = np.zeros(self.n_envs, np.int64)
        self._n_history_after = np.minimum(np.arange(1, self.n_stack + 1), self.n_stack - 1)
        self._last_dones, self._any_done = np.ones(self.n_envs, np.bool_), True

        if self.priority_exponent > 0:
            self._priorities: Any = self._frames.sums(self.buffer_size * self.n_envs)
            self._max_priority: Any = 1.0
            if self.place is not None:
                self._max_priority = self._frames.asarray(np.ones((), np.float32))
        self._batches: list[np.ndarray] = []
        self._window = self._frames.asarray(np.arange(1 - self.n_stack, 2))
        self._steps = self._frames.asarray(np.arange(self.n_steps))
        self._discounts = self._frames.asarray(self.gamma ** np.arange(self.n_steps + 1, dtype=np.float32))

    def _stacks_memory(self) -> tuple[bytearray, np.ndarray]:
        memory = bytearray(self.n_envs * self.n_stack * self._frame_size)
        return memory, np.frombuffer(memory, np.uint8).reshape(self.n_envs, -1)

    def _make_store(self, n_frames: int) -> FrameStore:
        kwargs: dict[str, Any] = {}
        if self._store == "memmap":
            kwargs["store_dir"] = self.store_dir
        elif self._store == "device":
            kwargs["device"] = self.device
        return STORES[self._store](self.n_envs, n_frames, self._frame_size, **kwargs)

    def _warn_of_memory(self, n_bytes: int) -> None:
        if self._store == "memmap":
            return  # the disk's matter
        if self._store == "device" and self.device.type == "cuda":
            available, where = free_memory(self.device), str(self.device)
        else:
            available, where = psutil.virtual_memory().available, "this machine"
        if n_bytes > available:
            warnings.warn(
                f"A full replay memory will take {n_bytes / 1e9:.2f} GB, and {where} has {available / 1e9:.2f} GB; "
                f"store: compressed or memmap, or a smaller buffer_size, takes less.",
                stacklevel=4,
            )

    # ------------------------------------------------------------------ adding

    def add(
        self,
        obs: np.ndarray,
        next_obs: np.ndarray,
        action: np.ndarray,
        reward: np.ndarray,
        done: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        """Keep one transition of each environment. Arguments as of SB3's.

        :raises InvalidInput: on observations that are no stacks of successive frames; nothing has been kept then
        """
        if self._layout is None:
            self._layout = StackLayout(
                np.asarray(obs).reshape(self.n_envs, *self.obs_shape), self._channels_first, self.n_stack
            )
            if self._loaded_next_frames is not None:
                self._last_next[1][:] = self._layout.from_frames(self._loaded_next_frames)
        # Nothing is the memory's before the end: an interrupt on the way costs the oldest transition at most
        layout, position, time = self._layout, self.pos, self._time + 1
        action = action.reshape(self.n_envs, self.action_dim)
        stacks, next_stacks = layout.flat(obs), layout.flat(next_obs)
        if not layout.has_moved_on(stacks, next_stacks):
            raise InvalidInput(
                "FrameReplayBuffer keeps stacks of frames, and in the next observation the frames of this one have "
                "not moved on by one; use SB3's ReplayBuffer for such observations (replay_buffer_class), or, where "
                "somebody else has stepped the environments meanwhile, set the model's _last_obs to None."
            )
        starts, n_history = self._find_starts(stacks)

        if starts is not None:
            # A stream that breaks off without an end, as where learning goes on after a reset: its last frame is a
            # final one, too
            broken = starts & ~self._last_dones
            if broken.any():
                self._keep_finals((position - 1) % self.buffer_size, broken, self._last_next[1])
        if position in self._cells_with_final:
            self._frames.put(self._has_final, position, False)
            for cell in self._cells_with_final[position]:
                self._frames.drop_final(cell)
            del self._cells_with_final[position]

        if self.size() == 0:
            frames = layout.frames(stacks)
            for age in reversed(range(self.n_stack)):
                self._frames.write(time - age, frames[:, -1 - age])
        elif starts is not None:
            self._frames.write(time, layout.newest(stacks)[starts], starts)
        self._frames.write(time + 1, layout.newest(next_stacks))

        done = np.array(done, np.bool_)  # a copy: it is kept
        put = self._frames.put
        put(self._n_history, position, n_history)
        put(self.actions, position, action)
        put(self.rewards, position, reward)
        put(self.dones, position, done)
        any_done = True in done.tolist()  # quicker than numpy's any, of some environments
        if any_done:
            self._keep_finals(position, done, next_stacks)
        if self.handle_timeout_termination:
            put(self.timeouts, position, [info.get("TimeLimit.truncated", False) for info in infos])
        if self.priority_exponent > 0:
            cells = np.arange(position * self.n_envs, (position + 1) * self.n_envs)
            self._priorities.set(cells, self._max_priority**self.priority_exponent)

        np.copyto(self._spare_next[1], next_stacks)
        last_n_history = self._n_history_after[n_history]
        position += 1
        # No call and no loop, where alone an interrupt comes
        self._last_next, self._spare_next = self._spare_next, self._last_next
        self._last_dones, self._any_done, self._last_n_history = done, any_done, last_n_history
        self._time, self.pos, self.full = time, position % self.buffer_size, self.full or position == self.buffer_size

    def _find_starts(self, stacks: np.ndarray) -> tuple[np.ndarray | None, np.ndarray]:
        """Which environments do not go on from their last observation, and how much history each stack has.

        :return: the first is ``None`` if all go on, or nothing came before
        """
        layout = self._layout
        assert layout is not None
        if self.size() == 0:
            # Stacks of any history may come first
            blank = np.logical_not(layout.frames(stacks)[:, :-1].any(axis=2))
            return None, self.n_stack - 1 - np.logical_and.accumulate(blank, axis=1).sum(axis=1)
        if self._last_next[0] == stacks.data and not self._any_done:
            return None, self._last_n_history
        starts = self._last_dones | layout.differ(stacks, self._last_next[1])
        if layout.frames(stacks)[starts, :-1].any():
            raise InvalidInput(
                "FrameReplayBuffer keeps stacks that begin black after a reset, as VecFrameStack pads them, and an "
                "observation does neither go on from the last one nor begin so; use SB3's ReplayBuffer for such "
                "observations (replay_buffer_class)."
            )
        return starts, np.where(starts, 0, self._last_n_history)

    def _keep_finals(self, position: int, envs: np.ndarray, next_stacks: np.ndarray) -> None:
        assert self._layout is not None
        frames = self._layout.frames(next_stacks)
        for env in np.flatnonzero(envs).tolist():
            cell = position * self.n_envs + env
            self._cells_with_final.setdefault(position, set()).add(cell)  # first: what is written is dropped by it
            self._frames.write_final(cell, frames[env, -1])
            self._has_final[position, env] = True

    # ------------------------------------------------------------------ sampling

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> Any:
        """Draw transitions, uniformly or by their priorities.

        The batch stands in memory that is used again once nobody holds the batch any more, and its observations and
        next observations share frames there: who changes one in place changes the other.

        :param batch_size: how many
        :param env: normalizes rewards
        :return: ``ReplayBufferSamples``, or :class:`PrioritizedReplayBufferSamples` if ``priority_exponent`` is above 0
        """
        return self.look_up(self.draw(batch_size), env)

    def draw(self, batch_size: int) -> Draw:
        """The host's part of :meth:`sample`; with numpy's generator, as SB3's buffers draw."""
        if self.size() == 0:
            raise ValueError("The replay memory is empty: there is nothing to sample.")
        if self.priority_exponent > 0:
            return self._draw(stratified_places(batch_size))
        return self._draw(self._with_envs(np.random.randint(0, self.size(), batch_size)))

    def look_up(self, draw: Draw, env: VecNormalize | None = None) -> Any:
        """The store's part of :meth:`sample`, where the store computes. On a device nothing waits for it."""
        if self.priority_exponent == 0:
            return self._gather(draw, env)
        indices = self._priorities.draw(draw.places)
        samples = self._gather(draw._replace(places=indices), env)
        # Schaul et al. 2016, section 3.4; the number of transitions cancels out
        weights = self._priorities.get(indices) ** -draw.importance_exponent
        weights = _float32(weights / weights.max())[:, None]
        return PrioritizedReplayBufferSamples(*samples, weights=self._to_device(weights), indices=indices)

    @property
    def place(self) -> object | None:
        """``None``, or, where sampling runs on a device, an object that is another one when its memory has moved."""
        return self._frames.place

    def _draw(self, places: np.ndarray) -> Draw:
        return Draw(places, (self.pos - 1) % self.buffer_size, self._time, self.importance_exponent)

    def _with_envs(self, positions: np.ndarray) -> np.ndarray:
        """Indices of transitions at these positions, each of an environment drawn as SB3 draws it."""
        # Of one environment numpy would draw nothing
        envs = np.random.randint(0, self.n_envs, len(positions)) if self.n_envs > 1 else 0
        return positions * self.n_envs + envs

    def _get_samples(self, batch_inds: np.ndarray, env: VecNormalize | None = None) -> ReplayBufferSamples:
        return self._gather(self._draw(self._with_envs(batch_inds)), env)

    def _gather(self, draw: Draw, env: VecNormalize | None) -> ReplayBufferSamples:
        """The transitions of indices: ``position * n_envs + environment``."""
        # Where the store is on a device all of this runs there: numpy's and torch's operations go by the same names
        cells, newest = self._frames.asarray(draw.places), draw.newest
        batch_inds, envs = cells // self.n_envs, cells % self.n_envs
        times = draw.time - (newest - batch_inds) % self.buffer_size  # of the observations' newest frames
        first = last = self._frames.lookup(self._transitions, cells)

        last_cells, discounts = cells, None
        if self.n_steps == 1:
            rewards = self._normalized(first["rewards"], env)
            # One window of frames holds both stacks
            frame_times, is_black = self._frame_times(times, first["n_history"], self._window)
        else:
            steps = (batch_inds[:, None] + self._steps) % self.buffer_size
            window = self._frames.lookup(self._transitions, steps * self.n_envs + envs[:, None])
            stops = (window["has_final"] | window["timeouts"] | (steps == newest)) * 1
            taken = stops.cumsum(axis=1) - stops == 0  # up to the first stop, and with it
            n_taken = taken.sum(axis=1)
            rewards = (self._normalized(window["rewards"], env) * self._discounts[:-1] * taken).sum(axis=1)
            discounts = self._discounts[n_taken][:, None]
            last_cells = (batch_inds + n_taken - 1) % self.buffer_size * self.n_envs + envs
            last = self._frames.lookup(self._transitions, last_cells)
            stacks = (
                self._frame_times(times, first["n_history"], self._window[:-1]),
                self._frame_times(times + n_taken, last["n_history"] + 1, self._window[:-1]),
            )
            frame_times, is_black = (self._frames.concatenate(pair) for pair in zip(*stacks, strict=True))

        batch = self._batch_memory(len(cells), frame_times.shape[1])
        self._frames.read(frame_times, is_black, envs[:, None], batch.reshape(-1, self._frame_size))
        self._frames.read_finals(last_cells, last["has_final"], batch[:, -1])
        observations, next_observations = self._observations(batch)
        terminals = (last["dones"] > last["timeouts"]) * np.float32(1)  # done, and no timeout
        return ReplayBufferSamples(
            observations,
            self._to_device(first["actions"]),
            next_observations,
            self._to_device(terminals[:, None]),
            self._to_device(rewards[:, None]),
            None if discounts is None else self._to_device(discounts),
        )

    def _frame_times(self, times: Any, n_history: Any, offsets: Any) -> tuple[Any, Any]:
        """The times of the frames of stacks that end at ``times``, and which of them are black, since they would stand
        before the episode's start; both (B, len(offsets)).
        """
        return times[:, None] + offsets, n_history[:, None] < -offsets

    def _batch_memory(self, batch_size: int, n_frames: int) -> Any:
        shape = (batch_size, n_frames, self._frame_size)
        if isinstance(self._frames, DeviceStore):
            return th.empty(shape, dtype=th.uint8, device=self._frames.device)  # torch has memory at hand
        # A fresh array would cost more, in page faults, than to fill it
        for batch in self._batches:
            if batch.shape == shape and sys.getrefcount(batch) == _UNUSED:
                return batch
        self._batches = [*self._batches[-3:], np.empty(shape, np.uint8)]
        return self._batches[-1]

    def _observations(self, batch: Any) -> tuple[th.Tensor, th.Tensor]:
        channels, *image_size = self._frame_shape
        images = batch.reshape(len(batch), -1, *image_size)  # (B, frames of both stacks * channels, H, W)
        if not self._on_host:
            images = self._to_device(images)  # before it is taken apart: the stacks share frames
        n_channels = self.n_stack * channels
        both = images[:, :n_channels], images[:, -n_channels:]
        if not self._channels_first:
            both = both[0].swapaxes(1, 2).swapaxes(2, 3), both[1].swapaxes(1, 2).swapaxes(2, 3)
        return self._to_device(both[0]), self._to_device(both[1])

    def _normalized(self, rewards: Any, env: VecNormalize | None) -> Any:
        """Cf. :meth:`VecNormalize.normalize_reward`."""
        if env is None or not env.norm_reward:
            return rewards
        scale = np.float32(1 / np.sqrt(env.ret_rms.var + env.epsilon))
        return (rewards * scale).clip(-env.clip_reward, env.clip_reward)

    @property
    def _on_host(self) -> bool:
        # SB3 sets a new device after loading
        return self.device.type == "cpu" and self._store != "device"

    def _to_device(self, array: Any) -> th.Tensor:
        tensor = array if isinstance(array, th.Tensor) else th.from_numpy(array)
        return tensor if self._on_host else tensor.to(self.device)

    # ------------------------------------------------------------------ priorities

    def update_priorities(self, indices: Any, td_errors: Any) -> None:
        """Set the priorities ``|td_error| + 1e-6`` of sampled transitions (Schaul et al. 2016, section 3.3).

        :param indices: (B,), as sampled
        :param td_errors: (B,), an array or a tensor
        :raises Diverged: on a TD error that is no number; the priorities stay as they were. Not on a device, where
            nobody waits for the errors: such a one counts as 0 there
        """
        td_errors = self._frames.asarray(td_errors)
        if isinstance(td_errors, th.Tensor):
            priorities = td_errors.abs().nan_to_num(nan=0.0, posinf=0.0) + 1e-6
            self._max_priority.copy_(self._max_priority.maximum(priorities.max()))
        else:
            priorities = np.abs(td_errors.astype(np.float64)) + 1e-6
            if not np.isfinite(priorities).all():
                raise Diverged("A TD error is infinite or not a number: learning has diverged.")
            self._max_priority = max(self._max_priority, float(priorities.max()))
        self._priorities.set(indices, priorities**self.priority_exponent)

    def anneal(self, progress: float) -> None:
        """Move ``importance_exponent`` from its first value to 1, linearly.

        :param progress: of the training, from 0 to 1
        """
        first = self._initial_importance_exponent
        self.importance_exponent = first + (1 - first) * progress

    # ------------------------------------------------------------------ files

    _ARRAYS = ("actions", "rewards", "dones", "timeouts", "_n_history", "_has_final")

    def save(self, path: files.Path) -> None:
        """Write the transitions to a compact file, which any store on any device can read.

        :raises InvalidInput: where it cannot be written; a file that stands there is left as it was
        """
        size = self.size()
        positions = (self.pos - size + np.arange(size)) % self.buffer_size  # oldest first
        arrays = {name.lstrip("_"): self._host(getattr(self, name))[positions] for name in self._ARRAYS}
        header = {
            "obs_shape": list(self.obs_shape),
            "n_stack": self.n_stack,
            "n_envs": self.n_envs,
            "buffer_size": self.buffer_size,
            "size": size,
            "pos": self.pos,
            "priority_exponent": self.priority_exponent,
            "n_finals": int(arrays["has_final"].sum()),
        }
        if self.priority_exponent > 0:
            leaves = positions[:, None] * self.n_envs + np.arange(self.n_envs)
            # To the power of the exponent
            arrays["priorities"] = self._host(self._priorities.get(leaves)).astype(np.float64)
            header["max_priority"] = float(self._max_priority)
        files.write(path, header, arrays, self._saved_frames(positions, arrays["has_final"]))

    def _saved_frames(self, positions: np.ndarray, has_final: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        steps, envs = np.nonzero(has_final)
        finals = self._frames.zeros((len(steps), self._frame_size), np.uint8)
        cells = self._frames.asarray(positions[steps] * self.n_envs + envs)
        self._frames.read_finals(cells, self._frames.asarray(np.ones(len(steps), np.bool_)), finals)
        yield "finals", self._host(finals)
        for first, last in self._blocks_of_times(len(positions)):
            # From the oldest transition's history to the newest's next frame
            times = self._time - len(positions) - self.n_stack + 2 + np.arange(first, last)
            block = self._frames.zeros((self.n_envs * len(times), self._frame_size), np.uint8)
            envs = np.arange(self.n_envs)[:, None]
            times = np.broadcast_to(times, (self.n_envs, len(times)))
            is_black = self._frames.zeros(times.shape, np.bool_)
            self._frames.read(self._frames.asarray(times), is_black, self._frames.asarray(envs), block)
            yield f"frames/{first}", self._host(block)

    def _blocks_of_times(self, size: int) -> Iterator[tuple[int, int]]:
        n_times = size + self.n_stack if size else 0
        for first in range(0, n_times, 512):
            yield first, min(first + 512, n_times)

    def load(self, path: files.Path) -> None:
        """Take over the transitions of a file, in place of one's own.

        :raises InvalidInput: on a file that is damaged, or of other observations, environments or a larger capacity;
            the replay memory is empty then
        """
        if self.size():
            self.reset()
        try:
            with files.reading(path) as reader:
                self._load(reader)
        except Exception:
            self.reset()
            raise

    def _load(self, reader: files.Reader) -> None:
        header, n_envs = reader.header, self.n_envs
        for name, ours in (("obs_shape", list(self.obs_shape)), ("n_stack", self.n_stack), ("n_envs", n_envs)):
            if header[name] != ours:
                raise InvalidInput(f"The saved replay memory has {name} {header[name]!r}, and it must be {ours!r}.")
        size, n_finals = int(header["size"]), int(header["n_finals"])
        if size > self.buffer_size:
            raise InvalidInput(
                f"The saved replay memory holds {size * n_envs} transitions, more than "
                f"buffer_size ({self.buffer_size * n_envs}) has room for."
            )
        if not 0 <= n_finals <= size * n_envs:
            raise ValueError("its counts disagree")
        arrays = {}
        for name in self._ARRAYS:
            array = self._host(getattr(self, name))
            arrays[name] = reader.array(name.lstrip("_"), (size, *array.shape[1:]), array.dtype)
        if arrays["_has_final"].sum() != n_finals or (arrays["_n_history"] >= self.n_stack).any():
            raise ValueError("its arrays disagree")
        if size == 0:
            return

        # The same places, so that the same indices mean the same transitions, where the capacity is the same
        full = size == self.buffer_size
        self.pos = int(header["pos"]) % self.buffer_size if full else size % self.buffer_size
        self.full = full
        positions = (self.pos - size + np.arange(size)) % self.buffer_size
        for name, array in arrays.items():
            getattr(self, name)[self._frames.asarray(positions)] = self._frames.asarray(array)

        finals = reader.frames("finals", (n_finals, self._frame_size))
        for step, env, frame in zip(*np.nonzero(arrays["_has_final"]), finals, strict=True):
            cell = int(positions[step] * n_envs + env)
            self._frames.write_final(cell, frame)
            self._cells_with_final.setdefault(int(positions[step]), set()).add(cell)
        for first, last in self._blocks_of_times(size):
            block = reader.frames(f"frames/{first}", (n_envs, last - first, self._frame_size))
            for time in range(first, last):
                self._frames.write(time, block[:, time - first])
        self._time = self.n_stack - 2 + size
        # Learning may go on where it was
        self._loaded_next_frames = self._host(self._next_frames_of_newest())
        self._last_dones = arrays["_has_final"][-1]
        self._any_done = bool(self._last_dones.any())
        self._last_n_history = self._n_history_after[arrays["_n_history"][-1]]

        if self.priority_exponent > 0:
            leaves = positions[:, None] * n_envs + np.arange(n_envs)
            self._priorities.set(leaves.reshape(-1), self._max_priority**self.priority_exponent)
            if header["priority_exponent"] > 0:
                priorities = reader.array("priorities", (size, n_envs), np.float64)
                self._max_priority *= float(header["max_priority"])  # it was 1
                # Exactly what it was, where the exponent is the same
                exponent = self.priority_exponent / header["priority_exponent"]
                self._priorities.set(leaves.reshape(-1), priorities.reshape(-1) ** exponent)

    def _next_frames_of_newest(self) -> Any:
        """The newest transitions' next stacks, (n_envs, n_stack, frame_size), final frames left out."""
        newest, envs = (self.pos - 1) % self.buffer_size, self._frames.asarray(np.arange(self.n_envs))
        times = self._frames.asarray(np.full(self.n_envs, self._time + 1))
        frame_times, is_black = self._frame_times(times, self._n_history[newest, envs] + 1, self._window[:-1])
        frames = self._frames.zeros((self.n_envs * self.n_stack, self._frame_size), np.uint8)
        self._frames.read(frame_times, is_black, envs[:, None], frames)
        return frames.reshape(self.n_envs, self.n_stack, self._frame_size)

    def _host(self, array: Any) -> np.ndarray:
        return array.cpu().numpy() if isinstance(array, th.Tensor) else array

    def __getstate__(self) -> dict[str, Any]:
        content = io.BytesIO()
        self.save(content)
        names = list(inspect.signature(FrameReplayBuffer.__init__).parameters)[1:]
        settings = {name: getattr(self, name) for name in names}
        settings["buffer_size"] = self.buffer_size * self.n_envs
        settings["importance_exponent"] = self._initial_importance_exponent
        return {"settings": settings, "importance_exponent": self.importance_exponent, "file": content.getvalue()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        FrameReplayBuffer.__init__(self, **state["settings"])
        self.load(io.BytesIO(state["file"]))
        self.importance_exponent = state["importance_exponent"]


def free_memory(device: th.device) -> int:
    """What tensors can still take of a CUDA device, in bytes: PyTorch keeps for the next ones what earlier ones had."""
    kept = th.cuda.memory_reserved(device) - th.cuda.memory_allocated(device)
    return th.cuda.mem_get_info(device)[0] + kept


def choose_store(store: str, device: th.device, sizes: tuple[int, int, int]) -> str:
    """What ``store`` means on this device.

    :param sizes: number of environments, frames of each, and bytes of a frame
    """
    if store != "auto":
        return store
    # A quarter is left to all else that a learner needs there
    has_room = device.type == "cuda" and DeviceStore.bytes_needed(*sizes) < 0.75 * free_memory(device)
    return "device" if has_room else "compressed"


def check_settings(settings: Mapping[str, Any]) -> None:
    """Check the settings that are this buffer's own, where they are given.

    :raises InvalidInput: on a value that is not allowed
    """
    store = settings.get("store", "raw")
    if store not in ("auto", *STORES):
        raise InvalidInput(f"store must be one of auto, {', '.join(STORES)}, not {store!r}.")
    if not isinstance(store_dir := settings.get("store_dir"), str | None):
        raise InvalidInput(f"store_dir must be the name of a folder, or None, not {store_dir!r}.")
    for name in ("priority_exponent", "importance_exponent"):
        value = settings.get(name, 0.0)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
            raise InvalidInput(f"{name} must lie in [0, 1], not be {value!r}.")


def _float32(array: Any) -> Any:
    return array.float() if isinstance(array, th.Tensor) else array.astype(np.float32)


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _count_references() -> int:
    batches = [np.empty(0)]
    for batch in batches:
        return sys.getrefcount(batch)
    raise AssertionError


# Of a batch that only the list of batches holds, counted where it is asked for; a tracer would add its own
_UNUSED = min(_count_references(), 3)
