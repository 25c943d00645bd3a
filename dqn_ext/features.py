"""CNN features extractors. They take images as bytes, or scaled to [0, 1].

What a pass over bytes begins with does not depend on the weights: ``prepare`` does that part, once for all networks
that see the same images, and ``forward_prepared`` the rest.
"""

from collections.abc import Sequence
from numbers import Real
from typing import Any, cast

import gymnasium as gym
import torch as th
from gymnasium import spaces
from stable_baselines3.common import torch_layers
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn
from torch.nn import functional as F

from dqn_ext.errors import InvalidInput


class NatureCNN(torch_layers.NatureCNN):
    """SB3's ``NatureCNN`` (Mnih et al. 2015): the same parameters under the same names, computed another way.

    A convolution with stride 4 equals one with stride 1 over blocks of 4x4 pixels, each of which becomes one pixel of
    16 times the channels (space to depth). That form and channels-last memory suit vector units; and the bytes are
    never scaled, the weights are. Outputs equal SB3's to rounding.

    :param observation_space: channels-first images, (C, H, W)
    :param features_dim: units of the last layer
    :param normalized_image: cf. SB3's
    :param width: multiplies the paper's 32, 64 and 64 channels
    :param centered: each unit's weights sum to 0, see :func:`center`; no longer SB3's network then
    :raises InvalidInput: where ``width`` makes no whole number of channels
    """

    def __init__(
        self,
        observation_space: gym.Space,
        features_dim: int = 512,
        normalized_image: bool = False,
        width: float = 1,
        centered: bool = False,
    ) -> None:
        super().__init__(observation_space, features_dim, normalized_image)
        if width != 1 or centered:
            self._replace_layers(width, conv_class(centered))
        self.linear[0] = WideLinear.of(cast(nn.Linear, self.linear[0]), centered)
        for layer in (*self.cnn, *self.linear):
            if isinstance(layer, nn.ReLU):
                layer.inplace = True  # one walk over the memory less

    def _replace_layers(self, width: float, new_class: type[nn.Conv2d]) -> None:
        places = [place for place, layer in enumerate(self.cnn) if isinstance(layer, nn.Conv2d)]
        convs, linear = [cast(nn.Conv2d, self.cnn[place]) for place in places], cast(nn.Linear, self.linear[0])
        n_pixels = linear.in_features // convs[-1].out_channels
        in_channels = convs[0].in_channels
        for place, conv, channels in zip(places, convs, scaled([c.out_channels for c in convs], width), strict=True):
            self.cnn[place] = new_class(in_channels, channels, cast(int, conv.kernel_size), cast(int, conv.stride))
            in_channels = channels
        self.linear[0] = nn.Linear(in_channels * n_pixels, linear.out_features)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        """:return: (B, ``features_dim``) from (B, C, H, W), uint8 or scaled to [0, 1]"""
        if observations.dtype != th.uint8:
            return super().forward(observations)
        return self.forward_prepared(self.prepare(observations))

    def prepare(self, observations: th.Tensor) -> th.Tensor:
        """:return: bytes (B, C, H, W) with the first convolution's blocks as pixels, where they fit in"""
        stride = cast(nn.Conv2d, self.cnn[0]).stride[0]
        if observations.shape[2] % stride == 0 and observations.shape[3] % stride == 0:
            observations = space_to_depth(observations, stride)
        return observations.to(_compute_dtype(observations.device))

    def forward_prepared(self, images: th.Tensor) -> th.Tensor:
        """:return: (B, ``features_dim``) from what ``prepare`` returned"""
        first, others = cast(nn.Conv2d, self.cnn[0]), self.cnn[1:]
        weight = center(first.weight) if isinstance(first, CenteredConv2d) else first.weight
        weight, stride = weight / 255, first.stride[0]
        if images.shape[1] != first.in_channels:
            weight, stride = F.pixel_unshuffle(weight, stride), 1
        weight = weight.contiguous(memory_format=th.channels_last)
        return self.linear(others(F.conv2d(images, weight, first.bias, stride)))


