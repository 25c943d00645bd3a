"""How an update is executed: in which precision, and with as few walks over the weights as may be."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.policies import BasePolicy
from torch import nn
from torch.nn import functional as F

from dqn_ext.cuda_graph import CudaGraph
from dqn_ext.errors import InvalidInput
from dqn_ext.features import WideLinear
from dqn_ext.policies import QNetwork

PRECISIONS = ("auto", "float32", "bfloat16")
# Updates before one is recorded: the first ones choose algorithms, and allocate
N_WARM_UP = 3


class Learner:
    """Makes the optimizer's steps for one policy, whose networks it sets to a precision.

    In bfloat16 the features extractor's products and convolutions are computed in it (PyTorch's autocast). Weights and
    optimizer stay in float32, and so do the layers after the extractor: a TD error is a small difference of Q-values.

    :param policy: whose ``optimizer`` makes the steps
    :param device: on which it is
    :param precision: ``"float32"``, ``"bfloat16"``, or ``"auto"``: bfloat16 where the hardware gains from it
    :raises InvalidInput: on a precision that the device lacks
    """

    def __init__(self, policy: BasePolicy, device: th.device, precision: str) -> None:
        self.policy, self.device = policy, device
        dtype = choose_dtype(precision, device)
        for network in policy.modules():
            if isinstance(network, QNetwork):
                network.compute_dtype = dtype
        if device.type == "cpu":
            # glibc then keeps for the next update what this one frees, instead of asking the system for it anew: it
            # takes the largest block up to 32 MiB that it has seen come and go for its measure
            th.empty(31 * 2**20, dtype=th.uint8)
        self._parameters = list(policy.parameters())  # to walk the modules takes twenty times as long
        self._wide_layers = [layer for layer in policy.modules() if type(layer) is WideLinear]
        self._records = device.type == "cuda"
        self._recording: CudaGraph | None = None
        self._recorded_for: Any = None  # what a recording holds for
        self._n_warm = 0

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_recording": None, "_recorded_for": None}  # which cannot be copied

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Within it only :meth:`step` may change weights: the widest layers' are not cast in every pass."""
        try:
            self._hold_casts()
            yield
        finally:
            for layer in self._wide_layers:
                layer.release_cast()

    def _hold_casts(self) -> None:
        for layer in self._wide_layers:
            layer.hold_cast()

    def repeat(self, update: Callable[..., th.Tensor], inputs: Sequence[tuple], settings: tuple) -> list[th.Tensor]:
        """Call ``update``, which makes a :meth:`step`, with each of the ``inputs``; on a CUDA device as a graph that is
        recorded after some calls, and again where the memory or a setting is another one.

        :param update: may read and write the device's memory, and may not wait for it
        :param inputs: numbers and arrays of the same shapes and types each time
        :param settings: what ``update`` depends on beside
        :return: what ``update`` returned each time
        """
        if not self._can_record():
            return [update(*values) for values in inputs]
        holds_for = settings, [np.shape(value) for value in inputs[0]], self._recorded_things()
        if holds_for != self._recorded_for:
            self._recording, self._recorded_for, self._n_warm = None, holds_for, 0
        return [self._call(update, values) for values in inputs]

    def _recorded_things(self) -> list[Any]:
        """What a recording has of weights and optimizer: places, who learns, and all settings but the learning rate."""
        state = self.policy.optimizer.state
        tensors = [tensor for weight in self._parameters for tensor in (weight, *state.get(weight, {}).values())]
        return [
            [tensor.data_ptr() for tensor in tensors if isinstance(tensor, th.Tensor)],
            [weight.requires_grad for weight in self._parameters],
            *({**group, "params": len(group["params"]), "lr": None} for group in self.policy.optimizer.param_groups),
        ]

    def _can_record(self) -> bool:
        if not self._records:
            return False
        # Others keep their count of steps on the host, and would have it built in
        optimizer = self.policy.optimizer
        is_adam = type(optimizer) in (th.optim.Adam, th.optim.AdamW)
        return is_adam and all(group["fused"] for group in optimizer.param_groups)

    def _call(self, update: Callable[..., th.Tensor], inputs: tuple) -> th.Tensor:
        if self._recording is None and self._records and self._n_warm >= N_WARM_UP:
            self._record(update, inputs)
        if self._recording is None:
            self._n_warm += 1
            return update(*inputs)
        return self._recording([*(group["lr"] for group in self.policy.optimizer.param_groups), *inputs])

    def _record(self, update: Callable[..., th.Tensor], inputs: tuple) -> None:
        groups = self.policy.optimizer.param_groups
        kept = [dict(group) for group in groups]
        rates = [group["lr"] for group in groups]

        def update_at(*rates_and_inputs: th.Tensor) -> th.Tensor:
            for group, rate in zip(groups, rates_and_inputs, strict=False):
                group["lr"], group["capturable"] = rate, True
            return update(*rates_and_inputs[len(groups) :])

        self._hold_casts()  # each recorded update makes its own
        try:
            self._recording = CudaGraph(update_at, [*rates, *inputs], self.device)
        except Exception as error:  # a recording is of use, and not needed
            logging.getLogger(__name__).warning("updates are not recorded as a CUDA graph: %s", error)
            self._records = False
        finally:
            for group, settings in zip(groups, kept, strict=True):
                group.clear()
                group.update(settings)
            self._hold_casts()  # a recording computes none

    def step(self, loss: th.Tensor, max_grad_norm: float) -> th.Tensor:
        """Follow the gradient of ``loss``, scaled down to ``max_grad_norm``.

        :return: the gradient's norm before clipping
        """
        optimizer = self.policy.optimizer
        optimizer.zero_grad()
        loss.backward()
        # Those that have a gradient this time: layers may be frozen and thaw
        parameters = [parameter for parameter in self._parameters if parameter.grad is not None]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        grad_norm = total_norm(gradients) if self.device.type == "cpu" else nn.utils.get_total_norm(gradients)
        # To look at the norm costs nothing on the CPU, where scaling by 1 would be one more walk over the weights
        if self.device.type != "cpu" or grad_norm > max_grad_norm:
            nn.utils.clip_grads_with_norm_(parameters, max_grad_norm, grad_norm)
        optimizer.step()
        if self.device.type == "cpu" and isinstance(optimizer, th.optim.Adam):
            clear_vanishing_moments(optimizer)
        for layer in self._wide_layers:
            if layer.holds_cast and layer.weight.grad is not None:  # the target network's have none
                layer.hold_cast()
        return grad_norm


