"""Operations on a GPU that are recorded once and launched as one: a CUDA graph."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch as th


class CudaGraph:
    """What a function does on the device, done again with other inputs.

    A recording executes nothing. Whatever the function reads beside its inputs must stand where it stood then, and
    nothing in it may wait for the device.

    :param function: of tensors, returns a tensor
    :param inputs: numbers or arrays of the shapes and types of all later inputs
    :param device: a CUDA device
    :raises RuntimeError: where the function cannot be recorded
    """

    def __init__(self, function: Callable[..., th.Tensor], inputs: Sequence[Any], device: th.device) -> None:
        self._inputs = [th.as_tensor(value, device=device).clone() for value in inputs]
        self._graph = th.cuda.CUDAGraph()
        # The outer one comes back to the stream of before also where recording fails
        stream = _stream(device)
        with th.cuda.device(device), th.cuda.stream(stream), th.cuda.graph(self._graph, stream=stream):
            self._output = function(*self._inputs)

    def __call__(self, inputs: Sequence[Any]) -> th.Tensor:
        """:return: what the function returns for these inputs"""
        for place, value in zip(self._inputs, inputs, strict=True):
            if place.dim() == 0:
                place.fill_(value)
            else:
                place.copy_(th.as_tensor(value), non_blocking=True)  # else the host would wait for the device
        self._graph.replay()
        return self._output.clone()


@cache
def _stream(device: th.device) -> th.cuda.Stream:
    """One for each device: PyTorch's own for recordings is on the first device that has recorded."""
    return th.cuda.Stream(device)
