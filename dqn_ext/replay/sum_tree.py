"""The sum tree of prioritized replay (Schaul et al. 2016, appendix B.2.1; https://arxiv.org/abs/1511.05952)."""

import numpy as np

# Wide and flat: a few vectorized steps from the root's children to a leaf
_FANOUT = 64
_ROOT_FANOUT = 4096


class SumTree:
    """Non-negative weights, and draws in proportion to them; all operations take many leaves at once.

    Every inner node is the sum of its children, computed anew whenever one changes: rounding does not add up.

    :param n_leaves: how many weights; all are zero at first
    """

    def __init__(self, n_leaves: int) -> None:
        self.n_leaves = n_leaves
        # From the leaves to the root's children; each level below those in families, (n_families, _FANOUT)
        self._levels: list[np.ndarray] = []
        n_nodes = n_leaves
        while n_nodes > _ROOT_FANOUT:
            n_nodes = -(-n_nodes // _FANOUT)
            self._levels.append(np.zeros((n_nodes, _FANOUT)))
        self._levels.append(np.zeros(n_nodes))

    @property
    def total(self) -> float:
        """The sum of all weights."""
        return float(self._levels[-1].sum())

    def get(self, leaves: np.ndarray) -> np.ndarray:
        """The weights of ``leaves``."""
        return self._levels[0].reshape(-1)[leaves]

    def set(self, leaves: np.ndarray, weights: np.ndarray | float) -> None:
        """Set the weights of ``leaves``; of a leaf that is named twice, the last one counts."""
        self._levels[0].reshape(-1)[leaves] = weights
        families = leaves
        for level, above in zip(self._levels, self._levels[1:], strict=False):
            families = families // _FANOUT
            above.reshape(-1)[families] = level[families].sum(axis=1)

    def find(self, masses: np.ndarray) -> np.ndarray:
        """The leaf at which the running sum of the weights first exceeds each of the ``masses``, in [0, total)."""
        root = self._levels[-1]
        sums = root.cumsum()
        # Where rounding leads past the last weight, take that
        last = len(root) - 1 - (root[::-1] > 0).argmax()
        nodes = np.minimum(sums.searchsorted(masses, side="right"), last)
        masses = masses - np.where(nodes > 0, sums[nodes - 1], 0.0)

        rows = np.arange(len(masses))
        for level in reversed(self._levels[:-1]):
            weights = level[nodes]
            sums = weights.cumsum(axis=1)
            children = (sums <= masses[:, None]).sum(axis=1)
            past = children == _FANOUT
            if past.any():
                children[past] = _FANOUT - 1 - (weights[past, ::-1] > 0).argmax(axis=1)
            masses -= np.where(children > 0, sums[rows, children - 1], 0.0)
            nodes = nodes * _FANOUT + children
        return nodes

    def sample(self, n: int) -> np.ndarray:
        """Draw ``n`` leaves, one from each of ``n`` equal parts of the total (stratified), with numpy's generator."""
        return self.find((np.arange(n) + np.random.random_sample(n)) * (self.total / n))