def total_norm(gradients: list[th.Tensor]) -> th.Tensor:
    """:return: as ``torch.nn.utils.get_total_norm``, by rows, since PyTorch takes one thread for one norm on a CPU"""
    norms = [
        th.linalg.vector_norm(gradient.flatten(1) if gradient.dim() > 1 else gradient, dim=-1) for gradient in gradients
    ]
    return th.linalg.vector_norm(th.cat([norm.reshape(-1) for norm in norms]))


def clear_vanishing_moments(optimizer: th.optim.Adam) -> None:
    """Every 200 steps, set moments to 0 that are on their way there, since their weights have no gradient any more.

    Such a moment halves every 7 steps until it is denormal, below 1e-38, and stays so. With denormal numbers processors
    compute many times slower, and dead units make them by the thousand. A moment that is cleared moves its weight by
    less than 1e-12 of the learning rate.
    """
    if any(group["eps"] < 1e-8 for group in optimizer.param_groups):
        return  # the smallest moments may matter
    states = list(optimizer.state.values())
    if not states or states[0]["step"] % 200 != 0:
        return
    for state in states:
        state["exp_avg"].copy_(F.hardshrink(state["exp_avg"], 1e-20))
        state["exp_avg_sq"].copy_(F.hardshrink(state["exp_avg_sq"], 1e-32))


def choose_dtype(precision: str, device: th.device) -> th.dtype:
    """The type that ``precision`` means on this device.

    :raises InvalidInput: on an unknown precision, or one that the device lacks
    """
    if precision not in PRECISIONS:
        raise InvalidInput(f"precision must be one of {', '.join(PRECISIONS)}, not {precision!r}.")
    has_bfloat16 = _has_bfloat16(device)
    if precision == "bfloat16" and not has_bfloat16:
        raise InvalidInput(
            f"precision must be float32 or auto on {_name(device)}, which does not compute in bfloat16, not 'bfloat16'."
        )
    dtype = th.bfloat16 if has_bfloat16 and precision != "float32" else th.float32
    if precision == "auto":
        logging.getLogger(__name__).info("%s computes in %s", _name(device), str(dtype).removeprefix("torch."))
    return dtype


def _has_bfloat16(device: th.device) -> bool:
    if device.type == "cuda":
        with th.cuda.device(device):  # it asks the current one
            return th.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        if not hasattr(th.cpu, "get_capabilities"):  # not in PyTorch's oldest releases that we take
            return th.cpu._is_avx512_bf16_supported()
        capabilities = th.cpu.get_capabilities()
        return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"))
    return False


def _name(device: th.device) -> str:
    return "this processor" if device.type == "cpu" else str(device)
