"""How an update is executed: in which precision, and with as few walks over the weights as may be."""

import logging
import timeit
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.policies import BasePolicy
from torch import nn
from torch.nn import functional as F
from torch.utils._triton import has_triton

from dqn_ext.cuda_graph import Recording
from dqn_ext.errors import InvalidInput
from dqn_ext.features import WideLinear
from dqn_ext.policies import QNetwork

PRECISIONS = ("auto", "float32", "bfloat16")

# The loss whose gradient is followed, and others to report: tensors without dimensions
Losses = Callable[..., tuple[th.Tensor, ...]]
ClipAndStep = Callable[[float], th.Tensor]

COMPILER: dict[str, Any] = {"dynamic": False}


class Learner:
    """Makes the optimizer's steps for one policy, whose networks it sets to a precision.

    In bfloat16 the features extractor's products and convolutions are computed in it (PyTorch's autocast). Weights and
    optimizer stay in float32, and so do the layers after the extractor: a TD error is a small difference of Q-values.

    :param policy: whose ``optimizer`` makes the steps
    :param device: on which it is
    :param precision: ``"float32"``, ``"bfloat16"``, or ``"auto"``: bfloat16 where the hardware gains from it
    :param compiles: have PyTorch compile the updates that are recorded: ``True``, ``False`` or ``"auto"``: where it can
    :raises InvalidInput: on a precision that the device lacks, or where it cannot compile
    """

    def __init__(
        self, policy: BasePolicy, device: th.device, precision: str = "float32", compiles: bool | str = False
    ) -> None:
        self.policy, self.device = policy, device
        self.made_of = policy, precision, compiles
        self._compute_in(choose_dtype(precision, device))
        if device.type == "cpu":
            # glibc then keeps for the next update what this one frees, instead of asking the system for it anew: it
            # takes the largest block up to 32 MiB that it has seen come and go for its measure
            th.empty(31 * 2**20, dtype=th.uint8)
        self._parameters = list(policy.parameters())  # to walk the modules takes twenty times as long
        self._wide_layers = [layer for layer in policy.modules() if type(layer) is WideLinear]
        self._records = device.type == "cuda"
        self._must_compile = compiles is True
        self._compiles = choose_compilation(compiles, device)
        self._recording: Recording | None = None
        self._recorded_for: Any = None  # what the recording holds for

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_recording": None, "_recorded_for": None}  # which cannot be copied

    def _compute_in(self, dtype: th.dtype) -> None:
        for network in self.policy.modules():
            if isinstance(network, QNetwork):
                network.compute_dtype = dtype

    def go_on(self, in_bfloat16: bool | None) -> None:
        """Where ``precision`` is ``"auto"``: compute as the run did that goes on here, whatever was measured now.

        :param in_bfloat16: ``None`` where that is not known
        """
        if self.made_of[1] == "auto" and in_bfloat16 is not None:
            self._compute_in(th.bfloat16 if in_bfloat16 and _has_bfloat16(self.device) else th.float32)

    def _hold_casts(self) -> None:
        for layer in self._wide_layers:
            layer.hold_cast()

    def _release_casts(self) -> None:
        for layer in self._wide_layers:
            layer.release_cast()

    def repeat(self, losses: Losses, inputs: Sequence[tuple], max_grad_norm: float, settings: Any = None) -> th.Tensor:
        """Make an update with each of the ``inputs``: follow the gradient of the first of its ``losses``.

        With ``settings``, on a CUDA device, an update is recorded after some calls, and again where the memory or a
        setting is another one. ``losses`` may then read and write the device's memory, and may not wait for it.

        :param losses: of one of the inputs
        :param inputs: where updates are recorded, numbers and arrays of the same shapes and types each time
        :param max_grad_norm: gradients are scaled down to this norm
        :param settings: what ``losses`` depends on beside its inputs; ``None`` where it must not be recorded
        :return: the means over the updates of all losses, and, last, of the gradient's norm before clipping
        """
        try:
            self._hold_casts()  # meanwhile only updates change weights
            return self._repeat(losses, inputs, max_grad_norm, settings)
        finally:
            self._release_casts()

    def _repeat(self, losses: Losses, inputs: Sequence[tuple], max_grad_norm: float, settings: Any) -> th.Tensor:
        if settings is None or not self._can_record():
            if self._must_compile and self._records:
                raise InvalidInput(
                    "compile must be False or 'auto' here, not True: only updates of images from a replay memory "
                    "of store 'device', by PyTorch's fused Adam, are compiled."
                )
            return th.stack([self.update(losses, values, max_grad_norm) for values in inputs]).mean(dim=0)
        rates = [group["lr"] for group in self.policy.optimizer.param_groups]
        inputs = [(*rates, *values) for values in inputs]
        given = settings, max_grad_norm, [np.shape(value) for value in inputs[0]]
        if self._recording is not None and self._recorded_for == (given, self._recorded_things()):
            return self._recording.repeat(inputs)
        self._recorded_for = None
        update = self._recordable(losses, max_grad_norm)
        records = self._recording is None or self._recording.records  # it has not failed before
        self._recording = Recording(update, inputs[0], self._parameters[0].device, records)
        means = self._recording.repeat(inputs)
        self._recorded_for = given, self._recorded_things()  # the optimizer's, too, which the first update has made
        return means

    def update(
        self, losses: Losses, values: Sequence[Any], max_grad_norm: float, clip_and_step: ClipAndStep | None = None
    ) -> th.Tensor:
        """Follow the gradient of the first of the losses, scaled down to ``max_grad_norm``.

        :param values: what ``losses`` takes
        :param clip_and_step: compiled, if it is to be
        :return: all losses, and, last, the gradient's norm before clipping
        """
        optimizer = self.policy.optimizer
        all_losses = losses(*values)
        optimizer.zero_grad()
        all_losses[0].backward()
        grad_norm = (clip_and_step or self._clip_and_step)(max_grad_norm)
        if self.device.type == "cpu" and isinstance(optimizer, th.optim.Adam):
            clear_vanishing_moments(optimizer)
        for layer in self._wide_layers:
            if layer.holds_cast and layer.weight.grad is not None:  # the target network's have none
                layer.hold_cast()
        return th.stack([*all_losses, grad_norm]).detach()

    def _recordable(self, losses: Losses, max_grad_norm: float) -> Callable[..., th.Tensor]:
        """An update that takes learning rates, and what ``losses`` takes, as tensors on the device."""
        places = [self._parameters[0].new_zeros(()) for _ in self.policy.optimizer.param_groups]
        if self._compiles:
            th.compiler.reset()  # it compiles a function for eight agents, and then no more
            compiled_losses: Losses = th.compile(losses, **COMPILER)
            compiled_step: ClipAndStep = th.compile(self._clip_and_step, **COMPILER)
            # Advice to those who can change the program; as the warnings below
            logging.getLogger("torch._dynamo.variables.ctx_manager").setLevel(logging.ERROR)

        def update(*rates_and_values: th.Tensor) -> th.Tensor:
            values = rates_and_values[len(places) :]
            for place, rate in zip(places, rates_and_values, strict=False):
                place.copy_(rate)
            if self._compiles:
                self._release_casts()  # the compiler casts where it is best, and fuses foreach better
                try:
                    with warnings.catch_warnings(), self._rates_on_device(places, fused=False, foreach=True):
                        warnings.simplefilter("ignore")
                        return self.update(compiled_losses, values, max_grad_norm, compiled_step)
                except th.OutOfMemoryError:
                    raise
                except Exception as error:  # of a compiler that is not as PyTorch wants it, for example
                    self._do_not_compile(error)
            self._hold_casts()  # each update makes its own
            try:
                with self._rates_on_device(places):
                    return self.update(losses, values, max_grad_norm)
            finally:
                self._hold_casts()  # one that is being recorded computes none

        return update

    @contextmanager
    def _rates_on_device(self, rates: Sequence[th.Tensor], **settings: bool) -> Iterator[None]:
        """Within it the optimizer has these settings, and reads nothing from the host."""
        groups = self.policy.optimizer.param_groups
        kept = [dict(group) for group in groups]
        for group, rate in zip(groups, rates, strict=True):
            group.update(lr=rate, capturable=True, **settings)
        try:
            yield
        finally:
            for group, before in zip(groups, kept, strict=True):
                group.clear()
                group.update(before)

    def _do_not_compile(self, error: Exception) -> None:
        reason = " ".join(str(error).split())[:300]
        if self._must_compile:
            raise InvalidInput(
                f"compile must be False or 'auto' here: updates cannot be compiled ({reason})."
            ) from error
        logging.getLogger(__name__).warning("updates are not compiled: %s", reason)
        self._compiles = False

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

    def _clip_and_step(self, max_grad_norm: float) -> th.Tensor:
        # Those that have a gradient this time: layers may be frozen and thaw
        parameters = [parameter for parameter in self._parameters if parameter.grad is not None]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        grad_norm = total_norm(gradients) if self.device.type == "cpu" else nn.utils.get_total_norm(gradients)
        # To look at the norm costs nothing on the CPU, where scaling by 1 would be one more walk over the weights
        if self.device.type != "cpu" or grad_norm > max_grad_norm:
            nn.utils.clip_grads_with_norm_(parameters, max_grad_norm, grad_norm)
        self.policy.optimizer.step()
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
    takes_bfloat16 = has_bfloat16 and _gains_from_bfloat16(device) if precision == "auto" else precision == "bfloat16"
    dtype = th.bfloat16 if takes_bfloat16 else th.float32
    if precision == "auto":
        logging.getLogger(__name__).info("%s computes in %s", _name(device), str(dtype).removeprefix("torch."))
    return dtype


