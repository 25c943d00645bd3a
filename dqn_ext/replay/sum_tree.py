"""The sum tree of prioritized replay (Schaul et al. 2016, appendix B.2.1; https://arxiv.org/abs/1511.05952)."""

import numpy as np

_FANOUT = 32  # wide and flat: a handful of vectorized steps from the root to a leaf


class SumTree:
    """Non-negative weights, and draws in proportion to them; all operations take many leaves at once.

    Every inner node is the sum of its children, computed anew whenever one changes: rounding does not add up.

    :param n_leaves: how many weights; all are zero at first
    """

    def __init__(self, n_leaves: int) -> None:
        self.n_leaves = n_leaves
        # From the leaves to the root, padded to whole families
        self._levels: list[np.ndarray] = []
        n_nodes = n_leaves
        while True:
            n_families = -(-n_nodes // _FANOUT)
            self._levels.append(np.zeros((n_families, _FANOUT)))
            if n_families == 1:
                break
            n_nodes = n_families

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
        families = np.zeros(len(masses), np.int64)
        masses = masses.copy()
        rows = np.arange(len(masses))
        for level in reversed(self._levels):
            weights = level[families]
            sums = weights.cumsum(axis=1)
            children = (sums <= masses[:, None]).sum(axis=1)
            # Where rounding leads past the last weight, take that
            past = sums[:, -1] <= masses
            if past.any():
                children[past] = _FANOUT - 1 - (weights[past, ::-1] > 0).argmax(axis=1)
            masses -= np.where(children > 0, sums[rows, children - 1], 0.0)
            families = families * _FANOUT + children
        return families

    def sample(self, n: int) -> np.ndarray:
        """Draw ``n`` leaves, one from each of ``n`` equal parts of the total (stratified), with numpy's generator."""
        return self.find((np.arange(n) + np.random.random_sample(n)) * (self.total / n))