class WideLinear(nn.Linear):
    """A linear layer with so many weights that to cast them takes longer than to multiply by them.

    Under autocast it can keep its weights' cast copy from one pass to the next.
    """

    centers = False  # its input, which equals centering its weights, and takes less time
    holds_cast = False
    _copy: th.Tensor | None = None
    _is_current = False

    @classmethod
    def of(cls, layer: nn.Linear, centered: bool) -> "WideLinear":
        """:return: a layer with the very parameters of ``layer``; ``centered``, see :func:`center`"""
        wide = cls(layer.in_features, layer.out_features, device="meta")
        wide.centers = centered
        wide.weight, wide.bias = layer.weight, layer.bias
        return wide

    def hold_cast(self) -> None:
        """Cast the weights in the next pass, and then no more: whoever changes them calls this again, or releases."""
        self.holds_cast, self._is_current = True, False

    def release_cast(self) -> None:
        """Cast the weights in each pass again."""
        self.holds_cast = False

    def forward(self, x: th.Tensor) -> th.Tensor:
        """:return: (B, ``out_features``) from (B, ``in_features``)"""
        if self.centers:
            x = x - x.mean(dim=1, keepdim=True)
        if not self.holds_cast or x.dtype == self.weight.dtype:
            return super().forward(x)
        if self._copy is None or (self._copy.dtype, self._copy.device) != (x.dtype, x.device):
            self._copy, self._is_current = th.empty_like(self.weight, dtype=x.dtype), False
        if not self._is_current:
            self._copy.copy_(self.weight.detach())
            self._is_current = True
        return _LinearByCopy.apply(x, self.weight, self._copy, self.bias)


class _LinearByCopy(th.autograd.Function):
    """``x @ weight.T + bias`` by a copy of ``weight`` in the dtype of ``x``; the gradients of both are float32."""

    @staticmethod
    def forward(ctx: Any, x: th.Tensor, weight: th.Tensor, copy: th.Tensor, bias: th.Tensor) -> th.Tensor:
        ctx.save_for_backward(x, copy)
        return th.addmm(bias.to(x.dtype), x, copy.t())

    @staticmethod
    def backward(ctx: Any, *grads: th.Tensor) -> tuple[th.Tensor, th.Tensor, None, th.Tensor]:
        (x, copy), (grad,) = ctx.saved_tensors, grads
        wide_grad = grad.float()
        return grad @ copy, wide_grad.t() @ x.float(), None, wide_grad.sum(dim=0)


def center(weight: th.Tensor) -> th.Tensor:
    """Subtract from each unit's weights their mean.

    That is the first half of centered weight normalization (Huang et al. 2017,
    https://openaccess.thecvf.com/content_iccv_2017/html/Huang_Centered_Weight_Normalization_ICCV_2017_paper.html).

    Images and rectified activations are positive. What they have in common, a picture's brightness, then moves no unit.
    Otherwise its gradient has the same sign for all of a unit's weights, and Adam, whose steps are equally large, soon
    switches most units off for good, or on (docs/learning.md).

    :param weight: (units, ...)
    """
    return weight - weight.mean(dim=tuple(range(1, weight.ndim)), keepdim=True)


class CenteredConv2d(nn.Conv2d):
    """A convolution by centered weights."""

    def forward(self, x: th.Tensor) -> th.Tensor:
        """:return: cf. ``nn.Conv2d``"""
        return self._conv_forward(x, center(self.weight), self.bias)


def conv_class(centered: bool) -> type[nn.Conv2d]:
    """:raises InvalidInput: where ``centered`` is no truth value"""
    if not isinstance(centered, bool):
        raise InvalidInput(f"centered must be True or False, not {centered!r}.")
    return CenteredConv2d if centered else nn.Conv2d


def scaled(channels: Sequence[int], width: float) -> list[int]:
    """:return: ``width`` times each of ``channels``

    :raises InvalidInput: where these are no whole numbers
    """
    products = [float(width) * number for number in channels] if isinstance(width, Real) else [0]
    if not all(product >= 1 and product % 1 == 0 for product in products):
        raise InvalidInput(f"width must make {', '.join(map(str, channels))} channels whole numbers, not be {width!r}.")
    return [int(product) for product in products]


