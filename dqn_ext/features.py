"""CNN features extractors."""

import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, NatureCNN
from torch import nn


class _ResidualBlock(nn.Module):
    """``x + conv(relu(conv(relu(x))))``, the unit of IMPALA's network."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(channels, channels, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, kernel_size=3, padding=1),
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
    """

    def __init__(self, observation_space: spaces.Box, features_dim: int = 256, width: int = 1) -> None:
        super().__init__(observation_space, features_dim)
        in_channels, *image_size = observation_space.shape
        layers: list[nn.Module] = []
        for channels in (16 * width, 32 * width, 32 * width):
            layers += [
                nn.Conv2d(in_channels, channels, kernel_size=3, padding=1),
                nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
                _ResidualBlock(channels),
                _ResidualBlock(channels),
            ]
            in_channels = channels
            image_size = [(size + 1) // 2 for size in image_size]
        self.cnn = nn.Sequential(*layers, nn.ReLU(), nn.Flatten())
        self.linear = nn.Sequential(nn.Linear(in_channels * image_size[0] * image_size[1], features_dim), nn.ReLU())

    def forward(self, observations: th.Tensor) -> th.Tensor:
        """:return: (B, ``features_dim``) from (B, C, H, W)"""
        return self.linear(self.cnn(observations))


EXTRACTORS: dict[str, type[BaseFeaturesExtractor]] = {"nature": NatureCNN, "impala": ImpalaCNN}
