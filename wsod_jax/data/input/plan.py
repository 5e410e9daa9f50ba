"""Plans of micro-batches: images, scale, mirroring and windows, as pure functions of seed and number.

A plan is random access: micro-batch m does not depend on the ones before it, so a run can restart anywhere.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from dataclasses import dataclass

import numpy as np

from wsod_jax.errors import ConfigError, DataError

FILLER = -1  # the record index of rows that only fill a micro-batch

_ORDER, _FLIP, _SCALE, _CROP = 1, 2, 3, 4  # purposes of random draws, part of their seeds


@dataclass(frozen=True, kw_only=True)
class Order:
    """How training images are split into updates, and their augmentation.

    Attributes:
      batch_size: rows per micro-batch, over all devices and processes.
      accumulate: micro-batches per update.
      flip: mirror an image with probability 1/2, drawn again in every epoch.
      seed: of order, scales, mirroring and windows; not negative.
    """

    batch_size: int = 1
    accumulate: int = 1
    flip: bool = True
    seed: int = 0

    def __post_init__(self):
        if self.batch_size < 1 or self.accumulate < 1:
            raise ConfigError(
                f"batch_size={self.batch_size} and accumulate={self.accumulate}; both must be at least 1."
            )
        if self.seed < 0:
            raise ConfigError(f"seed={self.seed}; it must not be negative.")


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
    """

    rows: tuple[int, ...]
    flipped: tuple[bool, ...]
    scale: int
    portrait: bool
    crops: tuple[tuple[float, float], ...] | None = None

    def part(self, index: int, count: int) -> PlannedBatch:
        """Return the rows of process `index` of `count`: an equal part, in order.

        Args:
          index: 0 to count - 1.
          count: divides the number of rows.
        """
        size = len(self.rows) // count
        rows = slice(index * size, (index + 1) * size)
        crops = None if self.crops is None else self.crops[rows]
        return dataclasses.replace(
            self, rows=self.rows[rows], flipped=self.flipped[rows], crops=crops
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
    (seed, m), the mirroring and the window of an image from (seed, e, image). An update may take its last
    micro-batches from the next epoch.

    Attributes:
      portrait: per image, whether its canvas is upright; micro-batches do not mix the two.
      scales: to draw from.
      order: sizes of micro-batches and updates, mirroring and the seed.
      crop: draw a random window of every image in every epoch.
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
        groups, flips, crops = _epoch(self, epoch)
        rows = groups[position]
        scale = self.scales[_random(self.order.seed, _SCALE, number).integers(len(self.scales))]
        flipped = tuple(bool(self.order.flip and row != FILLER and flips[row]) for row in rows)
        windows = None
        if crops is not None:
            windows = tuple((0.0, 0.0) if r == FILLER else tuple(crops[r].tolist()) for r in rows)
        return PlannedBatch(rows, flipped, scale, self.portrait[rows[0]], windows)


@functools.lru_cache(maxsize=4)
def _epoch(
    plan: TrainPlan, epoch: int
) -> tuple[list[tuple[int, ...]], np.ndarray, np.ndarray | None]:
    """Return an epoch's groups, and per image whether it is mirrored, and its window."""
    count, seed = len(plan.portrait), plan.order.seed
    order = _random(seed, _ORDER, epoch).permutation(count)
    flips = _random(seed, _FLIP, epoch).random(count) < 0.5
    crops = _random(seed, _CROP, epoch).random((count, 2)) if plan.crop else None
    groups = group_by_orientation(order, np.array(plan.portrait), plan.order.batch_size)
    return groups, flips, crops


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
