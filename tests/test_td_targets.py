"""Targets against values worked out by hand. The decoys 99 and -99 show up wherever the wrong value is taken."""

import numpy as np
import pytest
import torch as th

from dqn_ext.td_targets import clip_to_returns, double_q_target, q_learning_target


def column(*values: float) -> th.Tensor:
    return th.tensor(values, dtype=th.float32).reshape(-1, 1)


def test_double_q_target_by_hand():
    # the online network selects actions 1, 0, 1 and 0; the target network's own maxima are decoys
    online = th.tensor([[1.0, 2.0], [5.0, 4.0], [0.0, 1.0], [3.0, 0.0]])
    target = th.tensor([[99.0, 10.0], [20.0, 99.0], [99.0, -7.0], [-40.0, 99.0]])
    rewards = column(1, -1, 0.5, 2)
    dones = column(0, 0, 1, 0)  # the third is terminal: its next value must not matter
    discounts = column(0.9, 0.81, 0.9, 0.729)  # of 1, 2, 1 and 3 steps
    expected = column(
        1 + 0.9 * 10,  # 10
        -1 + 0.81 * 20,  # 15.2
        0.5,
        2 + 0.729 * -40,  # -27.16
    )
    th.testing.assert_close(double_q_target(rewards, dones, discounts, online, target), expected)


def test_q_learning_target_by_hand():
    target = th.tensor([[-99.0, 10.0], [20.0, -99.0], [99.0, 99.0]])
    expected = column(1 + 0.9 * 10, -1 + 0.9 * 20, 0.5)
    th.testing.assert_close(q_learning_target(column(1, -1, 0.5), column(0, 0, 1), 0.9, target), expected)


def test_equal_networks_give_dqns_target_exactly():
    generator = th.Generator().manual_seed(0)
    q_values = th.randn(64, 6, generator=generator)
    rewards, dones = th.randn(64, 1, generator=generator), (th.rand(64, 1, generator=generator) < 0.3).float()
    assert th.equal(
        double_q_target(rewards, dones, 0.99, q_values, q_values), q_learning_target(rewards, dones, 0.99, q_values)
    )


def test_double_q_target_against_numpy():
    rng = np.random.default_rng(0)
    n_transitions, n_actions = 100, 5
    online, target = rng.normal(size=(2, n_transitions, n_actions)).astype(np.float32)
    rewards, discounts = rng.normal(size=(2, n_transitions, 1)).astype(np.float32)
    dones = rng.integers(0, 2, size=(n_transitions, 1)).astype(np.float32)
    expected = [
        rewards[i, 0] + (0 if dones[i, 0] else discounts[i, 0] * target[i, np.argmax(online[i])])
        for i in range(n_transitions)
    ]
    actual = double_q_target(*map(th.from_numpy, (rewards, dones, discounts, online, target)))
    np.testing.assert_allclose(actual.numpy()[:, 0], expected, rtol=1e-6)


def test_clip_to_returns():
    targets = column(-101, -99, 0.5, 100, 1e9)
    th.testing.assert_close(clip_to_returns(targets, 1, 0.99), column(-100, -99, 0.5, 100, 100))
    th.testing.assert_close(clip_to_returns(targets, 3, 0.9), column(-30, -30, 0.5, 30, 30))
    assert th.equal(clip_to_returns(targets, 1, 1), targets)


@pytest.mark.parametrize("shape", [(3,), (1, 3)])
def test_shapes_that_would_broadcast_are_refused(shape):
    q_values = th.zeros(3, 2)
    with pytest.raises(ValueError, match="one shape"):
        double_q_target(th.zeros(shape), th.zeros(3, 1), 0.99, q_values, q_values)
    with pytest.raises(ValueError, match="one shape"):
        double_q_target(th.zeros(3, 1), th.zeros(3, 1), 0.99, q_values, th.zeros(3, 4))
