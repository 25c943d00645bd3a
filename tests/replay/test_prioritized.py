"""Prioritized replay (Schaul et al. 2016) against its equations."""

import numpy as np
import pytest
from scipy.stats import chisquare

from tests.replay.invariants import check_invariants
from tests.replay.streams import RandomStream, assert_equal_samples, oracle
from tests.replay.test_oracle import STORES, ours


@pytest.fixture
def stream():
    return RandomStream(0, n_envs=3)


@pytest.mark.parametrize("store", ["raw", "device"])
def test_probabilities_and_weights(stream, store):
    """Equation 1: P(i) = p_i^alpha / sum_k p_k^alpha; section 3.4: w_i = (N P(i))^-beta / max_j w_j."""
    np.random.seed(0)
    buffer = ours(stream, 60, store=store, priority_exponent=0.6, importance_exponent=0.5)
    for transition in stream.steps(20):
        buffer.add(*transition)
    td_errors = np.random.default_rng(1).normal(size=60) * 3
    buffer.update_priorities(np.arange(60), td_errors)
    priorities = (np.abs(td_errors) + 1e-6) ** 0.6
    probabilities = priorities / priorities.sum()

    counts = np.zeros(60)
    for _ in range(4000):
        samples = buffer.sample(16)
        indices = np.asarray(samples.indices)
        np.add.at(counts, indices, 1)
        weights = (60 * probabilities[indices]) ** -0.5
        np.testing.assert_allclose(samples.weights.numpy()[:, 0], weights / weights.max(), rtol=1e-5)
    assert chisquare(counts, probabilities * counts.sum()).pvalue > 0.01


@pytest.mark.parametrize("store", ["raw", "device"])
def test_new_transitions_have_the_largest_priority(stream, store):
    buffer = ours(stream, 30, store=store, priority_exponent=1.0)
    buffer.add(*stream.step())
    np.testing.assert_array_equal(buffer._priorities.get(np.arange(6)), [1, 1, 1, 0, 0, 0])
    buffer.update_priorities(np.array([0, 1]), np.array([-7.0, 0.5]))
    buffer.update_priorities(np.array([2]), np.array([0.1]))
    buffer.add(*stream.step())
    np.testing.assert_allclose(buffer._priorities.get(np.arange(6)), [7, 0.5, 0.1, 7, 7, 7], rtol=1e-4)
    # An overwritten transition's priority goes with it
    for transition in stream.steps(9):
        buffer.add(*transition)
    np.testing.assert_allclose(buffer._priorities.get(np.arange(3)), [7, 7, 7], rtol=1e-5)


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("n_steps", [1, 3])
def test_samples_are_the_transitions_of_their_indices(stream, store, n_steps, monkeypatch):
    buffer = ours(stream, 60, n_steps, store=store, priority_exponent=0.7)
    expected = oracle(stream, 60, n_steps)
    for transition in stream.steps(90):
        buffer.add(*transition)
        expected.add(*transition)
        samples = buffer.sample(8)
        buffer.update_priorities(samples.indices, np.random.normal(size=8))
        check_invariants(buffer)
        positions, envs = np.divmod(np.asarray(samples.indices), 3)
        with monkeypatch.context() as patch:
            patch.setattr(np.random, "randint", lambda *args, envs=envs, **kwargs: envs)
            assert_equal_samples(samples, expected._get_samples(positions))
        assert samples.weights.shape == (8, 1)
        assert samples.weights.max() == 1


def test_anneal(stream):
    buffer = ours(stream, 30, priority_exponent=0.6, importance_exponent=0.4)
    for progress, exponent in [(0.0, 0.4), (0.5, 0.7), (1.0, 1.0)]:
        buffer.anneal(progress)
        assert buffer.importance_exponent == pytest.approx(exponent)


@pytest.mark.parametrize("priority_exponent", [0.0, 0.6])
def test_an_empty_memory(stream, priority_exponent):
    with pytest.raises(ValueError, match="The replay memory is empty"):
        ours(stream, 30, priority_exponent=priority_exponent).sample(4)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_td_error_that_is_no_number(stream, bad):
    buffer = ours(stream, 30, priority_exponent=0.6)
    buffer.add(*stream.step())
    with pytest.raises(ValueError, match="learning has diverged"):
        buffer.update_priorities(np.array([0, 1]), np.array([1.0, bad]))
    np.testing.assert_array_equal(buffer._priorities.get(np.arange(3)), 1.0)


def test_on_a_device_a_td_error_that_is_no_number_counts_as_0(stream):
    """The host does not wait for the errors, and a sum that is no number would lead past the last transition."""
    buffer = ours(stream, 30, store="device", priority_exponent=1.0)
    buffer.add(*stream.step())
    buffer.update_priorities(np.arange(3), np.array([np.nan, np.inf, 0.5]))
    np.testing.assert_allclose(buffer._priorities.get(np.arange(3)), [1e-6, 1e-6, 0.5], rtol=1e-3)
    assert float(buffer._max_priority) == 1


def test_the_same_seed_draws_the_same(stream):
    buffer = ours(stream, 30, priority_exponent=0.6)
    for transition in stream.steps(10):
        buffer.add(*transition)
    np.random.seed(3)
    first = buffer.sample(20).indices
    np.random.seed(3)
    np.testing.assert_array_equal(first, buffer.sample(20).indices)
