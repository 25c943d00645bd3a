"""The container of a saved replay memory: a zip of a header, numpy arrays and compressed frames.

Reading it unpickles nothing, believes no size it is not told to expect, and checks what it reads (the zip's CRC-32).
"""

import io
import json
import math
import pathlib
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any, cast

import numpy as np
import zstandard

from dqn_ext.errors import InvalidInput
from dqn_ext.whole_files import replaced_when_whole

FORMAT = "dqn-ext replay memory"
VERSION = 1

Path = str | pathlib.Path | IO[bytes] | io.BufferedIOBase


def is_replay_file(path: Path) -> bool:
    """Whether the file begins as this format does, even if it is cut short; SB3's are pickles."""
    if isinstance(path, (str, pathlib.Path)):
        with open(path, "rb") as file:
            return file.read(4) == b"PK\x03\x04"
    position = path.tell()
    begin = path.read(4)
    path.seek(position)
    return begin == b"PK\x03\x04"


def write(
    path: Path,
    header: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    frames: Iterable[tuple[str, np.ndarray]],
) -> None:
    """Write a container. A file that stands at ``path`` is replaced when the new one is whole.

    :param header: what JSON can hold
    :param arrays: small arrays by their names
    :param frames: names and blocks of frames, of type uint8, which are taken one after the other
    :raises InvalidInput: where the disk is full or the folder cannot be written
    """
    if not isinstance(path, (str, pathlib.Path)):
        _write(cast(IO[bytes], path), header, arrays, frames)
        return
    try:
        with replaced_when_whole(pathlib.Path(path)) as unfinished, unfinished.open("wb") as file:
            _write(file, header, arrays, frames)
    except OSError as error:
        raise InvalidInput(f"The replay memory could not be saved to {path}: {error.strerror}.") from error


def _write(
    file: IO[bytes],
    header: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    frames: Iterable[tuple[str, np.ndarray]],
) -> None:
    compressor = zstandard.ZstdCompressor(level=1)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("header.json", json.dumps({"format": FORMAT, "version": VERSION, **header}, indent=1))
        for name, array in arrays.items():
            content = io.BytesIO()
            np.lib.format.write_array(content, array, allow_pickle=False)
            archive.writestr(f"{name}.npy", content.getvalue(), zipfile.ZIP_DEFLATED)
        for name, block in frames:
            archive.writestr(name, compressor.compress(np.ascontiguousarray(block).data))


class Reader:
    """An open container; every method raises on content that is not what it has been told to expect."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self.header: dict[str, Any] = json.loads(self._read("header.json", 100_000))
        if self.header.get("format") != FORMAT:
            raise ValueError("its format is another one")
        if self.header["version"] != VERSION:
            raise InvalidInput(
                f"The replay memory is of version {self.header['version']}, and this dqn-ext reads version {VERSION}."
            )

    def array(self, name: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """An array by its name."""
        content = self._read(f"{name}.npy", math.prod(shape) * np.dtype(dtype).itemsize + 4096)
        array = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
        if array.shape != shape or array.dtype != dtype:
            raise ValueError(f"{name} is an array of {array.dtype} {array.shape}, not {np.dtype(dtype)} {shape}")
        return array

    def frames(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """A block of frames by its name."""
        n_bytes = math.prod(shape)
        compressed = self._read(name, n_bytes + n_bytes // 64 + 4096)
        if zstandard.frame_content_size(compressed) != n_bytes:
            raise ValueError(f"{name} does not hold {n_bytes} bytes")
        content = zstandard.ZstdDecompressor().decompress(compressed)
        return np.frombuffer(content, np.uint8).reshape(shape)

    def _read(self, member: str, most: int) -> bytes:
        if self._archive.getinfo(member).file_size > most:
            raise ValueError(f"{member} is larger than it can be")
        return self._archive.read(member)


@contextmanager
def reading(path: Path) -> Iterator[Reader]:
    """Open a container.

    :raises InvalidInput: on a file that is truncated, damaged, foreign or of another version, here and in the block
    """
    try:
        with zipfile.ZipFile(cast(Any, path)) as archive:
            yield Reader(archive)
    except (InvalidInput, FileNotFoundError):
        raise
    except Exception as error:  # zipfile, zlib, zstandard, json and numpy each have their own
        name = path if isinstance(path, (str, pathlib.Path)) else "The file"
        raise InvalidInput(f"{name} is no replay memory of dqn-ext, or it is damaged ({error}).") from error
