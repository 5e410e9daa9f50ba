"""Detections and ground truth as flat NumPy tables: what every evaluator reads.

One row is one box. Rows name their image by its position in the evaluated set, so an image without any
row is still counted, and nothing is rounded on the way from the network to the score.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

from wsod_jax.errors import DataError
from wsod_jax.ops.masks import mask_to_rle, tight_box
from wsod_jax.types import ImageResult, Mask


def _column(value, dtype, shape: tuple[int, ...], name: str) -> np.ndarray:
    """Return `value` as an array of `dtype`, raising `DataError` where its shape is not `shape`."""
    array = np.asarray(value, dtype)
    if array.size == 0:
        array = array.reshape((0, *shape[1:]))
    if array.ndim != len(shape) or array.shape[1:] != shape[1:] or array.shape[0] != shape[0]:
        raise DataError(
            f"{name} has shape {array.shape}, needed {shape}: one row per box, boxes as x1 y1 x2 y2"
        )
    return array


def _check_range(values: np.ndarray, limit: int, name: str) -> None:
    """Raise `DataError` where an index lies outside [0, limit)."""
    wrong = (values < 0) | (values >= limit)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise DataError(
            f"{name} of row {row} is {int(values[row])}, allowed 0 to {limit - 1}; "
            "give the table the image set and the classes that the boxes were made with"
        )


Region = Literal["boxes", "masks"]  # what is compared: IoU of boxes, or of masks
Rle = dict[str, Any]  # a mask as COCO's compressed run-length encoding, see `ops.masks`


def _check_masks(masks: Sequence[Rle] | None, rows: int, name: str) -> tuple[Rle, ...] | None:
    """Return `masks` as a tuple, raising `DataError` where there is not one for each of the rows."""
    if masks is not None and len(masks) != rows:
        raise DataError(
            f"{name} has {len(masks)} masks for {rows} boxes; needed one per box, or none"
        )
    return None if masks is None else tuple(masks)


class ImageObjects(Protocol):
    """The annotated objects of one image, as the readers of data sets return them."""

    boxes: np.ndarray  # [n, 4] xyxy, pixels of the original image
    classes: np.ndarray  # [n]
    difficult: np.ndarray  # [n]
    areas: np.ndarray | None  # [n]; `None` where they are those of the boxes
    crowd: np.ndarray | None  # [n]; `None` where there are no crowds


class ImageMasks(Protocol):
    """The annotated masks of one image, as the readers of data sets return them."""

    masks: Sequence[Mask]
    classes: np.ndarray  # [n]
    ignore: np.ndarray  # [n]: crowds and difficult objects
    crowd: np.ndarray  # [n]
    areas: np.ndarray  # [n]


@dataclass(frozen=True)
class DetectionTable:
    """Scored boxes of a whole image set.

    Attributes:
      image_index: [m] int32, position of the image in the set.
      classes: [m] int32, foreground class, 0-based.
      scores: [m] float32, finite, higher is more confident. Order among equal scores is row order.
      boxes: [m, 4] float32 `xyxy`, pixels of the original image, continuous edges.
      num_images: images in the set, those without a detection included.
      num_classes: foreground classes.
      masks: m RLEs of the whole image, where there are masks.

    Raises:
      DataError: columns of different length, indices outside the set, or values that are not finite.
    """

    image_index: np.ndarray
    classes: np.ndarray
    scores: np.ndarray
    boxes: np.ndarray
    num_images: int
    num_classes: int
    masks: tuple[Rle, ...] | None = None

    def __post_init__(self):
        rows = len(self.scores)
        object.__setattr__(self, "masks", _check_masks(self.masks, rows, "detections"))
        for name, dtype, shape in (
            ("image_index", np.int32, (rows,)),
            ("classes", np.int32, (rows,)),
            ("scores", np.float32, (rows,)),
            ("boxes", np.float32, (rows, 4)),
        ):
            column = _column(getattr(self, name), dtype, shape, f"detections.{name}")
            object.__setattr__(self, name, column)
        _check_range(self.image_index, self.num_images, "image_index of detections")
        _check_range(self.classes, self.num_classes, "class of detections")
        for name in ("scores", "boxes"):
            finite = np.isfinite(np.atleast_2d(getattr(self, name).T)).all(axis=0)
            if not finite.all():
                row = int(np.argmin(finite))
                raise DataError(
                    f"detections.{name} of row {row} is {getattr(self, name)[row]}; scores and boxes must be "
                    "finite. Look for a diverged checkpoint or a damaged predictions file"
                )

    def __len__(self) -> int:
        return len(self.scores)

    @classmethod
    def from_images(
        cls,
        found: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]],
        *,
        num_classes: int,
    ) -> DetectionTable:
        """Return the table of boxes [n, 4], scores [n] and classes [n] of every image, in their order."""
        counts = [len(scores) for _, scores, _ in found]
        found = [(np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int32)), *found]
        boxes, scores, classes = (np.concatenate(column) for column in zip(*found, strict=True))
        return cls(
            image_index=np.repeat(np.arange(len(counts)), counts),
            classes=classes,
            scores=scores,
            boxes=boxes,
            num_images=len(counts),
            num_classes=num_classes,
        )

    @classmethod
    def of_results(
        cls, results: Iterable[ImageResult], num_images: int, num_classes: int
    ) -> DetectionTable:
        """Return the boxes of results in any order, for a set of `num_images` images."""
        none = np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int32)
        found = [none] * num_images
        for result in results:
            if result.boxes is not None:
                found[result.image_index] = result.boxes, result.scores, result.classes
        return cls.from_images(found, num_classes=num_classes)

    def of_image(self, index: int) -> DetectionTable:
        """Return the rows of one image, in table order; `num_images` stays."""
        return self.take(np.flatnonzero(self.image_index == index))

    def take(self, rows: np.ndarray) -> DetectionTable:
        """Return the table of these rows (indices or a bool mask)."""
        return DetectionTable(
            self.image_index[rows],
            self.classes[rows],
            self.scores[rows],
            self.boxes[rows],
            self.num_images,
            self.num_classes,
            _take_masks(self.masks, rows),
        )


def _take_masks(masks: tuple[Rle, ...] | None, rows: np.ndarray) -> tuple[Rle, ...] | None:
    """Return the masks of these rows (indices or a bool mask)."""
    return None if masks is None else tuple(masks[i] for i in np.arange(len(masks))[rows])


@dataclass(frozen=True)
class TruthTable:
    """Ground-truth boxes of a whole image set. Evaluation and pictures read it; training never does.

    Attributes:
      image_index: [n] int32, position of the image in the set.
      classes: [n] int32, foreground class, 0-based.
      boxes: [n, 4] float32 `xyxy`, pixels of the original image, continuous edges.
      difficult: [n] bool, neither hit nor miss for AP (VOC's difficult objects; COCO's crowds).
      num_images: images in the set, those without an object included.
      num_classes: foreground classes.
      areas: [n] float32 object area in square pixels where it is known (COCO: of the mask), else of the mask or box.
      crowd: [n] bool, COCO's crowd regions; only `coco_metrics` treats them apart from `difficult`.
      masks: n RLEs of the whole image, where objects are annotated by masks.
    """

    image_index: np.ndarray
    classes: np.ndarray
    boxes: np.ndarray
    difficult: np.ndarray
    num_images: int
    num_classes: int
    areas: np.ndarray | None = field(default=None)
    crowd: np.ndarray | None = field(default=None)
    masks: tuple[Rle, ...] | None = None

    def __post_init__(self):
        rows = len(self.classes)
        boxes = _column(self.boxes, np.float32, (rows, 4), "ground truth boxes")
        masks = _check_masks(self.masks, rows, "ground truth")
        object.__setattr__(self, "masks", masks)
        areas = self.areas
        if areas is None:
            areas = box_areas(boxes) if masks is None else mask_areas(masks)
        crowd = np.zeros(rows, bool) if self.crowd is None else self.crowd
        for name, value, dtype in (
            ("image_index", self.image_index, np.int32),
            ("classes", self.classes, np.int32),
            ("difficult", self.difficult, bool),
            ("areas", areas, np.float32),
            ("crowd", crowd, bool),
        ):
            object.__setattr__(self, name, _column(value, dtype, (rows,), f"ground truth {name}"))
        object.__setattr__(self, "boxes", boxes)
        _check_range(self.image_index, self.num_images, "image_index of ground truth")
        _check_range(self.classes, self.num_classes, "class of ground truth")

    def __len__(self) -> int:
        return len(self.classes)

    @classmethod
    def from_images(
        cls,
        boxes: Sequence[np.ndarray],
        classes: Sequence[np.ndarray],
        difficult: Sequence[np.ndarray] | None = None,
        *,
        num_classes: int,
    ) -> TruthTable:
        """Return the table of per-image lists.

        Args:
          boxes: per image [n, 4], `xyxy` original pixels; empty for an image without objects.
          classes: per image [n] int.
          difficult: per image [n] bool; all False if not given.
          num_classes: foreground classes.
        """
        counts = [len(of_image) for of_image in classes]
        if difficult is None:
            difficult = [np.zeros(count, bool) for count in counts]
        parts = [np.asarray(part, np.float32).reshape(-1, 4) for part in boxes]
        return cls(
            image_index=np.repeat(np.arange(len(counts)), counts),
            classes=np.concatenate([np.zeros(0, np.int32), *classes]),
            boxes=np.concatenate([np.zeros((0, 4), np.float32), *parts]),
            difficult=np.concatenate([np.zeros(0, bool), *difficult]),
            num_images=len(counts),
            num_classes=num_classes,
        )

    @classmethod
    def from_annotations(cls, objects: Iterable[ImageObjects], *, num_classes: int) -> TruthTable:
        """Return the table of annotated images, in the order given.

        Args:
          objects: one per image, in the order of the image set: `ground_truth.select(ids).boxes.values()`.
          num_classes: foreground classes.
        """
        objects = list(objects)
        table = cls.from_images(
            [of_image.boxes for of_image in objects],
            [of_image.classes for of_image in objects],
            [of_image.difficult for of_image in objects],
            num_classes=num_classes,
        )
        known = {
            name: np.concatenate([getattr(of_image, name) for of_image in objects])
            for name in ("areas", "crowd")
            if objects and all(getattr(of_image, name) is not None for of_image in objects)
        }
        return dataclasses.replace(table, **known)

    @classmethod
    def from_instances(
        cls, images: Sequence[tuple[tuple[int, int], ImageMasks]], *, num_classes: int
    ) -> TruthTable:
        """Return the table of annotated masks; (height, width) and masks of every image."""
        rows = [(i, size, m) for i, (size, masks) in enumerate(images) for m in masks.masks]
        columns = {
            name: np.concatenate([np.zeros(0), *(getattr(masks, name) for _, masks in images)])
            for name in ("classes", "ignore", "areas", "crowd")
        }
        return cls(
            image_index=[i for i, *_ in rows],
            classes=columns["classes"],
            boxes=[tight_box(mask) for *_, mask in rows],
            difficult=columns["ignore"],
            num_images=len(images),
            num_classes=num_classes,
            areas=columns["areas"],
            crowd=columns["crowd"],
            masks=tuple(mask_to_rle(mask, size) for _, size, mask in rows),
        )

    def take(self, rows: np.ndarray) -> TruthTable:
        """Return the table of these rows (indices or a bool mask); `num_images` stays."""
        return TruthTable(
            self.image_index[rows],
            self.classes[rows],
            self.boxes[rows],
            self.difficult[rows],
            self.num_images,
            self.num_classes,
            self.areas[rows],
            self.crowd[rows],
            _take_masks(self.masks, rows),
        )

    def of_image(self, index: int) -> TruthTable:
        """Return the rows of one image, in table order; `num_images` stays."""
        return self.take(np.flatnonzero(self.image_index == index))

    def rows_by_image(self) -> list[np.ndarray]:
        """Return per image the rows of its objects, in table order."""
        order = np.argsort(self.image_index, kind="stable")
        first = np.searchsorted(self.image_index[order], np.arange(1, self.num_images))
        return np.split(order, first) if self.num_images else []

    def present(self, *, include_difficult: bool = True) -> np.ndarray:
        """Return [n, c] bool: image n holds an object of class c."""
        table = np.zeros((self.num_images, self.num_classes), bool)
        rows = np.ones(len(self), bool) if include_difficult else ~self.difficult
        table[self.image_index[rows], self.classes[rows]] = True
        return table

    def counts(self, *, include_difficult: bool = True) -> np.ndarray:
        """Return [n, c] int: objects of class c in image n."""
        table = np.zeros((self.num_images, self.num_classes), np.int64)
        rows = np.ones(len(self), bool) if include_difficult else ~self.difficult
        np.add.at(table, (self.image_index[rows], self.classes[rows]), 1)
        return table


def checked_sizes(image_sizes: np.ndarray, num_images: int) -> np.ndarray:
    """Return image sizes as [n, 2] int64 (height, width), raising `DataError` where they are none."""
    sizes = np.asarray(image_sizes, np.int64)
    if sizes.size == 0:
        sizes = sizes.reshape(-1, 2)
    if sizes.shape != (num_images, 2) or (sizes < 1).any():
        raise DataError(
            f"image sizes of shape {sizes.shape}, smallest side {sizes.min(initial=1)}; needed: "
            f"({num_images}, 2), (height, width) of every image of the set, in pixels"
        )
    return sizes


def box_areas(boxes: np.ndarray) -> np.ndarray:
    """Return the areas of boxes [n, 4], [n]."""
    return np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)


def mask_areas(masks: Sequence[Rle]) -> np.ndarray:
    """Return the numbers of pixels of masks, [n] float64."""
    from pycocotools import mask as coco_mask

    # One by one: pycocotools 2.0.11 fails on lists of more than 255.
    return np.array([coco_mask.area(mask) for mask in masks], np.float64)


def check_same_set(detections: DetectionTable, truth: TruthTable, region: Region) -> None:
    """Raise `DataError` unless both tables are of one image set and have what is compared.

    Args:
      region: "masks" needs masks in both tables, of one size per image.
    """
    if (detections.num_images, detections.num_classes) != (truth.num_images, truth.num_classes):
        raise DataError(
            f"detections cover {detections.num_images} images and {detections.num_classes} classes, ground truth "
            f"{truth.num_images} and {truth.num_classes}; evaluate on the image set that was predicted"
        )
    if region == "boxes":
        return
    for name, table in (("detections", detections), ("ground truth", truth)):
        if table.masks is None and len(table):
            raise DataError(f"{name}: there are no masks to compare; evaluate boxes, or give masks")
    sizes: dict[int, tuple[int, int]] = {}
    for table in (truth, detections):
        for image, mask in zip(table.image_index.tolist(), table.masks or (), strict=True):
            size = tuple(mask["size"])
            if sizes.setdefault(image, size) != size:
                raise DataError(
                    f"image {image} has masks of (height, width) {sizes[image]} and {size}; needed: masks of the "
                    "image's own size"
                )
