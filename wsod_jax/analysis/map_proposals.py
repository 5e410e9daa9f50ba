"""From the proposal maps of a trained run to box proposals: the receptive fields of the cells that score highest."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wsod_jax.data.proposals.writing import Outcome, ProposalResult, write_proposals
from wsod_jax.data.records import ImageRecord, ImageSet
from wsod_jax.errors import ConfigError, DataError
from wsod_jax.evaluation.maps import ViewMaps
from wsod_jax.nn.layers import ReceptiveField
from wsod_jax.ops.boxes import flip_boxes, scale_boxes
from wsod_jax.ops.nms import greedy_nms
from wsod_jax.runs.predictor import Predictor, load_run

LEAST_SIDE = (
    1.0  # pixels of the original image: shortest side of a clipped box; smaller boxes are left out
)


@dataclass(frozen=True)
class FieldOptions:
    """Which boxes are made of a proposal map.

    Attributes:
      num: the most boxes per image.
      sizes: sides of a cell's boxes, as factors of the receptive field's side. A deep cell's field is most of the
        image, while what moves its value most lies near the field's center: several factors below 1 cover objects of
        several sizes.
      aspects: width / height of a cell's boxes; the area stays that of the size.
      nms_thr: a box with IoU > this to a better-scored one of the image is left out; 1 keeps all. The best cells are
        neighbors, and without this so are the best boxes.
    """

    num: int = 100
    sizes: tuple[float, ...] = (0.25, 0.5, 1.0)
    aspects: tuple[float, ...] = (1.0,)
    nms_thr: float = 0.7

    def __post_init__(self):
        if self.num < 1:
            raise ConfigError(f"num is {self.num}; an image needs at least 1 box")
        if not 0 <= self.nms_thr <= 1:
            raise ConfigError(f"nms_thr is {self.nms_thr}; allowed are 0 to 1, 1 for off")
        for name, example in (("sizes", "0.25 0.5 1.0"), ("aspects", "0.5 1 2")):
            values = tuple(getattr(self, name))
            object.__setattr__(self, name, values)
            if not values or not all(math.isfinite(v) and v > 0 for v in values):
                raise ConfigError(
                    f"{name} are {values}; needed is at least one number, each > 0, such as {example}"
                )

    def __str__(self) -> str:
        sizes, aspects = (
            "(" + ", ".join(f"{v:g}" for v in values) + ")" for values in (self.sizes, self.aspects)
        )
        return f"num={self.num}, sizes={sizes}, aspects={aspects}, nms_thr={self.nms_thr:g}"


def field_boxes(
    views: Sequence[ViewMaps],
    image_size: tuple[int, int],
    field: ReceptiveField,
    options: FieldOptions,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the boxes of the cells that an image's proposal maps score highest.

    A cell's boxes are centered where its receptive field is, and clipped to the image. They score how many times the
    uniform value the cell has, so that the maps of several views compare.

    Args:
      views: of one image; proposal maps have mean 1.
      image_size: (height, width) of the image in original pixels.
      field: what the map's cells see of a view, in network pixels.
      options: which boxes.

    Returns:
      boxes: [k, 4] float32 `xyxy`, original pixels, continuous edges, distinct, 1 <= k <= num, best first. The whole
        image, with score 0, where no view has a cell.
      scores: [k] float32, >= 0.

    Ties: earlier views first, then cells in row order of what the network saw, then sizes and aspects as listed. Of
      equal boxes the best-scored one is kept.

    Source: Zhu et al. 2017 (SPN), Figure 5, which shows the top 100 receptive fields; sizes, aspects
      and suppression are ours.
    """
    height, width = image_size
    placed = [_view_boxes(view, image_size, field, options) for view in views]
    boxes = np.concatenate([np.zeros((0, 4)), *(b for b, _ in placed)])
    scores = np.concatenate([np.zeros(0), *(s for _, s in placed)])
    boxes = np.clip(boxes, 0, [width, height, width, height]).astype(np.float32)
    real = np.flatnonzero((boxes[:, 2:] - boxes[:, :2]).min(axis=1, initial=np.inf) >= LEAST_SIDE)
    order = real[np.argsort(-scores[real], kind="stable")]
    _, first = np.unique(boxes[order], axis=0, return_index=True)
    order = order[np.sort(first)]
    chosen = order[greedy_nms(boxes[order], iou_thr=options.nms_thr, limit=options.num)]
    if not len(chosen):
        return np.array([[0, 0, width, height]], np.float32), np.zeros(1, np.float32)
    return boxes[chosen], scores[chosen].astype(np.float32)


