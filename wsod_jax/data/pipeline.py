"""Image set and proposals -> streams of `Batch`es in NumPy, with static shapes, for training and evaluation.

`plan.py` says which images make up a micro-batch, `assembling.py` turns it into arrays, `loading.py` runs
that ahead of use. There is no argument for boxes: only labels per image reach training.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np

from wsod_jax.data.assembling import COUNTS, Assembler, SkipPixels
from wsod_jax.data.loading import Loader, load, num_cores
from wsod_jax.data.plan import TrainPlan, ViewPlan
from wsod_jax.data.proposals import ProposalSet
from wsod_jax.data.records import ImageSet
from wsod_jax.data.transforms import Canvases, ProposalRules
from wsod_jax.errors import ConfigError
from wsod_jax.types import Batch


class _Stream:
    """What training and evaluation streams share: counting, and stopping."""

    def __init__(self, loaded: Iterator[tuple[Batch, np.ndarray]], canvases: Canvases):
        self._loaded = loaded
        self._totals = np.zeros(len(COUNTS), np.int64)
        self.num_canvases = len(canvases.shapes())

    @property
    def counts(self) -> dict[str, int]:
        """Totals over the micro-batches handed out so far, by the names in `assembling.COUNTS`."""
        return dict(zip(COUNTS, self._totals.tolist(), strict=True))

    def close(self) -> None:
        """Stop working ahead; the stream ends."""
        self._loaded.close()

    def _next_batch(self) -> Batch:
        batch, counts = next(self._loaded)
        self._totals += counts
        return batch


class TrainStream(_Stream):
    """Endless iterator over updates: each a list of `accumulate` micro-batches.

    Attributes:
      plan: the order; `plan.steps_per_epoch` and `plan.num_steps(epochs)` count updates.
      num_canvases: distinct image shapes that may occur.
      counts: what was met so far.
    """

    def __init__(
        self, loaded: Iterator[tuple[Batch, np.ndarray]], canvases: Canvases, plan: TrainPlan
    ):
        super().__init__(loaded, canvases)
        self.plan = plan

    def __iter__(self) -> TrainStream:
        return self

    def __next__(self) -> list[Batch]:
        return [self._next_batch() for _ in range(self.plan.accumulate)]


class ViewStream(_Stream):
    """Iterator over evaluation micro-batches, image-major; `len` is their number.

    Attributes:
      views_per_image: as many micro-batches follow each other with the same images.
      num_canvases: distinct image shapes that may occur.
      counts: what was met so far; images count once per view.
    """

    def __init__(
        self, loaded: Iterator[tuple[Batch, np.ndarray]], canvases: Canvases, plan: ViewPlan
    ):
        super().__init__(loaded, canvases)
        self.views_per_image = plan.views_per_image
        self._length = len(plan)

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> ViewStream:
        return self

    def __next__(self) -> Batch:
        return self._next_batch()


def train_batches(
    image_set: ImageSet,
    proposals: ProposalSet | None,
    *,
    canvases: Canvases,
    batch_size: int,
    accumulate: int = 1,
    max_proposals: int | None = None,
    dedup_stride: float | None = 8.0,
    min_side_px: float = 0.0,
    min_side: float = 0.0,
    flip: bool = True,
    seed: int,
    start_step: int = 0,
    loader: Loader = "tf",
    workers: int | None = None,
    prefetch: int = 2,
    on_bad_image: Literal["skip", "error"] = "skip",
    skip_pixels: SkipPixels | None = None,
) -> TrainStream:
    """Return the endless training stream, from update `start_step` on.

    The batches of an update depend on the data, the arguments and its number alone, so a restart from
    step n continues bit for bit without reading what came before. Micro-batches hold one orientation and
    one scale; the incomplete last one of each orientation in an epoch is filled with masked rows.

    Args:
      image_set: the images; use `records.training_images` first.
      proposals: their proposals, or `None` for methods without.
      canvases: scales and static shapes. With a `crop_margin`, a random window of every image is shown.
      batch_size: rows per micro-batch, over all devices.
      accumulate: micro-batches per update.
      max_proposals: R; by default the largest number any image of the proposals has.
      dedup_stride: merge proposals that agree on a grid of this many pixels; `None` merges nothing.
      min_side_px: drop proposals with a side below this, in pixels of the original image.
      min_side: the same as a fraction of the original image's shorter side.
      flip: mirror images at random, with probability 1/2.
      seed: of order, scales, mirroring and windows.
      start_step: number of the first update, 0-based.
      loader: "tf" (tf.data) or "threads" (needs no TensorFlow); the batches are the same.
      workers: threads; by default one per core.
      prefetch: finished micro-batches held ready.
      on_bad_image: "skip" masks an unreadable image's row, counts it and logs its name once; "error"
        raises.
      skip_pixels: see `Assembler`.

    Returns:
      A `TrainStream`. An image without usable proposals is masked and counted.

    Raises:
      DataError: if an image lacks its entry in the proposals, or that is of another image size.
      ConfigError: for impossible numbers, and for windows together with proposals.
    """
    if canvases.crop_margin and proposals is not None:
        raise ConfigError(
            f"crop_margin={canvases.crop_margin}, but there are proposals: those outside an image's random "
            "window would have to be left out, and no longer cover its labels. Set crop_margin=0."
        )
    plan = TrainPlan(
        portrait=_portrait(image_set, canvases),
        batch_size=batch_size,
        accumulate=accumulate,
        scales=canvases.scales,
        flip=flip,
        seed=seed,
        crop=canvases.crop_margin > 0,
    )
    assemble = Assembler(
        image_set,
        proposals,
        canvases,
        _rules(proposals, max_proposals, dedup_stride, min_side_px, min_side),
        mask_empty=True,
        on_bad_image=on_bad_image,
        skip_pixels=skip_pixels,
    )
    loaded = load(
        lambda number: assemble(plan[number]),
        itertools.count(start_step * accumulate),
        loader=loader,
        workers=workers,
        prefetch=prefetch,
    )
    return TrainStream(loaded, canvases, plan)


def view_batches(
    image_set: ImageSet,
    proposals: ProposalSet | None,
    *,
    canvases: Canvases,
    flips: Sequence[bool] = (False, True),
    batch_size: int = 1,
    max_proposals: int | None = None,
    dedup_stride: float | None = 8.0,
    min_side_px: float = 0.0,
    min_side: float = 0.0,
    loader: Loader = "tf",
    workers: int | None = None,
    prefetch: int = 2,
    on_bad_image: Literal["skip", "error"] = "skip",
    skip_pixels: SkipPixels | None = None,
) -> ViewStream:
    """Return every image at every scale, whole, mirrored or not, image-major.

    Images go in groups of `batch_size` of one orientation; all views of a group follow each other,
    scales in the outer and flips in the inner loop. Row m of an image's proposals is the same proposal
    in each of its views.

    Args:
      image_set: the images; labels are not needed.
      proposals: their proposals, or `None` for methods without.
      canvases: scales and static shapes.
      flips: which mirrorings each scale is seen with.
      batch_size: rows per micro-batch.
      max_proposals: as in `train_batches`; so are the arguments that follow.
      dedup_stride: see there.
      min_side_px: see there.
      min_side: see there.
      loader: see there.
      workers: see there.
      prefetch: see there.
      on_bad_image: see there.
      skip_pixels: see there.

    Returns:
      A `ViewStream`. An image without usable proposals stays, with all its rows masked.

    Raises:
      DataError: as in `train_batches`.
      ConfigError: for impossible numbers.
    """
    plan = ViewPlan(_portrait(image_set, canvases), batch_size, canvases.scales, tuple(flips))
    workers = workers or num_cores()
    groups_in_work = (workers + prefetch) // plan.views_per_image + 2
    assemble = Assembler(
        image_set,
        proposals,
        canvases,
        _rules(proposals, max_proposals, dedup_stride, min_side_px, min_side),
        mask_empty=False,
        on_bad_image=on_bad_image,
        skip_pixels=skip_pixels,
        keep_decoded=groups_in_work * batch_size if plan.views_per_image > 1 else 0,
    )
    loaded = load(
        lambda number: assemble(plan[number]),
        range(len(plan)),
        loader=loader,
        workers=workers,
        prefetch=prefetch,
    )
    return ViewStream(loaded, canvases, plan)


def _portrait(image_set: ImageSet, canvases: Canvases) -> tuple[bool, ...]:
    return tuple(canvases.is_portrait(r.height, r.width) for r in image_set.records)


def _rules(
    proposals: ProposalSet | None,
    max_proposals: int | None,
    dedup_stride: float | None,
    min_side_px: float,
    min_side: float,
) -> ProposalRules:
    if max_proposals is None:
        max_proposals = 1 if proposals is None else max(1, proposals.max_count)
    return ProposalRules(max_proposals, dedup_stride, min_side_px, min_side)
