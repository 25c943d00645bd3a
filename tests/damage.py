"""What becomes of files on bad disks and cut connections."""

from collections.abc import Iterator

import numpy as np


def damaged(content: bytes, n_flips: int) -> Iterator[bytes]:
    """A file's content truncated at every kilobyte, then with one bit flipped, ``n_flips`` times."""
    for length in range(0, len(content), 1024):
        yield content[:length]
    rng = np.random.default_rng(0)
    for position in rng.integers(len(content), size=n_flips):
        flipped = bytearray(content)
        flipped[position] ^= 1 << rng.integers(8)
        yield bytes(flipped)
