"""Operations on a GPU that are recorded once and launched as one: a CUDA graph."""

import logging
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch as th

# Calls before one is recorded: the first ones choose algorithms, compile, and allocate
N_WARM_UP = 3


class Recording:
    """A function that is recorded after some calls, and from then on done again with other inputs.

    A recording executes nothing. Whatever the function reads beside its inputs must stand where it stood then, and
    nothing in it may wait for the device. Where it cannot be recorded it is called each time.

    :param function: of tensors on the device, returns a tensor
    :param inputs: numbers or arrays of the shapes and types of all later inputs
    :param device: a CUDA device
    :param records: whether to try
    """

    def __init__(
        self, function: Callable[..., th.Tensor], inputs: Sequence[Any], device: th.device, records: bool = True
    ) -> None:
        self._function, self.records = function, records
        tensors = [th.as_tensor(np.asarray(value)) for value in inputs]  # numbers stay doubles
        self._types, self._shapes = [tensor.dtype for tensor in tensors], [tensor.shape for tensor in tensors]
        self._sizes = [tensor.numel() for tensor in tensors]
        # One vector, and those of all calls go to the device in one copy; doubles hold whole numbers below 2^53 exactly
        self._inputs = th.zeros(sum(self._sizes), dtype=th.float64, device=device)
        self._total: th.Tensor | None = None  # of what the function has returned
        self._graph: CudaGraph | None = None
        self._n_calls = 0

    def repeat(self, inputs: Sequence[Sequence[Any]]) -> th.Tensor:
        """Call the function with each of the ``inputs``.

        :return: the mean of what it returns
        """
        if self._total is not None:
            self._total.zero_()
        vectors = [np.concatenate([np.ravel(value) for value in values], dtype=np.float64) for values in inputs]
        for vector in to_device(th.from_numpy(np.stack(vectors)), self._inputs.device):
            self._inputs.copy_(vector)
            if self._n_calls == N_WARM_UP and self.records:
                self._record()
            if self._graph is not None:
                self._graph.replay()
            else:
                self._call(self._inputs)
            self._n_calls += 1
        assert self._total is not None
        return self._total / len(inputs)

    def _call(self, vector: th.Tensor) -> None:
        parts = zip(vector.split(self._sizes), self._types, self._shapes, strict=True)
        result = self._function(*(part.to(dtype).view(shape) for part, dtype, shape in parts))
        if self._total is None:
            self._total = th.zeros_like(result)
        self._total += result

    def _record(self) -> None:
        try:
            self._graph = CudaGraph(self._call, self._inputs)
        except Exception as error:  # a recording is of use, and not needed
            logging.getLogger(__name__).warning("updates are not recorded as a CUDA graph: %s", error)
            self.records = False


class CudaGraph:
    """What a function does on the device, to be done again.

    :param function: of a tensor
    :param inputs: on a CUDA device; there the function finds its inputs each time
    :raises RuntimeError: where the function cannot be recorded
    """

    def __init__(self, function: Callable[[th.Tensor], None], inputs: th.Tensor) -> None:
        self._graph = th.cuda.CUDAGraph()
        stream = _stream(inputs.device)
        # Other threads, of a search with several jobs, may allocate meanwhile
        recording = th.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local")
        # The outer one comes back to the stream of before also where recording fails
        with th.cuda.device(inputs.device), th.cuda.stream(stream), recording:
            function(inputs)

    def replay(self) -> None:
        """Do it again. Returns at once."""
        self._graph.replay()


@cache
def _stream(device: th.device) -> th.cuda.Stream:
    """One for each device: PyTorch's own for recordings is on the first device that has recorded."""
    return th.cuda.Stream(device)


def to_device(tensor: th.Tensor, device: th.device) -> th.Tensor:
    """``tensor`` on a device, without waiting for what that has yet to do."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        pageable, tensor = tensor, th.empty_like(tensor, pin_memory=True)
        # By NumPy, on this core: PyTorch would wake its threads for it, whose cores the emulators have
        np.copyto(tensor.numpy(), pageable.numpy())
    return tensor.to(device, non_blocking=True)


class HostCopy:
    """A copy on the host. Whoever reads it waits for it; until then it is under way."""

    def __init__(self, tensor: th.Tensor) -> None:
        self._tensor, self._arrival = tensor, None
        if tensor.device.type == "cuda":
            self._tensor = th.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)
            self._arrival = th.cuda.current_stream(tensor.device).record_event()

    def is_there(self) -> bool:
        """Whether nobody would wait for it."""
        return self._arrival is None or self._arrival.query()

    def tolist(self) -> Any:
        """Cf. :meth:`torch.Tensor.tolist`."""
        if self._arrival is not None:
            self._arrival.synchronize()
        return self._tensor.tolist()
