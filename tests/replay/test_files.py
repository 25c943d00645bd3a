"""Saving and loading: compact, the same again, and never a wrong result from a damaged file."""

import copy
import errno
import io
import os
import pickle
import subprocess
import sys
import weakref
import zipfile

import numpy as np
import pytest

from dqn_ext.errors import InvalidInput
from dqn_ext.replay.frame_stores import STORES as STORE_CLASSES
from tests.replay.invariants import check_invariants
from tests.replay.streams import RandomStream, assert_equal_samples, transitions
from tests.replay.test_oracle import STORES, assert_equal_everywhere, ours


def filled(n_adds: int = 30, capacity: int = 20, n_steps: int = 1, **kwargs):
    stream = RandomStream(n_adds, 2)
    buffer = ours(stream, capacity * 2, n_steps, **kwargs)
    for transition in stream.steps(n_adds):
        buffer.add(*transition)
    return stream, buffer


@pytest.mark.parametrize("n_adds", [0, 1, 13, 20, 33])
@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("other_store", STORES)
def test_the_same_again(tmp_path, n_adds, store, other_store, monkeypatch):
    """In any store: the same transitions at the same indices, and learning goes on in the middle of an episode."""
    stream, buffer = filled(n_adds, n_steps=3, store=store)
    buffer.save(tmp_path / "memory")
    loaded = ours(stream, 40, 3, store=other_store)
    loaded.load(tmp_path / "memory")
    assert (loaded.pos, loaded.full) == (buffer.pos, buffer.full)
    for transition in [None, *stream.steps(25)]:
        if transition is not None:
            loaded.add(*transition)
            buffer.add(*transition)
        check_invariants(loaded)
        if buffer.size():
            assert_equal_everywhere(loaded, buffer, monkeypatch)


def test_into_a_larger_one(tmp_path):
    stream, buffer = filled(33)
    buffer.save(tmp_path / "memory")
    loaded = ours(stream, 100)
    loaded.load(tmp_path / "memory")
    check_invariants(loaded)
    assert (loaded.pos, loaded.full) == (20, False)
    envs = np.zeros(20, int)
    oldest_first = (33 + np.arange(20)) % 20
    assert_equal_samples(transitions(loaded, np.arange(20), envs), transitions(buffer, oldest_first, envs))


def test_after_a_reset_the_trajectory_is_broken_off(tmp_path):
    """A new process starts with a reset: the last frame before it is kept, and no return runs across."""
    stream, buffer = filled(10, n_steps=3, store="raw")
    stream.end_probability = 0.0
    buffer.add(*stream.step())
    wanted = transitions(buffer, [10], 0)
    buffer.save(tmp_path / "memory")
    loaded = ours(stream, 40, 3)
    loaded.load(tmp_path / "memory")
    stream.reset(range(2))
    loaded.add(*stream.step())
    check_invariants(loaded)
    assert_equal_samples(transitions(loaded, [10], 0), wanted)


def test_priorities(tmp_path):
    stream, buffer = filled(25, priority_exponent=0.6)
    buffer.update_priorities(np.arange(40), np.arange(40) / 7)
    buffer.save(tmp_path / "memory")
    loaded = ours(stream, 40, priority_exponent=0.6)
    loaded.load(tmp_path / "memory")
    np.testing.assert_allclose(loaded._priorities.get(np.arange(40)), buffer._priorities.get(np.arange(40)), rtol=1e-12)
    assert loaded._max_priority == pytest.approx(buffer._max_priority)
    # From a memory without priorities, all are new
    filled(25)[1].save(tmp_path / "uniform")
    loaded.load(tmp_path / "uniform")
    np.testing.assert_array_equal(loaded._priorities.get(np.arange(40)), 1.0)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda buffer: pickle.loads(pickle.dumps(buffer))])
def test_pickle(copied, monkeypatch):
    """SB3's own DQN saves its buffer so."""
    _, buffer = filled(n_steps=3, store="compressed", priority_exponent=0.5)
    buffer.anneal(0.5)
    other = copied(buffer)
    assert (other.importance_exponent, other.device) == (buffer.importance_exponent, buffer.device)
    other.anneal(0.0)
    assert other.importance_exponent == 0.4
    other.anneal(0.5)
    assert (other.store, other.n_steps, other.gamma, other.priority_exponent) == ("compressed", 3, 0.9, 0.5)
    check_invariants(other)
    assert_equal_everywhere(other, buffer, monkeypatch)


def test_one_store_at_a_time(tmp_path, monkeypatch):
    """Of a memory that fills the machine there can be no second one while a file is read."""
    stream, buffer = filled()
    buffer.save(tmp_path / "memory")
    stores = weakref.WeakSet()

    class Store(STORE_CLASSES["raw"]):
        def __init__(self, *args):
            assert not stores
            super().__init__(*args)
            stores.add(self)

    monkeypatch.setitem(STORE_CLASSES, "raw", Store)
    loaded = ours(stream, 40)
    loaded.load(tmp_path / "memory")
    loaded.load(tmp_path / "memory")
    check_invariants(loaded)


def test_compact(tmp_path):
    from tests.replay.test_real_frames import add_pong

    buffer = add_pong(1000)
    buffer.save(tmp_path / "memory")
    assert os.path.getsize(tmp_path / "memory") < 1000 * 200


# ---------------------------------------------------------------------- what does not fit


