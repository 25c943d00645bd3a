"""This package's extractors against SB3's, and against plain convolutions."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common import torch_layers
from torch import nn
from torch.nn import functional as F

from dqn_ext.errors import InvalidInput
from dqn_ext.features import ImpalaCNN, NatureCNN, WideLinear, space_to_depth


def image_space(*shape: int) -> spaces.Box:
    return spaces.Box(0, 255, shape, np.uint8)


@pytest.mark.parametrize("shape", [(4, 84, 84), (1, 36, 40), (3, 85, 84), (2, 84, 90)])
def test_nature_cnn_is_sb3s(shape):
    th.manual_seed(0)
    theirs = torch_layers.NatureCNN(image_space(*shape))
    ours = NatureCNN(image_space(*shape))
    ours.load_state_dict(theirs.state_dict())  # strict: the same names and shapes
    images = th.randint(0, 256, (6, *shape), dtype=th.uint8)

    expected, features = theirs(images.float() / 255), ours(images)
    th.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)
    th.testing.assert_close(ours(images.float() / 255), expected, rtol=1e-4, atol=1e-5)

    expected.square().sum().backward()
    features.square().sum().backward()
    for (name, parameter), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        scale = other.grad.abs().max()
        th.testing.assert_close(parameter.grad / scale, other.grad / scale, rtol=1e-3, atol=1e-5, msg=name)

    theirs.load_state_dict(ours.state_dict())
    th.testing.assert_close(theirs(images.float() / 255), ours(images), rtol=1e-4, atol=1e-5)


def test_width_scales_the_channels():
    """As the paper's network with half of its channels, written out."""
    extractor = NatureCNN(image_space(4, 84, 84), features_dim=256, width=0.5)
    layers = (nn.Conv2d(4, 16, 8, 4), nn.Conv2d(16, 32, 4, 2), nn.Conv2d(32, 32, 3), nn.Flatten(), nn.Linear(1568, 256))
    network = nn.Sequential(*(part for layer in layers for part in (layer, nn.ReLU())))
    for theirs, ours in zip(network.parameters(), extractor.parameters(), strict=True):
        theirs.data = ours.data
    images = th.randint(0, 256, (6, 4, 84, 84), dtype=th.uint8)
    th.testing.assert_close(extractor(images), network(images.float() / 255), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("extractor_class", [NatureCNN, ImpalaCNN])
@pytest.mark.parametrize("width", [0, -1, 0.3, float("inf"), float("nan"), "2", None])
def test_bad_widths(extractor_class, width):
    with pytest.raises(InvalidInput, match=r"width must make .* channels whole numbers, not be ") as error:
        extractor_class(image_space(4, 84, 84), width=width)
    assert str(error.value).endswith(f"{width!r}.")


@pytest.mark.parametrize("width", [1, 0.5])
@pytest.mark.parametrize("extractor_class", [NatureCNN, ImpalaCNN])
def test_centered_weights(extractor_class, width):
    """As the same network with weights that sum to 0, and gradients that do."""
    th.manual_seed(0)
    plain, ours = (
        extractor_class(image_space(4, 84, 84), width=width, centered=centered) for centered in (False, True)
    )
    weights = {name: weight - mean_by_unit(weight) for name, weight in ours.state_dict().items()}
    plain.load_state_dict(weights)
    images = th.randint(0, 200, (6, 4, 84, 84), dtype=th.uint8)

    expected, features = plain(images), ours(images)
    th.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)
    th.testing.assert_close(ours(images.float() / 255), expected, rtol=1e-4, atol=1e-5)
    if extractor_class is NatureCNN:  # the other one's padding is dark always
        th.testing.assert_close(ours(images + 50), features, rtol=1e-4, atol=1e-5)

    expected.square().sum().backward()
    features.square().sum().backward()
    for (name, parameter), other in zip(ours.named_parameters(), plain.parameters(), strict=True):
        theirs = other.grad - mean_by_unit(other.grad)
        scale = theirs.abs().max()
        th.testing.assert_close(parameter.grad / scale, theirs / scale, rtol=1e-3, atol=1e-5, msg=name)


def mean_by_unit(weight: th.Tensor) -> th.Tensor:
    """Of a layer's weights; of biases nothing."""
    return weight.flatten(1).mean(1).view(-1, *[1] * (weight.ndim - 1)) if weight.ndim > 1 else th.zeros(())


