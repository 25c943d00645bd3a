"""Ctrl-C may come at any place of ``add``."""

import inspect
import sys
from typing import Any

import numpy as np
import pytest
import torch as th

from dqn_ext import FrameReplayBuffer
from dqn_ext.replay.frame_stores import DeviceStore
from tests.replay.invariants import check_invariants
from tests.replay.streams import RandomStream, Transition
from tests.replay.test_oracle import ours

ADD = inspect.getsourcelines(FrameReplayBuffer.add)
COMMIT = ADD[1] + next(n for n, line in enumerate(ADD[0]) if "No call and no loop" in line)


def add_interrupted(buffer: FrameReplayBuffer, transition: Transition, at: int) -> bool:
    """:return: whether there are so many lines to be interrupted at"""
    n_lines = 0

    def trace(frame: Any, event: str, _: Any) -> Any:
        nonlocal n_lines
        if "dqn_ext" not in frame.f_code.co_filename:
            return None
        if event == "line" and not (frame.f_code.co_name == "add" and frame.f_lineno > COMMIT):
            n_lines += 1
            if n_lines == at:
                sys.settrace(None)
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        buffer.add(*transition)
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


def contents(buffer: FrameReplayBuffer) -> dict[tuple[int, int], list[np.ndarray]]:
    """What each position and environment holds, as its samples say."""
    cells = np.arange(buffer.size() * buffer.n_envs)
    samples = buffer._gather(buffer._draw(buffer._frames.asarray(cells)), None)
    fields = [buffer._host(field) for field in samples if field is not None]
    return {divmod(cell, buffer.n_envs): [field[cell] for field in fields] for cell in cells.tolist()}


def assert_equal_contents(buffer: FrameReplayBuffer, expected: FrameReplayBuffer, spared: int | None, at: int) -> None:
    """But for the position that is ``spared``."""
    wanted = contents(expected)
    for (position, env), fields in contents(buffer).items():
        if position != spared:
            for field, other in zip(fields, wanted[position, env], strict=True):
                np.testing.assert_array_equal(field, other, err_msg=f"line {at}, {position}, {env}")


@pytest.mark.parametrize("store", ["raw", "compressed", "device"])
@pytest.mark.parametrize("n_adds", [0, 12, 44])
def test_an_interrupt_costs_the_oldest_transition_at_most(store, n_adds):
    """The first one, before the ring is full, and after; the last two where the next compressed block begins."""
    at, goes_on = 0, True
    while goes_on:
        at += 1
        stream = RandomStream(n_adds, 2)
        buffer, expected = (ours(stream, 2 * 17, store=store, priority_exponent=0.5) for _ in range(2))
        for transition in stream.steps(n_adds):
            buffer.add(*transition)
            expected.add(*transition)
        transition = stream.step()
        goes_on = add_interrupted(buffer, transition, at)
        if not goes_on:
            expected.add(*transition)

        assert buffer.size() == expected.size()
        assert buffer.pos == expected.pos
        if expected.size() > 0:
            assert_equal_contents(buffer, expected, buffer.pos if buffer.full and goes_on else None, at)

        stream.reset(range(2))  # whoever goes on begins with new episodes
        for transition in stream.steps(18):
            buffer.add(*transition)
            expected.add(*transition)
        check_invariants(buffer)
        assert_equal_contents(buffer, expected, None, at)
    assert at > 30


def test_an_interrupt_while_final_frames_get_more_room(monkeypatch):
    store = DeviceStore(1, 100, 1, th.device("cpu"))
    frames = np.arange(100, dtype=np.uint8)[:, None]
    for cell in range(64):
        store.write_final(cell, frames[cell])

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(th, "zeros_like", interrupt)
        with pytest.raises(KeyboardInterrupt):
            store.write_final(64, frames[64])
    for cell in range(64, 100):
        store.write_final(cell, frames[cell])
    out = th.zeros(100, 1, dtype=th.uint8)
    store.read_finals(th.arange(100), th.ones(100, dtype=th.bool), out)
    assert th.equal(out, th.from_numpy(frames))