def _view_boxes(
    view: ViewMaps, image_size: tuple[int, int], field: ReceptiveField, options: FieldOptions
) -> tuple[np.ndarray, np.ndarray]:
    """Return every box of one view, [h·w·s·a, 4] in original pixels, not clipped, and its score."""
    seen = view.proposal_map[:, ::-1] if view.mirrored else view.proposal_map
    rows, columns = np.mgrid[: seen.shape[0], : seen.shape[1]].reshape(2, -1)
    center = field.center_px + field.stride_px * np.stack([columns, rows], axis=1)  # [n, 2]
    root = np.sqrt(options.aspects)
    half = np.stack([root, 1 / root], axis=1) * field.size_px / 2  # [a, 2]
    half = (np.array(options.sizes)[:, None, None] * half).reshape(-1, 2)  # [s·a, 2]
    boxes = np.concatenate([center[:, None] - half, center[:, None] + half], axis=2).reshape(-1, 4)
    if view.mirrored:
        boxes = flip_boxes(boxes, view.size_px[1])
    factors = np.array(image_size[::-1]) / np.array(view.size_px[::-1])
    return scale_boxes(boxes, *factors), np.repeat(seen.reshape(-1), len(half))


def propose_fields(
    run: str | Path,
    images: ImageSet,
    out: str | Path,
    *,
    options: FieldOptions | None = None,
    step: int | None = None,
    changes: Sequence[str] = (),
    report: Callable[[int, int], None] | None = None,
) -> ProposalResult:
    """Write the best-scored receptive fields of a run's proposal maps as proposals; see `field_boxes`.

    Resumable as `write_proposals` is: another run, step or option is another generator.

    Args:
      run: a workdir, or the folder of a checkpoint.
      images: any; their labels are not looked at.
      out: the .npz file to write.
      options: which boxes.
      step: which checkpoint; `None` takes the newest, or the one that `run` names.
      changes: to the run's test settings, such as "scales=(224,448)": views, and how the map is found.
      report: called with (images done, images in all).

    Raises:
      ConfigError: the run makes no proposal maps, or uniform ones, or its receptive fields are not known.
      DataError: as `load_run` and `write_proposals`.
    """
    options = options or FieldOptions()
    predictor = load_run(run, step, changes=changes)
    _check_maps(predictor, run)
    field = predictor.method.proposal_field()
    # Always the thread loader, so that TensorFlow is not required.
    predictor = predictor.with_settings(loader="threads")

    def outcomes(records: Sequence[ImageRecord]) -> Iterator[Outcome]:
        todo = dataclasses.replace(images, records=tuple(records))
        missing = set(range(len(records)))
        for image in predictor.results(predictor.views(todo)):
            record = records[image.image_index]
            missing.remove(image.image_index)
            boxes, scores = field_boxes(image.maps.views, image.size, field, options)
            yield Outcome(record, boxes, None, scores)
        for index in sorted(missing):
            yield Outcome(records[index], None, _problem(records[index]))

    return write_proposals(
        images,
        out,
        generator=_generator(predictor, options),
        propose=outcomes,
        report=report,
    )


def _check_maps(predictor: Predictor, run: str | Path) -> None:
    """Raise `ConfigError` for a run whose maps rank nothing."""
    if "maps" not in predictor.method.outputs:
        raise ConfigError(
            f"{run} was trained with {predictor.config.method.name}, which makes no proposal maps; "
            "take a run of SPN, such as configs/spn_cards6.py:spn"
        )
    if predictor.method.soft_proposal.solver == "uniform":
        raise ConfigError(
            f"the proposal maps of {run} are uniform (class activation mapping), so no receptive field is better "
            "than another; take a run of SPN, or find its maps with method.soft_proposal.solver=walk"
        )


def _generator(predictor: Predictor, options: FieldOptions) -> str:
    """Return what proposals made this way are called in their file."""
    settings = predictor.settings
    views = f"{settings.resize} side {', '.join(map(str, settings.scales))}"
    if any(settings.flips):
        views += ", mirrored too" if not all(settings.flips) else ", mirrored"
    return (
        f"receptive fields of {predictor.config.method.name} ({options}, step {predictor.metadata['step']}, weights "
        f"{predictor.fingerprint()}, {predictor.method.soft_proposal.solver}, {views})"
    )


def _problem(record: ImageRecord) -> str:
    """Return why an image was not predicted."""
    try:
        record.load()
    except DataError as error:
        return str(error)
    return f"{record.image_id}: could not be read when its turn came, and can now; run again"
