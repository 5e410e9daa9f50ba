"""Where the cells of a feature map lie in the image, from the windows that its layers slide."""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import jax.numpy as jnp
from jaxtyping import Array

Size = TypeVar("Size", int, Array)


class Window(NamedTuple):
    """The square window of a convolution or a pooling layer, the same along both axes.

    Attributes:
      kernel: cells per side.
      stride: step between windows.
      pad: cells added on each side.
      dilation: spacing of the window's cells.
      ceil_mode: round the number of steps up, so that the last window may hang over the edge (Caffe's pooling), or
        down. Only without padding and with `stride` up to `kernel`: every window then starts in the map.
    """

    kernel: int
    stride: int = 1
    pad: int = 0
    dilation: int = 1
    ceil_mode: bool = False

    @property
    def extent(self) -> int:
        """Cells from the window's first to its last, both included."""
        return self.dilation * (self.kernel - 1) + 1

    def output_length(self, length: Size) -> Size:
        """Return round((length + 2·pad − extent) / stride) + 1, at least 0.

        Args:
          length: cells of the input along one axis, an int or an int array.
        """
        room = length + 2 * self.pad - self.extent
        steps = -(-room // self.stride) if self.ceil_mode else room // self.stride
        return max(steps + 1, 0) if isinstance(length, int) else jnp.maximum(steps + 1, 0)


class ReceptiveField(NamedTuple):
    """The pixels that the cells of a map see, along either axis.

    Cell i sees pixels with edges from `centre_px` + i·`stride_px` − `size_px`/2 to `centre_px` + i·`stride_px` +
    `size_px`/2, as far as they are in the image.

    Attributes:
      size_px: side of the square that one cell sees.
      stride_px: from one cell to the next.
      centre_px: centre of what cell 0 sees, in continuous pixel coordinates: pixel 0 reaches from 0 to 1.
    """

    size_px: int
    stride_px: int
    centre_px: float


def receptive_field(windows: tuple[Window, ...]) -> ReceptiveField:
    """Return what the last of a chain of layers sees of the image.

        size = 1 + Σ (extent − 1)·j,   centre = ½ + Σ ((extent − 1)/2 − pad)·j,   j = Π strides of the layers before

    Args:
      windows: of the layers, in order; where a network branches, those of the path with the largest windows.
    """
    size, stride, centre = 1, 1, 0.5
    for window in windows:
        size += (window.extent - 1) * stride
        centre += ((window.extent - 1) / 2 - window.pad) * stride
        stride *= window.stride
    return ReceptiveField(size, stride, centre)
