"""Images and proposals -> streams of `Batch`es in NumPy, with static shapes, for training and evaluation.

`plan.py` selects the images of a micro-batch, `assembling.py` makes its arrays, `loading.py` prefetches. A stream of an
`ImageSet` has image-level labels only; boxes to learn from are only in a stream of a `BoxSet`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from wsod_jax.data.input.assembling import COUNTS, Assembler, ProposalRows, RowPart, TargetRows
from wsod_jax.data.input.loading import Cache, Loading, load
from wsod_jax.data.input.plan import Order, TrainPlan, ViewPlan
from wsod_jax.data.input.proposal_rows import ProposalRules
from wsod_jax.data.input.transforms import Canvases
from wsod_jax.data.proposals.proposal_set import ProposalSet
from wsod_jax.data.records import BoxSet, ImageSet
from wsod_jax.errors import ConfigError
from wsod_jax.types import Batch


class _Stream:
    """Shared parts of training and evaluation streams: counting, and stopping."""

    def __init__(self, loaded: Iterator[tuple[Batch, np.ndarray]], cache: Cache | None):
        self._loaded = loaded
        self._cache = cache
        self._totals = np.zeros(len(COUNTS), np.int64)

    @property
    def counts(self) -> dict[str, int]:
        """Totals over this process's rows so far, by the names in `assembling.COUNTS`."""
        return dict(zip(COUNTS, self._totals.tolist(), strict=True))

    def close(self) -> None:
        """Stop prefetching; the stream ends."""
        self._loaded.close()

    def _next_batch(self) -> Batch:
        batch, counts = next(self._loaded)
        self._totals += counts
        return batch if self._cache is None else self._cache(batch)


class TrainStream(_Stream):
    """Endless iterator over updates: each a list of `accumulate` micro-batches.

    Attributes:
      plan: the order.
      counts: totals so far.
    """

    def __init__(
        self, loaded: Iterator[tuple[Batch, np.ndarray]], cache: Cache | None, plan: TrainPlan
    ):
        super().__init__(loaded, cache)
        self.plan = plan

    def __iter__(self) -> TrainStream:
        return self

    def __next__(self) -> list[Batch]:
        return [self._next_batch() for _ in range(self.plan.order.accumulate)]


class ViewStream(_Stream):
    """Iterator over evaluation micro-batches, image-major; `len` is their number.

    Attributes:
      views_per_image: number of consecutive micro-batches with the same images.
      counts: totals so far; images count once per view.
    """

    def __init__(
        self, loaded: Iterator[tuple[Batch, np.ndarray]], cache: Cache | None, plan: ViewPlan
    ):
        super().__init__(loaded, cache)
        self.views_per_image = plan.views_per_image
        self._length = len(plan)

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> ViewStream:
        return self

    def __next__(self) -> Batch:
        return self._next_batch()


def train_batches(
    data: ImageSet | BoxSet,
    proposals: ProposalSet | None,
    *,
    canvases: Canvases,
    order: Order,
    rules: ProposalRules | None = None,
    loading: Loading = Loading(),  # noqa: B008  (frozen)
    start_step: int = 0,
) -> TrainStream:
    """Return the endless training stream, from update `start_step` on.

    The batches of an update depend only on the data, the arguments and its number, so a restart from step n
    continues bit for bit without reading earlier batches. A micro-batch has one orientation and one scale; the
    incomplete last one of each orientation in an epoch is filled with masked rows. The rows of all processes,
    concatenated, are those of a single process.

    Args:
      data: the images; use `training_labels.training_images` first. With a `BoxSet` batches have `targets`, all
        boxes in the view padded to `max_targets` of the set.
      proposals: their proposals, or `None` for methods without.
      canvases: scales and static shapes. With a `crop_margin`, a random window of every image is shown.
      order: sizes of micro-batches and updates, mirroring, random windows, jitter and the seed.
      rules: which proposals are used; by default the defaults of `ProposalRules`, with `max_proposals` the largest
        number in the file.
      loading: how this process makes its batches, and which rows it makes.
      start_step: number of the first update, 0-based.

    Returns:
      A `TrainStream`. An image without usable proposals is masked and counted, as is one whose window shows none of
      its proposals. Labels are those of the whole image, whatever a window shows.

    Raises:
      DataError: if an image has no entry in the proposals, or one for another image size.
      ConfigError: for invalid numbers, for windows of both kinds, and for a cache of images that differ in every epoch.
    """
    _check_order(order, canvases, loading.cache)
    parts: list[RowPart] = []
    if isinstance(data, BoxSet):
        images = data.images
        parts.append(TargetRows(data))
    else:
        images = data
    if proposals is not None:
        rules = rules or _default_rules(proposals)
        parts.append(ProposalRows(proposals, images, rules, mask_empty=True))
    plan = TrainPlan(_portrait(images, canvases), canvases.scales, order, canvases.crop_margin > 0)
    assemble = Assembler(images, canvases, parts, loading)
    loading.rows_per_process(order.batch_size)
    loaded = load(
        lambda number: assemble(plan[number].part(loading.process_index, loading.process_count)),
        itertools.count(start_step * order.accumulate),
        loading,
    )
    return TrainStream(loaded, loading.cache, plan)