@pytest.mark.parametrize(
    ("stream", "sentence"),
    [
        (RandomStream(0, 3), r"n_envs 2, and it must be 3"),
        (RandomStream(0, 2, shape=(6, 6)), r"obs_shape \[4, 6, 5\], and it must be \[4, 6, 6\]"),
        (RandomStream(0, 2, n_stack=2, n_channels=2), r"n_stack 4, and it must be 2"),
    ],
)
def test_other_shapes(tmp_path, stream, sentence):
    filled()[1].save(tmp_path / "memory")
    with pytest.raises(InvalidInput, match=sentence):
        ours(stream, 60).load(tmp_path / "memory")


def test_too_large(tmp_path):
    stream, buffer = filled()
    buffer.save(tmp_path / "memory")
    small = ours(stream, 38)
    with pytest.raises(InvalidInput, match=r"holds 40 transitions, more than buffer_size \(38\) has room for"):
        small.load(tmp_path / "memory")
    assert small.size() == 0


def test_every_truncation(tmp_path):
    stream, buffer = filled()
    content = io.BytesIO()
    buffer.save(content)
    content = content.getvalue()
    loaded = ours(stream, 40)
    for length in range(0, len(content), 50):
        with pytest.raises(InvalidInput, match="damaged"):
            loaded.load(io.BytesIO(content[:length]))
        assert loaded.size() == 0


def test_flipped_bits(tmp_path, monkeypatch):
    """Either a sentence, or the flip was in a place that carries nothing and the content is the same."""
    stream, buffer = filled()
    content = io.BytesIO()
    buffer.save(content)
    content = content.getvalue()
    loaded = ours(stream, 40)
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(500):
        damaged = bytearray(content)
        damaged[rng.integers(len(content))] ^= 1 << rng.integers(8)
        try:
            loaded.load(io.BytesIO(bytes(damaged)))
        except InvalidInput:
            refused += 1
            assert loaded.size() == 0
        else:
            assert_equal_everywhere(loaded, buffer, monkeypatch)
    assert refused > 400


@pytest.mark.parametrize("content", [b"", b"x", pickle.dumps([1]), b"PK\x05\x06" + 18 * b"\0"])
def test_foreign_files(tmp_path, content):
    (tmp_path / "memory").write_bytes(content)
    with pytest.raises(InvalidInput, match="is no replay memory of dqn-ext, or it is damaged"):
        filled()[1].load(tmp_path / "memory")


def rewritten(content: bytes, **members: bytes) -> io.BytesIO:
    """The container with other members, whose checksums are right: what an attacker would write."""
    new = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(new, "w") as archive:
        for name in old.namelist():
            archive.writestr(name, members.get(name, old.read(name)))
    new.seek(0)
    return new


def test_hostile_members():
    stream, buffer = filled()
    file = io.BytesIO()
    buffer.save(file)
    content = file.getvalue()
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        header = archive.read("header.json").decode()
    objects = io.BytesIO()
    np.save(objects, np.array([print] * 20, dtype=object), allow_pickle=True)
    hostile = {
        "a newer version": {"header.json": header.replace('"version": 1', '"version": 2').encode()},
        "sizes": {"header.json": header.replace('"size": 20', '"size": -3').encode()},
        "more sizes": {"header.json": header.replace('"size": 20', '"size": "20000000000"').encode()},
        "finals": {"header.json": header.replace('"n_finals": ', '"n_finals": 9').encode()},
        "pickled objects": {"rewards.npy": objects.getvalue()},
        "a bomb": {"rewards.npy": bytes(10**7)},
        "no frames": {"frames/0": b"abc"},
    }
    loaded = ours(stream, 40)
    for name, members in hostile.items():
        with pytest.raises(InvalidInput):
            loaded.load(rewritten(content, **members))
        assert loaded.size() == 0, name


# ---------------------------------------------------------------------- the disk


def test_a_full_disk_leaves_the_old_file(tmp_path):
    """A file size limit stands for the full disk: both end in an OSError in the middle of writing."""
    code = f"""
import resource, signal, sys
sys.path.insert(0, {os.getcwd()!r})
from tests.replay.test_files import filled
from dqn_ext.errors import InvalidInput
from dqn_ext.replay.frame_stores import STORES as STORE_CLASSES
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
filled(12)[1].save("memory")
old = open("memory", "rb").read()
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
try:
    filled(25)[1].save("memory")
except InvalidInput as error:
    print(error)
assert open("memory", "rb").read() == old
import os; print(os.listdir("."))
"""
    output = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, text=True, capture_output=True, check=True)
    assert output.stdout == "The replay memory could not be saved to memory: File too large.\n['memory']\n"


def test_room_for_the_memory_map_is_taken_at_once(tmp_path, monkeypatch):
    """A mapped file that finds the disk full later would kill the process."""
    asked = []

    def full(descriptor, offset, size):
        asked.append(size)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    stream = RandomStream(0, 1)
    with pytest.raises(InvalidInput, match="No space left on device"):
        ours(stream, 1000, store="memmap", store_dir=str(tmp_path))
    assert asked[0] > 1000 * ours(stream, 10)._frame_size


def test_no_room_for_the_memory_map(tmp_path):
    stream = RandomStream(0, 1)
    with pytest.raises(
        InvalidInput, match=rf"needs .* GB in '{tmp_path}': .* A smaller buffer_size, or another store_dir"
    ):
        ours(stream, 10**13, store="memmap", store_dir=str(tmp_path))
    with pytest.raises(InvalidInput, match="No such file or directory"):
        ours(stream, 10, store="memmap", store_dir=str(tmp_path / "nowhere"))
    assert not list(tmp_path.iterdir())
