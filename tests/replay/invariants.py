"""What holds for a FrameReplayBuffer after each operation; every invariant has a name."""

import numpy as np

from dqn_ext import FrameReplayBuffer


def check_invariants(buffer: FrameReplayBuffer) -> None:
    """Assert all of them."""
    size, capacity, n_envs = buffer.size(), buffer.buffer_size, buffer.n_envs
    order = (buffer.pos - size + np.arange(size)) % capacity  # oldest first
    dones, has_final = (buffer._host(array)[order] for array in (buffer.dones, buffer._has_final))
    n_history = buffer._host(buffer._n_history)[order].astype(int)

    assert 0 <= buffer.pos < capacity, "the next position lies in the ring"
    assert buffer.full == (size == capacity), "a full ring is full"

    assert (has_final | ~dones).all(), "the end of an episode has a final frame"
    cells = {
        int(p * n_envs + e) for p, e in zip(order[np.nonzero(has_final)[0]], np.nonzero(has_final)[1], strict=True)
    }
    assert cells == set().union(*buffer._cells_with_final.values()), "final frames are kept for the cells that have one"
    store = buffer._frames
    kept = set(getattr(store, "_row_of_cell", store._final_frames))
    assert kept == cells, "the store keeps no final frame that nobody has"

    assert (n_history < buffer.n_stack).all(), "a stack has room for its history"
    grown = np.minimum(n_history[:-1] + 1, buffer.n_stack - 1)
    goes_on = ~has_final[:-1]
    assert (n_history[1:][goes_on] == grown[goes_on]).all(), "history grows by a frame within an episode"
    assert (n_history[1:][~goes_on] == 0).all(), "an episode starts without history"

    if buffer.priority_exponent > 0:
        weights = buffer._priorities.get(np.arange(capacity * n_envs)).reshape(capacity, n_envs)
        assert np.isclose(weights.sum(), buffer._priorities.total), "the root is the sum of the leaves"
        assert (weights[order] > 0).all(), "every transition can be drawn"
        assert (weights > 0).sum() == size * n_envs, "nothing else can be drawn"
