"""The sum tree against a naive twin, and its draws against the distribution they should have."""

import numpy as np
import pytest
import torch as th
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from dqn_ext.replay.sum_tree import FlatSums, SumTree, stratified_places


def flat_sums(n_leaves):
    return FlatSums(n_leaves, th.device("cpu"))


both = pytest.mark.parametrize("sums", [SumTree, flat_sums])


class NaiveTree:
    """The same with a plain array."""

    def __init__(self, n_leaves):
        self.weights = np.zeros(n_leaves)

    def find(self, masses):
        return np.searchsorted(np.cumsum(self.weights), masses, side="right")


# Weights that add up without rounding: both trees must agree exactly, also on the borders
exact_weights = st.integers(0, 2**20).map(lambda weight: weight / 1024)


@settings(deadline=None)
# Trees of one, two and three levels
@given(st.data(), st.one_of(st.integers(1, 200), st.integers(4090, 20_000), st.integers(262_140, 270_000)))
def test_against_the_naive_twin(data, n_leaves):
    tree, twin = SumTree(n_leaves), NaiveTree(n_leaves)
    for _ in range(data.draw(st.integers(1, 4))):
        leaves = np.array(data.draw(st.lists(st.integers(0, n_leaves - 1), min_size=1, max_size=40)))
        weights = np.array(data.draw(st.lists(exact_weights, min_size=len(leaves), max_size=len(leaves))))
        tree.set(leaves, weights)
        twin.weights[leaves] = weights
    assert tree.total == twin.weights.sum()
    np.testing.assert_array_equal(tree.get(np.arange(n_leaves)), twin.weights)
    if tree.total > 0:
        borders = np.cumsum(twin.weights)[:-1]
        fractions = np.array(data.draw(st.lists(st.integers(0, 1023), min_size=1, max_size=20))) / 1024
        masses = np.concatenate([borders[borders < tree.total], fractions * tree.total])
        np.testing.assert_array_equal(tree.find(masses), twin.find(masses))


@both
def test_never_draws_what_weighs_nothing(sums):
    rng = np.random.default_rng(0)
    for _ in range(200):
        n_leaves = int(rng.integers(1, 20_000))
        weights = rng.random(n_leaves) ** 8 * (rng.random(n_leaves) < 0.1)
        weights[rng.integers(n_leaves)] = 1e-9
        tree = sums(n_leaves)
        tree.set(np.arange(n_leaves), weights)
        places = np.concatenate([rng.random(500) * 503, [0.0, np.nextafter(503, 0), 503]])
        assert (weights[tree.draw(places)] > 0).all()


def test_rounding_does_not_add_up():
    rng = np.random.default_rng(0)
    tree, weights = SumTree(20_000), np.zeros(20_000)
    for _ in range(5000):
        leaves = rng.integers(0, 20_000, 32)
        weights[leaves] = 10.0 ** rng.integers(-12, 12)
        tree.set(leaves, weights[leaves])
    assert tree.total == pytest.approx(weights.sum(), rel=1e-14)


@both
def test_draws_have_the_wanted_distribution(sums):
    np.random.seed(0)
    rng = np.random.default_rng(1)
    weights = rng.exponential(size=6000)
    tree = sums(6000)
    tree.set(np.arange(6000), weights)
    drawn = np.concatenate([np.asarray(tree.draw(stratified_places(32))) for _ in range(10_000)])
    counts = np.bincount(drawn, minlength=6000)
    wanted = weights / weights.sum() * len(drawn)
    likely = wanted > 20
    # Stratified draws scatter less than independent ones: only too large a distance is wrong
    assert chisquare(counts[likely], wanted[likely] * counts[likely].sum() / wanted[likely].sum()).pvalue > 0.01
    assert not (chisquare(counts[likely], np.full(likely.sum(), counts[likely].mean())).pvalue > 0.01), "can fail"


@both
def test_draws_are_stratified(sums):
    tree = sums(64)
    tree.set(np.arange(64), 1.0)
    for _ in range(20):
        np.testing.assert_array_equal(np.sort(tree.draw(stratified_places(64))), np.arange(64))
    np.testing.assert_array_equal(tree.draw(np.arange(64.0)), np.arange(64), err_msg="on the borders")


def test_flat_sums_are_the_tree():
    """The same leaves for the same places, the first and the last ones among them."""
    rng = np.random.default_rng(0)
    for _ in range(100):
        n_leaves = int(rng.integers(1, 20_000))
        tree, flat = SumTree(n_leaves), flat_sums(n_leaves)
        for _ in range(3):
            leaves = rng.permutation(n_leaves)[: rng.integers(1, n_leaves + 1)]
            weights = rng.integers(0, 2**20, len(leaves)) * (rng.random(len(leaves)) < 0.3) / 1024
            weights[0] = 1.0
            tree.set(leaves, weights)
            flat.set(th.from_numpy(leaves), th.from_numpy(weights))
        assert flat.total == tree.total
        np.testing.assert_array_equal(flat.get(np.arange(n_leaves)), tree.get(np.arange(n_leaves)))
        places = np.concatenate([[0.0, np.nextafter(66, 0)], stratified_places(64)])
        np.testing.assert_array_equal(flat.draw(places), tree.draw(places))
