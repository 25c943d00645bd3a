"""Where the frames of a replay memory are kept: raw, compressed, on disk or on the device, behind one interface."""

import os
import tempfile
from typing import Any

import numpy as np
import torch as th
import zstandard

from dqn_ext.cuda_graph import to_device
from dqn_ext.errors import InvalidInput
from dqn_ext.replay.sum_tree import FlatSums, SumTree


class FrameStore:
    """Keeps the newest ``n_frames`` frames of each of ``n_envs`` environments, numbered by their time.

    Beside them stand the few *final frames*, which no later frame follows: those at the end of an episode. They belong
    to a cell, the place of their transition in the replay memory, until it is taken by another.

    :param n_envs: number of environments
    :param n_frames: how many frames of each environment must stay readable
    :param frame_size: bytes of a frame
    """

    # Of stores on a device: another object whenever memory has moved, so that recorded operations miss it
    place: object | None = None

    def __init__(self, n_envs: int, n_frames: int, frame_size: int) -> None:
        self.n_envs, self.n_frames, self.frame_size = n_envs, n_frames, frame_size
        self._compress = zstandard.ZstdCompressor(level=1).compress
        self._decompress = zstandard.ZstdDecompressor().decompress
        self._final_frames: dict[int, bytes] = {}

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """An array that lives where this store computes."""
        return np.zeros(shape, dtype)

    def asarray(self, array: np.ndarray | th.Tensor) -> Any:
        """``array`` where this store computes."""
        return array.cpu().numpy() if isinstance(array, th.Tensor) else array

    def sums(self, n_leaves: int) -> SumTree | FlatSums:
        """Weights to draw by, where this store computes."""
        return SumTree(n_leaves)

    def put(self, array: Any, position: int, values: Any) -> None:
        """``array[position] = values``, which are on the host."""
        array[position] = values

    def concatenate(self, arrays: Any) -> Any:
        """Join arrays along their second axis."""
        return np.concatenate(arrays, axis=1)

    def table(self, n_rows: int, columns: dict[str, tuple[Any, tuple[int, ...]]]) -> Any:
        """Columns of the given type and shape, by name. A row lies in one place, for :meth:`lookup`."""
        return np.zeros(n_rows, np.dtype([(name, *column) for name, column in columns.items()], align=True))

    def lookup(self, table: Any, rows: Any) -> Any:
        """The columns of some rows."""
        return table[rows]

    def write(self, time: int, frames: np.ndarray, envs: Any = slice(None)) -> None:
        """Keep the ``frames``, (n_envs, frame_size), of some environments at ``time``: the next time, or one that is
        written again, and those after it with it.
        """
        raise NotImplementedError

    def read(self, times: Any, is_black: Any, envs: Any, out: Any) -> None:
        """Copy the frames at ``times``, (B, n), of ``envs``, (B, 1), to ``out``, (B * n, frame_size); black ones
        instead where ``is_black``, (B, n), says so.
        """
        raise NotImplementedError

    def write_final(self, cell: int, frame: np.ndarray) -> None:
        """Keep the final frame of a cell."""
        self._final_frames[cell] = self._compress(np.ascontiguousarray(frame).data)

    def drop_final(self, cell: int) -> None:
        """Forget it again."""
        self._final_frames.pop(cell, None)

    def read_finals(self, cells: Any, has_final: Any, out: Any) -> None:
        """Replace those rows of ``out``, (n, frame_size), whose cell has a final frame."""
        for row in has_final.nonzero()[0]:
            out[row] = np.frombuffer(self._decompress(self._final_frames[int(cells[row])]), np.uint8)

    @staticmethod
    def bytes_needed(n_envs: int, n_frames: int, frame_size: int) -> int:
        """What a full store takes, in bytes; final frames are left out, they are few and compressed."""
        return n_envs * n_frames * frame_size


class RawStore(FrameStore):
    """One array in memory."""

    def __init__(self, n_envs: int, n_frames: int, frame_size: int) -> None:
        super().__init__(n_envs, n_frames, frame_size)
        self._frames = self._allocate((n_envs * n_frames + 1, frame_size))  # the last one stays black
        self._rings = self._frames[:-1].reshape(n_envs, n_frames, frame_size)
        self._tensor = th.from_numpy(self._frames)

    def _allocate(self, shape: tuple[int, int]) -> Any:
        return np.zeros(shape, np.uint8)

    def write(self, time: int, frames: np.ndarray, envs: Any = slice(None)) -> None:
        self._rings[envs, time % self.n_frames] = frames

    def read(self, times: np.ndarray, is_black: np.ndarray, envs: np.ndarray, out: np.ndarray) -> None:
        rows = envs * self.n_frames + times % self.n_frames
        rows[is_black] = self.n_envs * self.n_frames
        # As np.take, but on several cores
        th.index_select(self._tensor, 0, th.from_numpy(rows.reshape(-1)), out=th.from_numpy(out))