def choose_compilation(compiles: bool | str, device: th.device) -> bool:
    """Whether ``compile`` means to compile on this device.

    :raises InvalidInput: on an unknown value, or where the device has no compiler
    """
    if not isinstance(compiles, bool) and compiles != "auto":
        raise InvalidInput(f"compile must be True, False or 'auto', not {compiles!r}.")
    if not compiles:
        return False
    if device.type != "cuda":
        if compiles is True:
            raise InvalidInput(f"compile must be False or 'auto' on {_name(device)}, not True: it is for CUDA devices.")
        return False
    if not has_triton():
        if compiles is True:
            raise InvalidInput("compile must be False or 'auto' here, where PyTorch finds no Triton, not True.")
        logging.getLogger(__name__).info("updates are not compiled: PyTorch finds no Triton")
        return False
    return True


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


def _gains_from_bfloat16(device: th.device) -> bool:
    """Whether products of matrices take less time in it. An Intel Xeon without AMX has it and takes twice as long."""
    return device.type != "cpu" or _seconds_per_product(th.bfloat16) < _seconds_per_product(th.float32)


@cache
def _seconds_per_product(dtype: th.dtype) -> float:
    matrix, n_threads = th.ones(512, 512, dtype=dtype), th.get_num_threads()
    # Others may be at work, too: so the least of some, and on one core
    th.set_num_threads(1)
    try:
        return min(timeit.repeat(lambda: matrix @ matrix, number=1, repeat=7))
    finally:
        th.set_num_threads(n_threads)


def _name(device: th.device) -> str:
    return "this processor" if device.type == "cpu" else str(device)