def as_it_comes(images: th.Tensor) -> dict[str, th.Tensor]:
    """Six images of four channels, in the memory of a replayed batch's first and second stack, and of acting."""
    return {
        "first": images[:, :4],
        "second": images[:, 1:],
        "acting": images[:, :4].permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
        "odd": F.pad(images, (1, 0))[:, :4, :, 1:],
    }


@pytest.mark.parametrize("block", [2, 4])
@pytest.mark.parametrize("memory", ["first", "second", "acting", "odd"])
def test_space_to_depth(memory, block):
    images = as_it_comes(th.randint(0, 256, (6, 5, 16, 24), dtype=th.uint8))[memory]
    blocks = space_to_depth(images, block)
    assert th.equal(blocks, F.pixel_unshuffle(images, block))
    assert blocks.is_contiguous(memory_format=th.channels_last)


@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("extractor_class", [NatureCNN, ImpalaCNN])
def test_bytes_and_scaled_images_have_the_same_features(extractor_class, centered):
    extractor = extractor_class(image_space(4, 84, 84), centered=centered)
    images = th.randint(0, 256, (3, 4, 84, 84), dtype=th.uint8)
    features = extractor(images)
    th.testing.assert_close(features, extractor(images.float() / 255), rtol=1e-4, atol=1e-5)
    with th.autocast("cpu", dtype=th.bfloat16):
        in_bfloat16 = extractor(images).float()
    # 8 bits of mantissa, several layers
    assert (in_bfloat16 - features).norm() < 0.03 * features.norm()
    assert not th.equal(in_bfloat16, features)


@pytest.mark.parametrize("extractor_class", [NatureCNN, ImpalaCNN])
def test_centered_is_yes_or_no(extractor_class):
    with pytest.raises(InvalidInput, match="centered must be True or False, not 'no'"):
        extractor_class(image_space(4, 84, 84), centered="no")


def gradients(layer, x, in_bfloat16):
    """Of a loss, by the layer's weights, its bias and its input, and the output."""
    x = x.clone().requires_grad_()
    with th.autocast("cpu", dtype=th.bfloat16, enabled=in_bfloat16):
        y = layer(x.bfloat16() if in_bfloat16 else x).float()
    return [*th.autograd.grad(y.square().sum(), (layer.weight, layer.bias, x)), y]


def test_a_centered_wide_layer_by_its_held_copy():
    layer, x = WideLinear.of(th.nn.Linear(300, 40), centered=True), th.rand(16, 300)
    autocast = gradients(layer, x, True)
    layer.hold_cast()
    held = gradients(layer, x, True)
    assert th.equal(held[-1], autocast[-1])
    for ours, torchs in zip(held, autocast, strict=True):
        assert (ours - torchs).norm() < 0.01 * torchs.norm()  # bfloat16 has 8 bits


def test_a_wide_layer_by_its_held_copy():
    th.manual_seed(0)
    plain = th.nn.Linear(300, 40)
    layer, x = WideLinear.of(plain, centered=False), th.rand(16, 300)
    assert layer.weight is plain.weight
    assert layer.bias is plain.bias
    exact, autocast = gradients(plain, x, False), gradients(layer, x, True)
    layer.hold_cast()
    held = gradients(layer, x, True)
    assert th.equal(held[-1], autocast[-1])
    for ours, torchs, true in zip(held, autocast, exact, strict=True):
        assert (ours - true).norm() <= 1.01 * (torchs - true).norm()
    # The products are float32's: no element has lost bits to the sum
    th.testing.assert_close(held[0], (2 * held[-1].bfloat16().float()).t() @ x.bfloat16().float())

    with th.no_grad():
        layer.weight *= 2
    assert th.equal(gradients(layer, x, True)[-1], held[-1])
    assert th.equal(gradients(layer, x, False)[-1], plain(x))  # float32 has no use for the copy
    layer.hold_cast()
    doubled = gradients(layer, x, True)[-1]
    layer.release_cast()
    assert th.equal(doubled, gradients(layer, x, True)[-1])


@pytest.mark.parametrize("extractor_class", [NatureCNN, ImpalaCNN])
def test_images_are_prepared_once_for_two_networks(extractor_class):
    images = th.randint(0, 256, (3, 4, 84, 84), dtype=th.uint8)
    one, other = (extractor_class(image_space(4, 84, 84)) for _ in range(2))
    prepared = one.prepare(images)
    for extractor in (one, other):
        assert th.equal(extractor.forward_prepared(prepared), extractor(images))
