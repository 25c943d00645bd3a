"""The sum tree of prioritized replay (Schaul et al. 2016, appendix B.2.1; https://arxiv.org/abs/1511.05952)."""

from typing import Any

import numpy as np
import torch as th

from dqn_ext.cuda_graph import to_device

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

    def draw(self, places: np.ndarray) -> np.ndarray:
        """The leaves at ``places``, (B,), of the running sum, whose total counts as B."""
        return self.find(places * (self.total / len(places)))


class FlatSums:
    """The same on a device, and without levels: a GPU adds up a million weights sooner than it is told of three levels.

    Leaves and weights that it is asked for stay on the device, and nothing waits for them.

    :param n_leaves: how many weights; all are zero at first
    :param device: of PyTorch
    """

    def __init__(self, n_leaves: int, device: th.device) -> None:
        dtype = th.float32 if device.type == "mps" else th.float64  # which Apple's GPUs lack
        self._weights = th.zeros(n_leaves, dtype=dtype, device=device)

    @property
    def total(self) -> float:
        """The sum of all weights, on the host."""
        return float(self._weights.sum())

    def get(self, leaves: Any) -> th.Tensor:
        """The weights of ``leaves``."""
        return self._weights[self._here(leaves)]

    def set(self, leaves: Any, weights: Any) -> None:
        """Set the weights of ``leaves``; of a leaf that is named twice, any one counts."""
        self._weights[self._here(leaves)] = self._here(weights, self._weights.dtype)

    def draw(self, places: Any) -> th.Tensor:
        """The leaves at ``places``, (B,), of the running sum, whose total counts as B."""
        sums = self._weights.cumsum(dim=0)
        masses = self._here(places, sums.dtype) * (sums[-1] / len(places))
        # Rounding must not lead past the last weight
        masses = masses.minimum(sums[-1].nextafter(th.zeros_like(sums[-1])))
        return th.searchsorted(sums, masses, right=True).clamp(max=len(sums) - 1)

    def _here(self, array: Any, dtype: th.dtype | None = None) -> th.Tensor:
        return to_device(th.as_tensor(array, dtype=dtype), self._weights.device)


def stratified_places(n: int) -> np.ndarray:
    """One place in each of ``n`` parts of length 1, (n,), with numpy's generator."""
    return np.arange(n) + np.random.random_sample(n)
