"""GoogLeNet (Inception v1): four parallel branches in every module."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from wsod_jax.nn.backbone import Backbone, Preprocessing, is_frozen
from wsod_jax.nn.layers import ConvRelu, Window, local_response_norm, max_pool
from wsod_jax.types import FeatureMap


class Widths(NamedTuple):
    """Channels of an inception module; its output has `branch1` + `branch2` + `branch3` + `branch4`."""

    branch1: int
    branch2_reduce: int
    branch2: int
    branch3_reduce: int
    branch3: int
    branch4: int


INCEPTIONS = {
    "inception3a": Widths(64, 96, 128, 16, 32, 32),
    "inception3b": Widths(128, 128, 192, 32, 96, 64),
    "inception4a": Widths(192, 96, 208, 16, 48, 64),
    "inception4b": Widths(160, 112, 224, 24, 64, 64),
    "inception4c": Widths(128, 128, 256, 24, 64, 64),
    "inception4d": Widths(112, 144, 288, 32, 64, 64),
    "inception4e": Widths(256, 160, 320, 32, 128, 128),
    "inception5a": Widths(256, 160, 320, 32, 128, 128),
    "inception5b": Widths(384, 192, 384, 48, 128, 128),
}


class Inception(nn.Module):
    """Concatenate four branches: 1x1; 1x1 then 3x3; 1x1 then a larger kernel; 3x3 max pooling then 1x1.

    Attributes:
      widths: channels of the six convolutions.
      branch3_kernel: cells per side of the third branch's kernel.
      frozen: stop the gradient at the parameters.
      dtype: type of the computation.
    """

    widths: Widths
    branch3_kernel: Literal[3, 5] = 3
    frozen: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, maps: FeatureMap) -> FeatureMap:
        """Map features [b, h, w, d] to [b, h, w, channels of the four branches, in order]."""

        def conv(name: str, kernel: int, maps: FeatureMap) -> FeatureMap:
            channels = getattr(self.widths, name)
            layer = ConvRelu(
                channels, kernel=kernel, frozen=self.frozen, dtype=self.dtype, name=name
            )
            return layer(maps)

        branches = (
            conv("branch1", 1, maps),
            conv("branch2", 3, conv("branch2_reduce", 1, maps)),
            conv("branch3", self.branch3_kernel, conv("branch3_reduce", 1, maps)),
            conv("branch4", 1, max_pool(maps, window=3, stride=1, ceil_mode=False, pad=1)),
        )
        features = jnp.concatenate([branch.features for branch in branches], axis=-1)
        return maps.replace(features=features)


class GoogLeNet(Backbone):
    """GoogLeNet's convolutions, without auxiliary classifiers; pooling rounds up.

    Every convolution has a bias and no batch normalization: the importer of torchvision's weights folds it into kernels
    and biases, and Caffe's BVLC weights were trained without. The two differ in details that weight files record:

        weights                    preprocessing   branch3_kernel   pool4_window   lrn
        torchvision (default)      tf              3                2              False
        Caffe's BVLC GoogLeNet     caffe           5                3              True

    Attributes:
      ends_at: "inception4e" omits the last pooling, inception5a and inception5b, for 832 channels and 16 pixels a
        cell, as in CAM and SPN; "inception5b" has 1024 channels and 32 pixels a cell.
      branch3_kernel: cells per side of every module's third branch; 5 in Szegedy et al.
      pool4_window: cells per side of the pooling, of stride 2, before inception5a.
      lrn: normalize over channels after the first pooling and after conv3, as Szegedy et al. do.

    Source: Szegedy et al. 2015, Table 1; ending at inception4e: Zhou et al. 2016, section 3.
    """

    preprocessing: Preprocessing = "tf"
    ends_at: Literal["inception4e", "inception5b"] = "inception4e"
    branch3_kernel: Literal[3, 5] = 3
    pool4_window: Literal[2, 3] = 2
    lrn: bool = False

    architecture: ClassVar[str] = "googlenet"

    @property
    def inceptions(self) -> tuple[str, ...]:
        """Names of the inception modules up to the last."""
        names = tuple(INCEPTIONS)
        return names[: names.index(self.ends_at) + 1]

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers and modules with parameters."""
        return ("conv1", "conv2", "conv3", *self.inceptions)

    @property
    def channels(self) -> int:
        """Width of the output map."""
        widths = INCEPTIONS[self.ends_at]
        return widths.branch1 + widths.branch2 + widths.branch3 + widths.branch4

    @property
    def description(self) -> dict[str, Any]:
        """The properties that fitting weights must share, in JSON types; weight files carry the same keys."""
        facts = {
            **super().description,
            "branch3_kernel": self.branch3_kernel,
            "lrn": self.lrn,
        }
        if self.ends_at == "inception5b":
            facts["pool4_window"] = self.pool4_window
        return facts

    @property
    def geometry(self) -> tuple[Window, ...]:
        """The windows of the layers, in order, through the third branch of the inception modules."""
        widest = Window(self.branch3_kernel, pad=self.branch3_kernel // 2)
        windows = [Window(7, 2, pad=3), Window(3, 2, ceil_mode=True), Window(1), Window(3, pad=1)]
        windows.append(Window(3, 2, ceil_mode=True))
        for name in self.inceptions:
            windows.append(widest)
            if name in self.pool_windows:
                windows.append(Window(self.pool_windows[name], 2, ceil_mode=True))
        return tuple(windows)

    @property
    def pool_windows(self) -> dict[str, int]:
        """Cells per side of the pooling after each inception module that has one, by name; not after the last."""
        windows = {"inception3b": 3, "inception4e": self.pool4_window}
        return {name: side for name, side in windows.items() if name != self.ends_at}

    @nn.compact
    def last_map(self, maps: FeatureMap) -> FeatureMap:
        """Map normalized pixels to features [b, h, w, channels] after ReLU."""
        maps = self.conv("conv1", 64, kernel=7, stride=2)(maps)
        maps = self.norm(max_pool(maps, window=3, stride=2, ceil_mode=True))
        maps = self.conv("conv2", 64, kernel=1)(maps)
        maps = self.norm(self.conv("conv3", 192)(maps))
        maps = max_pool(maps, window=3, stride=2, ceil_mode=True)
        for name in self.inceptions:
            module = Inception(
                INCEPTIONS[name],
                branch3_kernel=self.branch3_kernel,
                frozen=is_frozen(name, self.frozen),
                dtype=self.dtype,
                name=name,
            )
            maps = module(maps)
            if name in self.pool_windows:
                maps = max_pool(maps, window=self.pool_windows[name], stride=2, ceil_mode=True)
        return maps

    def norm(self, maps: FeatureMap) -> FeatureMap:
        """Normalize over channels if `lrn` is set."""
        if not self.lrn:
            return maps
        return local_response_norm(maps, window=5, alpha=1e-4, beta=0.75, k=1.0)
