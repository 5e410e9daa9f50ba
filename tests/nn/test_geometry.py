"""Receptive fields against brute force: light up one row of pixels after the other and see which cells notice."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.nn.cases import apply, init
from tests.oracles.pooling import max_pool as oracle_pool
from wsod_jax.nn.backbone import Backbone
from wsod_jax.nn.cnn_s import CnnS
from wsod_jax.nn.efficientnet_lite import EfficientNetLite0
from wsod_jax.nn.googlenet import GoogLeNet
from wsod_jax.nn.layers import ReceptiveField, Window, max_pool, receptive_field
from wsod_jax.nn.squeezenet import SqueezeNet
from wsod_jax.nn.tiny import TinyNet
from wsod_jax.nn.vgg import Vgg16

DARK = {"preprocessing": "caffe", "mean": (0.0, 0.0, 0.0)}  # black is 0 to the network


class UnpaddedNet(Backbone):
    """Windows of many kinds, few of them padded; 6 pixels a cell."""

    architecture = "unpadded"
    channels = 3
    layers = ("conv1", "conv2", "conv3")
    geometry = (
        Window(5, 2),
        Window(3, 3, ceil_mode=True),
        Window(3, pad=1),
        Window(3, dilation=2),
    )

    @nn.compact
    def last_map(self, maps):
        maps = self.conv("conv1", 3, kernel=5, stride=2, pad=0)(maps)
        maps = max_pool(maps, window=3, stride=3, ceil_mode=True)
        maps = self.conv("conv2", 3)(maps)
        return self.conv("conv3", 3, dilation=2, pad=0)(maps)


BACKBONES = {
    "unpadded": UnpaddedNet(**DARK),
    "tiny8": TinyNet(widths=(2, 2, 2, 2), **DARK),
    "tiny4": TinyNet(widths=(2, 2, 2, 2), stride=4, **DARK),
    "squeezenet16": SqueezeNet(**DARK),
    "squeezenet8_ceil": SqueezeNet(stride=8, ceil_mode=True, **DARK),
    "vgg8": Vgg16(**DARK),
    "vgg16": Vgg16(dilated=False, **DARK),
    "cnn_s": CnnS(**DARK),
    "lite0_4": EfficientNetLite0(ends_at=4, **DARK),
    "lite0_10": EfficientNetLite0(**DARK),
    "googlenet5": GoogLeNet(branch3_kernel=5, lrn=True, **DARK),
    "googlenet32": GoogLeNet(ends_at="inception5b", pool4_window=3, **DARK),
}


def averaging_params(backbone, size):
    """Return parameters that make every layer a mean over its windows, without bias: light spreads, nothing cancels."""
    shapes = jax.eval_shape(
        lambda: init(backbone, jax.random.key(0), jnp.zeros((1, *size, 3)), jnp.array([size]))
    )
    return jax.tree.map(
        lambda leaf: jnp.full(leaf.shape, 1 / np.prod(leaf.shape[:-1]) * (leaf.ndim > 1)), shapes
    )


def lit_cells(backbone, size, lit_rows):
    """Return which rows of cells notice which rows of pixels, [pixel row, cell row] bool, and how many there are."""
    params = averaging_params(backbone, size)
    respond = jax.jit(lambda image: apply(backbone, params, image, jnp.array([size])))
    noticed = []
    for row in lit_rows:
        image = np.zeros((1, *size, 3), np.float32)
        image[0, row] = 1e6
        maps = respond(image)
        noticed.append(np.any(np.asarray(maps.features[0]) > 0, axis=(1, 2)))
    return np.array(noticed), int(maps.size[0, 0])


@pytest.mark.parametrize("name", ["unpadded", "tiny8", "tiny4", "lite0_4"])
def test_every_cell_sees_just_its_receptive_field(name):
    backbone = BACKBONES[name]
    size = (101, 40)
    noticed, num_cells = lit_cells(backbone, size, range(size[0]))
    field = backbone.receptive_field()
    for cell in range(num_cells):
        rows = np.flatnonzero(noticed[:, cell])
        center = field.center_px + cell * field.stride_px
        assert rows[0] == max(center - field.size_px / 2, 0)
        assert rows[-1] + 1 == min(center + field.size_px / 2, size[0])


@pytest.mark.parametrize("name", BACKBONES)
def test_a_cell_in_the_middle_sees_just_its_receptive_field(name):
    backbone = BACKBONES[name]
    field = backbone.receptive_field()
    assert field.stride_px == backbone.stride
    cell = int(-(-(field.size_px / 2 - field.center_px) // field.stride_px)) + 1
    first = field.center_px + cell * field.stride_px - field.size_px / 2
    assert first == int(first) and first >= 1
    first = int(first)
    height = first + field.size_px + 3 * field.stride_px
    rows = (first - 1, first, first + field.size_px - 1, first + field.size_px)
    noticed, num_cells = lit_cells(backbone, (height, 48), rows)
    assert cell < num_cells
    np.testing.assert_array_equal(noticed[:, cell], [False, True, True, False])


@pytest.mark.parametrize(
    "backbone, expected",
    [
        (Vgg16(dilated=False), (196, 16, 8.0)),
        (Vgg16(), (188, 8, 4.0)),
        (CnnS(), (113, 12, 20.5)),
        (SqueezeNet(), (207, 16, 15.5)),
        (EfficientNetLite0(), (339, 16, 15.5)),
    ],
    ids=["vgg16", "vgg8", "cnn_s", "squeezenet", "lite0"],
)
def test_known_receptive_fields(backbone, expected):
    """Of VGG16 at 16 pixels: 196, as published; the others by hand."""
    assert backbone.receptive_field() == expected


def test_without_layers_a_cell_is_a_pixel():
    assert receptive_field(()) == ReceptiveField(1, 1, 0.5)


@pytest.mark.parametrize("backbone", BACKBONES.values(), ids=BACKBONES)
def test_one_more_cell_per_stride(backbone):
    size = np.array([[211, 300], [97, 130]])
    more = size + backbone.stride * np.array([[3, 1], [5, 0]])
    grown = np.asarray(backbone.output_size(more)) - backbone.output_size(size)
    np.testing.assert_array_equal(grown, [[3, 1], [5, 0]])


@pytest.mark.parametrize("ceil_mode", [True, False])
@pytest.mark.parametrize("kernel, stride", [(2, 2), (3, 2), (3, 3), (3, 1)])
def test_output_length_counts_windows(kernel, stride, ceil_mode):
    window = Window(kernel, stride, ceil_mode=ceil_mode)
    lengths = list(range(0, 12))
    expected = [
        len(oracle_pool(np.zeros((n, kernel, 1)), (n, kernel), kernel, stride, ceil_mode))
        for n in lengths
    ]
    assert [window.output_length(n) for n in lengths] == expected
    np.testing.assert_array_equal(window.output_length(jnp.array(lengths)), expected)