def space_to_depth(images: th.Tensor, block: int) -> th.Tensor:
    """Each ``block`` x ``block`` pixels become one; as ``F.pixel_unshuffle``, and in channels-last memory.

    :param images: uint8, (B, C, H, W)
    :return: uint8, (B, C * block * block, H / block, W / block)
    """
    if block != 4 or th.compiler.is_compiling():
        return F.pixel_unshuffle(images, block).contiguous(memory_format=th.channels_last)
    size, channels, height, width = images.shape
    if images.stride(3) != 1 or any(stride % 4 for stride in (images.storage_offset(), *images.stride()[:3])):
        images = images.contiguous()
    # The four pixels of a block's row move as one number; in two moves along whole rows, in half the time
    rows = images.view(th.int32).view(size, channels, height // 4, 4, width // 4).permute(0, 2, 1, 3, 4).contiguous()
    columns = rows.view(size, height // 4, channels * 4, width // 4).transpose(2, 3).contiguous()
    blocks = columns.view(th.uint8).view(size, height // 4, width // 4, channels * 16)
    return blocks.permute(0, 3, 1, 2)


def _compute_dtype(device: th.device) -> th.dtype:
    """What convolutions compute in, where bytes are exact in any case."""
    return th.get_autocast_dtype(device.type) if th.is_autocast_enabled(device.type) else th.float32


class _ResidualBlock(nn.Module):
    """``x + conv(relu(conv(relu(x))))``, the unit of IMPALA's network."""

    def __init__(self, channels: int, conv: type[nn.Conv2d]) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.ReLU(),
            conv(channels, channels, kernel_size=3, padding=1),
            nn.ReLU(),
            conv(channels, channels, kernel_size=3, padding=1),
        )

    def forward(self, x: th.Tensor) -> th.Tensor:
        return x + self.residual(x)


class ImpalaCNN(BaseFeaturesExtractor):
    """The deep residual network of IMPALA (Espeholt et al. 2018, figure 3, right; https://arxiv.org/abs/1802.01561).

    Three stages, each a 3x3 convolution, a max-pooling that halves the image and two residual blocks.
    Stronger than :class:`NatureCNN` in the same number of steps, and several times slower.

    :param observation_space: channels-first images, (C, H, W)
    :param features_dim: units of the last layer
    :param width: multiplies the paper's 16, 32 and 32 channels
    :param centered: each unit's weights sum to 0, see :func:`center`
    :raises InvalidInput: where ``width`` makes no whole number of channels
    """

    def __init__(
        self, observation_space: spaces.Box, features_dim: int = 256, width: float = 1, centered: bool = False
    ) -> None:
        super().__init__(observation_space, features_dim)
        conv = conv_class(centered)
        in_channels, *image_size = observation_space.shape
        layers: list[nn.Module] = []
        for channels in scaled((16, 32, 32), width):
            layers += [
                conv(in_channels, channels, kernel_size=3, padding=1),
                nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
                _ResidualBlock(channels, conv),
                _ResidualBlock(channels, conv),
            ]
            in_channels = channels
            image_size = [(size + 1) // 2 for size in image_size]
        self.cnn = nn.Sequential(*layers, nn.ReLU(), nn.Flatten())
        linear = nn.Linear(in_channels * image_size[0] * image_size[1], features_dim)
        self.linear = nn.Sequential(WideLinear.of(linear, centered), nn.ReLU())

    def forward(self, observations: th.Tensor) -> th.Tensor:
        """:return: (B, ``features_dim``) from (B, C, H, W), uint8 or scaled to [0, 1]"""
        if observations.dtype == th.uint8:
            observations = self.prepare(observations)
        return self.forward_prepared(observations)

    def prepare(self, observations: th.Tensor) -> th.Tensor:
        """:return: of (B, C, H, W) bytes, the images scaled to [0, 1]"""
        return observations.to(_compute_dtype(observations.device), memory_format=th.channels_last) / 255

    def forward_prepared(self, images: th.Tensor) -> th.Tensor:
        """:return: (B, ``features_dim``) from what ``prepare`` returned"""
        return self.linear(self.cnn(images))


EXTRACTORS: dict[str, type[BaseFeaturesExtractor]] = {"nature": NatureCNN, "impala": ImpalaCNN}