class MemmapStore(RawStore):
    """One array in a file, for replay memories larger than the machine's; the file vanishes with the process.

    :param store_dir: the folder of the file, the system's for temporary files by default
    :raises InvalidInput: where the disk has no room for all of it
    """

    def __init__(self, n_envs: int, n_frames: int, frame_size: int, store_dir: str | None = None) -> None:
        self._store_dir = store_dir
        super().__init__(n_envs, n_frames, frame_size)

    def _allocate(self, shape: tuple[int, int]) -> np.ndarray:
        n_bytes = shape[0] * shape[1]
        where = self._store_dir or tempfile.gettempdir()
        try:
            with tempfile.TemporaryFile(dir=where) as file:
                if hasattr(os, "posix_fallocate"):
                    # Now: a mapped file that finds the disk full later kills the process
                    os.posix_fallocate(file.fileno(), 0, n_bytes)
                return np.memmap(file, np.uint8, "r+" if hasattr(os, "posix_fallocate") else "w+", shape=shape)
        except OSError as error:
            raise InvalidInput(
                f"The memory-mapped replay memory needs {n_bytes / 1e9:.2f} GB in {where!r}: {error.strerror}. "
                f"A smaller buffer_size, or another store_dir, would fit."
            ) from error


class CompressedStore(FrameStore):
    """Blocks of successive frames of one environment, each compressed as a whole: neighbouring frames share most of
    their bytes. The newest block of each environment is still raw.
    """

    # 16 frames at zstd's level 1 would halve the memory, and sampling would take half as long again
    BLOCK, LEVEL = 8, -3

    def __init__(self, n_envs: int, n_frames: int, frame_size: int) -> None:
        super().__init__(n_envs, n_frames, frame_size)
        # One more than is asked for, since blocks are dropped as a whole, and the newest
        self._n_blocks = -(-n_frames // self.BLOCK) + 2
        self._blocks: list[bytes] = [b""] * (n_envs * self._n_blocks)
        self._newest = np.zeros((n_envs, self.BLOCK, frame_size), np.uint8)
        self._newest_number = 0
        self._compress_block = zstandard.ZstdCompressor(level=self.LEVEL).compress
        self._decompressor = zstandard.ZstdDecompressor()
        self._unpacked = np.empty((0, self.BLOCK, frame_size), np.uint8)

    def write(self, time: int, frames: np.ndarray, envs: Any = slice(None)) -> None:
        number, index = divmod(time, self.BLOCK)
        assert number <= self._newest_number + 1
        if number > self._newest_number:
            for env, block in enumerate(self._newest):
                # A copy: what the compressor returns was allocated for the worst case, and leaves a hole of that size
                self._blocks[self._place(env, self._newest_number)] = bytes(
                    memoryview(self._compress_block(block.data))
                )
            self._newest_number = number
        elif number < self._newest_number:  # what came later is written again
            for env, block in enumerate(self._newest):
                self._decompressor.stream_reader(self._blocks[self._place(env, number)]).readinto(block)
            self._newest_number = number
        self._newest[envs, index] = frames

    def _place(self, env: int, number: int) -> int:
        return env * self._n_blocks + number % self._n_blocks

    def read(self, times: np.ndarray, is_black: np.ndarray, envs: np.ndarray, out: np.ndarray) -> None:
        envs = envs.reshape(-1).repeat(times.shape[1])
        times, is_black = times.reshape(-1), is_black.reshape(-1)
        for first in range(0, len(times), 256):  # bounds the memory of the unpacked blocks
            part = slice(first, first + 256)
            self._read(times[part], envs[part], out[part])
        out[is_black] = 0

    def _read(self, times: np.ndarray, envs: np.ndarray, out: np.ndarray) -> None:
        numbers, indices = np.divmod(times, self.BLOCK)
        # Each block once
        places, block_of_row = np.unique(envs * self._n_blocks + numbers % self._n_blocks, return_inverse=True)
        if len(places) > len(self._unpacked):
            self._unpacked = np.empty((len(places), self.BLOCK, self.frame_size), np.uint8)
        for block, place in zip(self._unpacked, places.tolist(), strict=False):
            env, number = divmod(place, self._n_blocks)
            if number == self._newest_number % self._n_blocks:
                block[:] = self._newest[env]
            else:
                self._decompressor.stream_reader(self._blocks[place]).readinto(block)
        rows, frames = block_of_row * self.BLOCK + indices, self._unpacked.reshape(-1, self.frame_size)
        # On this core, whose cache holds them; "clip" because "raise" would go through a second buffer
        np.take(frames, rows, axis=0, out=out, mode="clip")

    @staticmethod
    def bytes_needed(n_envs: int, n_frames: int, frame_size: int) -> int:
        """An upper bound for Atari's games, which take a fifteenth to a hundredth."""
        return n_envs * n_frames * frame_size // 10


class _Columns:
    """Some rows of a table, whose columns are gathered when they are asked for: each is a kernel of its own."""

    def __init__(self, table: dict[str, th.Tensor], rows: th.Tensor) -> None:
        self._table, self._rows = table, rows

    def __getitem__(self, name: str) -> th.Tensor:
        return self._table[name][self._rows]


class DeviceStore(FrameStore):
    """One tensor on the device, where sampling happens, too.

    :param device: of PyTorch, e.g. ``"cuda"``
    """

    def __init__(self, n_envs: int, n_frames: int, frame_size: int, device: th.device) -> None:
        super().__init__(n_envs, n_frames, frame_size)
        self.device, self.place = device, object()
        self._frames = self.zeros((n_envs * n_frames + 1, frame_size), np.uint8)  # the last one stays black
        self._rings = self._frames[:-1].view(n_envs, n_frames, frame_size)
        # Final frames stand in rows that are used again. More of them than are likely, since more memory is another
        # place, for which updates are compiled and recorded anew
        n_finals = self._n_finals(n_envs, n_frames)
        self._finals = self.zeros((n_finals, frame_size), np.uint8)
        self._row_of_cell: dict[int, int] = {}
        self._free_rows = list(range(n_finals))
        self._final_rows = self.zeros((n_envs * n_frames,), np.int64)  # of each cell

    @staticmethod
    def _n_finals(n_envs: int, n_frames: int) -> int:
        return max(64, n_envs * n_frames // 32)

    @classmethod
    def bytes_needed(cls, n_envs: int, n_frames: int, frame_size: int) -> int:
        """Final frames included, which are not compressed here."""
        return (n_envs * n_frames + cls._n_finals(n_envs, n_frames)) * frame_size

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> th.Tensor:
        return th.from_numpy(np.empty(0, dtype)).new_zeros(shape, device=self.device)

    def asarray(self, array: np.ndarray | th.Tensor) -> th.Tensor:
        if not isinstance(array, th.Tensor):
            array = th.from_numpy(np.require(array, requirements=["C", "W"]))
        return to_device(array, self.device)

    def sums(self, n_leaves: int) -> FlatSums:
        return FlatSums(n_leaves, self.device)

    def put(self, array: th.Tensor, position: int, values: Any) -> None:
        array[position] = self.asarray(th.as_tensor(np.asarray(values), dtype=array.dtype))

    def concatenate(self, arrays: Any) -> th.Tensor:
        return th.cat(arrays, dim=1)

    def table(self, n_rows: int, columns: dict[str, tuple[Any, tuple[int, ...]]]) -> dict[str, th.Tensor]:
        return {name: self.zeros((n_rows, *shape), dtype) for name, (dtype, shape) in columns.items()}

    def lookup(self, table: dict[str, th.Tensor], rows: th.Tensor) -> "_Columns":
        return _Columns(table, rows)

    def write(self, time: int, frames: np.ndarray, envs: Any = slice(None)) -> None:
        if not isinstance(envs, slice):
            envs = self.asarray(np.flatnonzero(envs))  # a mask's size would have to come back from the device
        self._rings[envs, time % self.n_frames] = self.asarray(frames)

    def read(self, times: th.Tensor, is_black: th.Tensor, envs: th.Tensor, out: th.Tensor) -> None:
        rows = envs * self.n_frames + times % self.n_frames
        rows.masked_fill_(is_black, self.n_envs * self.n_frames)
        th.index_select(self._frames, 0, rows.view(-1), out=out)

    def write_final(self, cell: int, frame: np.ndarray) -> None:
        self.drop_final(cell)
        if not self._free_rows:
            n_rows = len(self._finals)
            self._finals, self.place = th.cat([self._finals, th.zeros_like(self._finals)]), object()
            self._free_rows = list(range(n_rows, 2 * n_rows))  # now that they are there
        row = self._row_of_cell[cell] = self._free_rows.pop()
        self._finals[row] = self.asarray(frame)
        self._final_rows[cell] = row

    def drop_final(self, cell: int) -> None:
        if cell in self._row_of_cell:
            self._free_rows.append(self._row_of_cell.pop(cell))

    def read_finals(self, cells: th.Tensor, has_final: th.Tensor, out: th.Tensor) -> None:
        # Everywhere, and kept where it is one: to look first would wait for the device
        out.copy_(th.where(has_final[:, None], self._finals[self._final_rows[cells]], out))


STORES: dict[str, type[FrameStore]] = {
    "raw": RawStore,
    "compressed": CompressedStore,
    "memmap": MemmapStore,
    "device": DeviceStore,
}
