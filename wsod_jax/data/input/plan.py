"""Plans of micro-batches: images, scale, mirroring, windows and jitter, as pure functions of seed and number.

A plan is random access: micro-batch m does not depend on the ones before it, so a run can restart anywhere.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import typing
from dataclasses import dataclass
from typing import Literal

import numpy as np

from wsod_jax.errors import ConfigError, DataError

FILLER = -1  # the record index of rows that only fill a micro-batch

Jitter = Literal["none", "hsv", "rgb"]
Pair = tuple[float, float]

_ORDER, _FLIP, _SCALE, _CROP, _SHARE, _JITTER = range(
    1, 7
)  # purposes of random draws, in their seeds
_LARGEST_FACTOR = 1.5  # of jitter; the smallest is its reciprocal


@dataclass(frozen=True, kw_only=True)
class Order:
    """How training images are split into updates, and their augmentation.

    Attributes:
      batch_size: rows per micro-batch, over all devices and processes.
      accumulate: micro-batches per update.
      flip: mirror an image with probability 1/2, drawn again in every epoch.
      crop: show a random window of every image, drawn again in every epoch: each of its sides is a share, uniform
        between (smallest, largest), of the image's. `None`: whole images, or windows by `Canvases.crop_margin`.
      jitter: change the colors of every image by factors up to 1.5, drawn again in every epoch. "hsv": saturation and
        value are each multiplied or divided (with equal probability) by a number uniform in [1, 1.5]; "rgb":
        brightness and saturation have factors uniform in [1 / 1.5, 1.5]. See `ops.color`.
      seed: of order, scales, mirroring, windows and jitter; not negative.
    """

    batch_size: int = 1
    accumulate: int = 1
    flip: bool = True
    crop: Pair | None = None
    jitter: Jitter = "none"
    seed: int = 0

    def __post_init__(self):
        if self.crop is not None:
            object.__setattr__(self, "crop", tuple(self.crop))
        if self.batch_size < 1 or self.accumulate < 1:
            raise ConfigError(
                f"batch_size={self.batch_size} and accumulate={self.accumulate}; both must be at least 1."
            )
        if self.seed < 0:
            raise ConfigError(f"seed={self.seed}; it must not be negative.")
        if self.crop is not None and not (
            len(self.crop) == 2 and 0 < self.crop[0] <= self.crop[1] <= 1
        ):
            raise ConfigError(
                f"crop={self.crop}; allowed are (smallest, largest) shares of an image's sides, above 0, at most 1 "
                "and in this order, and None for whole images."
            )
        if self.jitter not in typing.get_args(Jitter):
            raise ConfigError(f'jitter={self.jitter!r}; allowed are "none", "hsv" and "rgb".')


@dataclass(frozen=True)
class PlannedBatch:
    """One micro-batch, before any image is read.

    Attributes:
      rows: positions in the image set; `FILLER` (-1) for rows without an image.
      flipped: per row, mirrored or not.
      scale: side length in pixels, one of the canvases' scales.
      portrait: orientation shared by all rows.
      crops: per row, position of the window in the image, (y, x) in [0, 1) as in `Canvases.view`; `None`: whole
        images.
      shares: per row, sides of the window as shares of the image's, (height, width) as in `Canvases.view`; `None`:
        whole images, or windows by `Canvases.crop_margin`.
      factors: per row, the two factors of `jitter`; `None` without jitter.
      jitter: see `Order`.
    """

    rows: tuple[int, ...]
    flipped: tuple[bool, ...]
    scale: int
    portrait: bool
    crops: tuple[Pair, ...] | None = None
    shares: tuple[Pair, ...] | None = None
    factors: tuple[Pair, ...] | None = None
    jitter: Jitter = "none"

    def part(self, index: int, count: int) -> PlannedBatch:
        """Return the rows of process `index` of `count`: an equal part, in order.

        Args:
          index: 0 to count - 1.
          count: divides the number of rows.
        """
        size = len(self.rows) // count
        rows = slice(index * size, (index + 1) * size)
        names = ("rows", "flipped", "crops", "shares", "factors")
        fields = {name: getattr(self, name) for name in names}
        return dataclasses.replace(
            self, **{name: v[rows] for name, v in fields.items() if v is not None}
        )


def group_by_orientation(
    order: np.ndarray, portrait: np.ndarray, batch_size: int
) -> list[tuple[int, ...]]:
    """Split an order of images into groups of one orientation, as close to the order as possible.

    A group has the position of its last image; the incomplete last group of each orientation comes at the end,
    filled with `FILLER`. The number of groups does not depend on the order.

    Args:
      order: [n] positions in the image set.
      portrait: [number of images] bool.
      batch_size: rows per group.

    Returns:
      Groups of exactly `batch_size` rows.
    """
    groups, open_groups = [], {False: [], True: []}
    for index in order.tolist():
        rows = open_groups[bool(portrait[index])]
        rows.append(index)
        if len(rows) == batch_size:
            groups.append(tuple(rows))
            rows.clear()
    for rows in open_groups.values():
        if rows:
            groups.append((*rows, *[FILLER] * (batch_size - len(rows))))
    return groups


@dataclass(frozen=True, eq=False)  # compared and hashed by identity, for the cache of epochs
class TrainPlan:
    """The endless sequence of training micro-batches.

    The order of epoch e is a permutation drawn from (seed, e), the scale of micro-batch m from
    (seed, m), and the mirroring, the window and the jitter of an image each from (seed, e, image). An update may take
    its last micro-batches from the next epoch.

    Attributes:
      portrait: per image, whether its canvas is upright; micro-batches do not mix the two.
      scales: to draw from.
      order: sizes of micro-batches and updates, mirroring, windows by share, jitter and the seed.
      crop: draw the position of a random window of every image in every epoch, also without `order.crop`.
    """

    portrait: tuple[bool, ...]
    scales: tuple[int, ...]
    order: Order
    crop: bool = False

    def __post_init__(self):
        if not self.portrait:
            raise DataError("there are no images to train on.")

    @functools.cached_property
    def batches_per_epoch(self) -> int:
        """Number of micro-batches in which every image occurs once."""
        high = sum(self.portrait)
        counts = (high, len(self.portrait) - high)
        return sum(math.ceil(count / self.order.batch_size) for count in counts)

    def __getitem__(self, number: int) -> PlannedBatch:
        """Return micro-batch `number` (>= 0)."""
        epoch, position = divmod(number, self.batches_per_epoch)
        draws = _epoch(self, epoch)
        rows = draws.groups[position]
        scale = self.scales[_random(self.order.seed, _SCALE, number).integers(len(self.scales))]
        flipped = tuple(
            bool(self.order.flip and row != FILLER and draws.flips[row]) for row in rows
        )
        return PlannedBatch(
            rows,
            flipped,
            scale,
            self.portrait[rows[0]],
            crops=_of_rows(draws.crops, rows, (0.0, 0.0)),
            shares=_of_rows(draws.shares, rows, (1.0, 1.0)),
            factors=_of_rows(draws.factors, rows, (1.0, 1.0)),
            jitter=self.order.jitter,
        )


@dataclass(frozen=True)
class _Epoch:
    """What is drawn of an epoch: its groups, and per image mirroring [n], and pairs [n, 2] or `None`."""

    groups: list[tuple[int, ...]]
    flips: np.ndarray
    crops: np.ndarray | None
    shares: np.ndarray | None
    factors: np.ndarray | None


@functools.lru_cache(maxsize=4)
def _epoch(plan: TrainPlan, epoch: int) -> _Epoch:
    count, options = len(plan.portrait), plan.order
    seed = options.seed
    order = _random(seed, _ORDER, epoch).permutation(count)
    crops = shares = None
    if plan.crop or options.crop is not None:
        crops = _random(seed, _CROP, epoch).random((count, 2))
    if options.crop is not None:
        low, high = options.crop
        shares = low + (high - low) * _random(seed, _SHARE, epoch).random((count, 2))
    return _Epoch(
        groups=group_by_orientation(order, np.array(plan.portrait), options.batch_size),
        flips=_random(seed, _FLIP, epoch).random(count) < 0.5,
        crops=crops,
        shares=shares,
        factors=_factors(options.jitter, _random(seed, _JITTER, epoch).random((count, 4))),
    )


def _factors(jitter: Jitter, draws: np.ndarray) -> np.ndarray | None:
    """Return the factors [n, 2] of draws [n, 4] in [0, 1): two numbers, and two coins for "hsv"."""
    if jitter == "none":
        return None
    low = 1.0 if jitter == "hsv" else 1.0 / _LARGEST_FACTOR
    factors = low + (_LARGEST_FACTOR - low) * draws[:, :2]
    return np.where(draws[:, 2:] < 0.5, factors, 1.0 / factors) if jitter == "hsv" else factors


def _of_rows(
    values: np.ndarray | None, rows: tuple[int, ...], filler: Pair
) -> tuple[Pair, ...] | None:
    """Return the pairs of these images; of rows without one `filler`."""
    if values is None:
        return None
    return tuple(filler if row == FILLER else tuple(values[row].tolist()) for row in rows)


def _random(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


@dataclass(frozen=True)
class ViewPlan:
    """The finite sequence of evaluation micro-batches, image-major: all views of a group, then the next.

    Attributes:
      portrait: per image, whether its canvas is upright; micro-batches do not mix the two.
      batch_size: rows per micro-batch.
      scales: of every group.
      flips: at each scale.
    """

    portrait: tuple[bool, ...]
    batch_size: int
    scales: tuple[int, ...]
    flips: tuple[bool, ...]

    def __post_init__(self):
        if self.batch_size < 1:
            raise ConfigError("batch_size must be at least 1.")
        if not self.flips or len(set(self.flips)) < len(self.flips):
            raise ConfigError(f"flips={self.flips}; allowed are (False,), (True,) and both.")

    @property
    def views_per_image(self) -> int:
        """Scales times flips: number of consecutive batches with the same images."""
        return len(self.scales) * len(self.flips)

    @functools.cached_property
    def groups(self) -> list[tuple[int, ...]]:
        """The images of every `views_per_image` consecutive micro-batches."""
        order = np.arange(len(self.portrait))
        return group_by_orientation(order, np.array(self.portrait, bool), self.batch_size)

    def __len__(self) -> int:
        return len(self.groups) * self.views_per_image

    def __getitem__(self, number: int) -> PlannedBatch:
        """Return micro-batch `number`; scales are the outer, flips the inner loop over a group's views."""
        group, view = divmod(number, self.views_per_image)
        scale, flip = divmod(view, len(self.flips))
        rows = self.groups[group]
        flipped = tuple(self.flips[flip] and row != FILLER for row in rows)
        return PlannedBatch(rows, flipped, self.scales[scale], self.portrait[rows[0]])