def view_batches(
    images: ImageSet,
    proposals: ProposalSet | None,
    *,
    canvases: Canvases,
    flips: Sequence[bool] = (False, True),
    batch_size: int = 1,
    rules: ProposalRules | None = None,
    loading: Loading = Loading(),  # noqa: B008  (frozen)
) -> ViewStream:
    """Return every image at every scale, whole, mirrored or not, image-major.

    Images are grouped by orientation into `batch_size`; all views of a group follow each other, with scales
    in the outer and flips in the inner loop. Row m of an image's proposals is the same proposal in each of its
    views.

    Args:
      images: the images; labels are not needed.
      proposals: their proposals, or `None` for methods without.
      canvases: scales and static shapes.
      flips: mirrorings at each scale.
      batch_size: rows per micro-batch, over all processes.
      rules: as in `train_batches`.
      loading: likewise.

    Returns:
      A `ViewStream`. An image without usable proposals stays, with all its rows masked.

    Raises:
      DataError: as in `train_batches`.
      ConfigError: for invalid numbers.
    """
    if not isinstance(images, ImageSet):
        raise TypeError(
            f"views need an ImageSet, found {type(images).__name__}; pass the `images` of a BoxSet."
        )
    parts: list[RowPart] = []
    if proposals is not None:
        rules = rules or _default_rules(proposals)
        parts.append(ProposalRows(proposals, images, rules, mask_empty=False))
    plan = ViewPlan(_portrait(images, canvases), batch_size, canvases.scales, tuple(flips))
    rows = loading.rows_per_process(batch_size)
    groups_in_work = (loading.num_workers + loading.prefetch) // plan.views_per_image + 2
    keep_decoded = groups_in_work * rows if plan.views_per_image > 1 else 0
    assemble = Assembler(images, canvases, parts, loading, keep_decoded=keep_decoded)
    loaded = load(
        lambda number: assemble(plan[number].part(loading.process_index, loading.process_count)),
        range(len(plan)),
        loading,
    )
    return ViewStream(loaded, loading.cache, plan)


def _portrait(images: ImageSet, canvases: Canvases) -> tuple[bool, ...]:
    return tuple(canvases.is_portrait(r.height, r.width) for r in images.records)


def _default_rules(proposals: ProposalSet) -> ProposalRules:
    return ProposalRules(max(1, proposals.max_count))


def _check_order(order: Order, canvases: Canvases, cache: Cache | None) -> None:
    """Raise `ConfigError` for windows of both kinds, and for a cache of images that differ in every epoch."""
    if order.crop is not None and canvases.crop_margin:
        raise ConfigError(
            f"crop={order.crop} and crop_margin={canvases.crop_margin}, but an image is shown through one window; "
            "set crop=None or crop_margin=0."
        )
    if cache is None:
        return
    for name, value, off in (
        ("crop", order.crop, None),
        ("crop_margin", canvases.crop_margin, 0),
        ("jitter", order.jitter, "none"),
    ):
        if value != off:
            raise ConfigError(
                f"{name}={value!r}, with which an image has other pixels in every epoch, so that a cache of feature "
                f"maps or pooled proposals saves nothing; set {name}={off!r}, or do without the cache."
            )
