"""The results of readers. Image labels and boxes are separate objects, so that boxes reach training on purpose only.

`ImageSet` has images with image-level labels, for weakly supervised training. `AnnotatedBoxes` has boxes for
evaluation. `BoxSet` contains an `ImageSet` and boxes to train on; it is not an `ImageSet`, so it cannot be passed in
place of one.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy.ndimage import find_objects

from wsod_jax.data.images import ImageSource, read_image
from wsod_jax.errors import DataError

if TYPE_CHECKING:
    from wsod_jax.types import (
        Mask,
    )  # imports JAX, which the workers that make proposals do not need

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageRecord:
    """An image and its labels.

    Attributes:
      image_id: unique within its set; joins proposals, predictions and ground truth.
      source: the file, or a function that returns the encoded bytes.
      height: in pixels, upright (EXIF orientation applied).
      width: in pixels, likewise.
      labels: one value per class: 1 present, 0 absent, -1 unknown (no loss). Empty for unlabeled sets.
      number: the data set's number of the image, such as COCO's image id, if it has one.
    """

    image_id: str
    source: ImageSource = field(repr=False)
    height: int
    width: int
    labels: tuple[int, ...] = ()
    number: int | None = None

    @property
    def path(self) -> Path | None:
        """The image file, or `None` if the image is inside another file."""
        return self.source if isinstance(self.source, Path) else None

    def load(self) -> np.ndarray:
        """Return the pixels, [height, width, 3] uint8 RGB.

        Raises:
          DataError: if the file cannot be read, or its size differs from the record's.
        """
        name = str(self.path) if self.path else self.image_id
        image = read_image(self.source, name=name)
        if image.shape[:2] != (self.height, self.width):
            size, expected = image.shape[:2], (self.height, self.width)
            raise DataError(
                f"{name}: (height, width) is {size}, was {expected} when the set was read."
            )
        return image


@dataclass(frozen=True)
class ImageSet:
    """Images with labels per image, and no boxes.

    Attributes:
      name: for reports, like "voc 2007 trainval".
      class_names: c names, in the order of the labels.
      records: the images. A record's position is the `image_index` of batches.
      counts: statistics of the reader by name (images skipped, without objects, ...).
      category_ids: [c] the data set's numbers of the classes, such as COCO's category ids, if it has them.
      missing: ids of the images of the split that are not in `records`, because file or annotation could not be
        read. Their objects count as missed in evaluation.
    """

    name: str
    class_names: tuple[str, ...]
    records: tuple[ImageRecord, ...]
    counts: Mapping[str, int] = field(default_factory=dict)
    category_ids: tuple[int, ...] | None = None
    missing: tuple[str, ...] = ()

    def __post_init__(self):
        seen, checked = set(), set()
        for record in self.records:
            if record.image_id in seen:
                raise DataError(f"{self.name}: image {record.image_id!r} occurs twice.")
            seen.add(record.image_id)
            if id(record.labels) in checked:  # of a million images, many share one tuple
                continue
            checked.add(id(record.labels))
            if len(record.labels) != len(self.class_names):
                raise DataError(
                    f"{self.name}: image {record.image_id!r} has {len(record.labels)} labels, "
                    f"but there are {len(self.class_names)} classes."
                )
            if not set(record.labels) <= {-1, 0, 1}:
                raise DataError(
                    f"{self.name}: image {record.image_id!r} has labels {record.labels}; allowed are "
                    "1 (present), 0 (absent) and -1 (unknown)."
                )

    def __len__(self) -> int:
        return len(self.records)

    @property
    def labels(self) -> np.ndarray:
        """[n, c] int32, the labels of all images."""
        vectors, which = self.label_vectors
        return vectors[which]

    @functools.cached_property
    def label_vectors(self) -> tuple[np.ndarray, np.ndarray]:
        """The distinct label vectors [u, c] int32, in order of appearance, and [n] the index of each image's vector.

        `labels` of a million images with a thousand classes would take gigabytes.
        """
        rows: dict[tuple[int, ...], int] = {}
        known: dict[int, int] = {}  # by identity, to avoid hashing long tuples
        which = np.zeros(len(self.records), np.int64)
        for position, record in enumerate(self.records):
            if id(record.labels) not in known:
                known[id(record.labels)] = rows.setdefault(record.labels, len(rows))
            which[position] = known[id(record.labels)]
        vectors = np.array(list(rows), np.int32).reshape(len(rows), len(self.class_names))
        return vectors, which

    @property
    def image_ids(self) -> tuple[str, ...]:
        """The images' ids, in order."""
        return tuple(record.image_id for record in self.records)

    def select(self, keep: Iterable[int]) -> ImageSet:
        """Return the set with only the records at positions `keep`, in that order."""
        return dataclasses.replace(self, records=tuple(self.records[i] for i in keep))


@dataclass(frozen=True)
class BoxAnnotations:
    """The annotated objects of one image.

    Attributes:
      boxes: [n, 4] float32 xyxy, pixels of the upright image, continuous edges.
      classes: [n] int32, 0-based.
      difficult: [n] bool.
      areas: [n] float32, square pixels of the object, if they are annotated separately from the box.
      crowd: [n] bool, COCO's regions of many objects, if the data set has them; difficult as well.
    """

    boxes: np.ndarray
    classes: np.ndarray
    difficult: np.ndarray
    areas: np.ndarray | None = None
    crowd: np.ndarray | None = None

    @classmethod
    def from_lists(
        cls,
        boxes: list,
        classes: list,
        difficult: list,
        *,
        areas: list | None = None,
        crowd: list | None = None,
    ) -> BoxAnnotations:
        """Make the arrays from lists of n entries; n may be 0."""
        return cls(
            np.array(boxes, np.float32).reshape(-1, 4),
            np.array(classes, np.int32).reshape(-1),
            np.array(difficult, bool).reshape(-1),
            None if areas is None else np.array(areas, np.float32).reshape(-1),
            None if crowd is None else np.array(crowd, bool).reshape(-1),
        )


@dataclass(frozen=True)
class AnnotatedBoxes:
    """Boxes for evaluation; never used in training.

    Attributes:
      class_names: c names, as in the `ImageSet` of the same data.
      boxes: image id -> its objects; an image without objects has empty arrays.
      counts: statistics of the reader by name (boxes clipped, dropped, ...).
    """

    class_names: tuple[str, ...]
    boxes: dict[str, BoxAnnotations]
    counts: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.boxes)

    def select(self, image_ids: Iterable[str]) -> AnnotatedBoxes:
        """Return the ground truth of these images, in this order.

        Raises:
          DataError: if an image has no annotation.
        """
        image_ids = list(image_ids)
        missing = [image_id for image_id in image_ids if image_id not in self.boxes]
        if missing:
            raise DataError(
                f"{len(missing)} images have no ground truth; the first is {missing[0]!r}."
            )
        return dataclasses.replace(self, boxes={i: self.boxes[i] for i in image_ids})


@dataclass(frozen=True, eq=False)
class ImageInstances:
    """The annotated object masks of one image, for evaluation.

    Attributes:
      masks: of n objects, in pixels of the upright image, each the smallest window around the object.
      classes: [n] int32, 0-based.
      ignore: [n] bool, neither found nor missed: crowds and difficult objects.
      crowd: [n] bool, COCO's regions of many objects.
      areas: [n] float32, square pixels, as annotated, else the pixels of the mask.
      num_without: annotated objects without a mask, not included in n.
    """

    masks: tuple[Mask, ...]
    classes: np.ndarray
    ignore: np.ndarray
    crowd: np.ndarray
    areas: np.ndarray
    num_without: int = 0

    @classmethod
    def from_indices(cls, indices: np.ndarray, classes: Mapping[int, int]) -> ImageInstances:
        """Make the instances from a map of object numbers, as in VOC and SBD.

        Args:
          indices: [H, W] uint8, object number of each pixel; numbers without a class belong to no object.
          classes: number -> class of each object.

        Returns:
          The objects that have pixels, by ascending number; none is ignored.
        """
        from wsod_jax.types import Mask

        windows = dict(enumerate(find_objects(indices), 1))
        numbers = [number for number in sorted(classes) if windows.get(number)]
        masks = tuple(
            Mask(rows.start, columns.start, indices[rows, columns] == number)
            for number in numbers
            for rows, columns in [windows[number]]
        )
        nothing = np.zeros(len(masks), bool)
        return cls(
            masks,
            np.array([classes[number] for number in numbers], np.int32),
            nothing,
            nothing,
            np.array([mask.pixels.sum() for mask in masks], np.float32),
        )


@dataclass(frozen=True, eq=False)
class ImageBoxes:
    """The boxes of one image that a method trains on.

    Attributes:
      boxes: [n, 4] float32 xyxy, pixels of the original image, continuous edges.
      classes: [n] int32, 0-based.
      ignore: [n] bool, neither positive nor negative: crowds and difficult objects.
      weights: [n] float32 >= 0, such as the scores of pseudo boxes; `None` is 1 for all.
    """

    boxes: np.ndarray
    classes: np.ndarray
    ignore: np.ndarray
    weights: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.boxes)


@dataclass(frozen=True, eq=False)
class BoxSet:
    """Images and the boxes to train on. Only a stream of kind "boxes" takes one.

    Attributes:
      images: the images with their labels.
      boxes: of every image, in the order of `images.records`.
      source: of the boxes, for checkpoints and reports: "annotations", or a name of pseudo labels.
    """

    images: ImageSet
    boxes: tuple[ImageBoxes, ...]
    source: str

    def __post_init__(self):
        if not self.source:
            raise DataError(
                f"{self.images.name}: the boxes have no source; name it, such as 'annotations'."
            )
        if len(self.boxes) != len(self.images):
            raise DataError(
                f"{self.images.name}: boxes of {len(self.boxes)} images for {len(self.images)} images."
            )
        for record, boxes in zip(self.images.records, self.boxes, strict=True):
            fault = _box_fault(boxes, len(self.images.class_names))
            if fault:
                raise DataError(f"{self.images.name}: image {record.image_id!r}: {fault}.")

    @classmethod
    def from_ground_truth(
        cls, images: ImageSet, truth: AnnotatedBoxes, *, source: str = "annotations"
    ) -> BoxSet:
        """Join images and their annotations; difficult objects and crowds are ignored.

        Args:
          images: the images.
          truth: of the same data set.
          source: of the boxes.

        Returns:
          The images that have an annotation; `images.counts["without_boxes"]` is the number of the others.

        Raises:
          DataError: if the classes differ, or no image has an annotation.
        """
        if truth.class_names != images.class_names:
            raise DataError(
                f"{images.name}: the images have the classes {images.class_names}, their boxes "
                f"{truth.class_names}; read both with the same class_names."
            )
        keep = [i for i, record in enumerate(images.records) if record.image_id in truth.boxes]
        if not keep:
            raise DataError(f"{images.name}: none of its {len(images)} images has annotated boxes.")
        left_out = len(images) - len(keep)
        if left_out:
            logger.warning("%s: left out %d images without annotated boxes", images.name, left_out)
        images = images.select(keep)
        images = dataclasses.replace(images, counts={**images.counts, "without_boxes": left_out})
        boxes = (_to_ignore_difficult(truth.boxes[image_id]) for image_id in images.image_ids)
        return cls(images, tuple(boxes), source)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def max_targets(self) -> int:
        """The most boxes of an image, ignored ones included; at least 1, so that arrays are never empty."""
        return max([1, *map(len, self.boxes)])

    def select(self, keep: Iterable[int]) -> BoxSet:
        """Return the set with only the images at positions `keep`, in that order."""
        keep = list(keep)
        boxes = tuple(self.boxes[i] for i in keep)
        return dataclasses.replace(self, images=self.images.select(keep), boxes=boxes)


def _to_ignore_difficult(annotations: BoxAnnotations) -> ImageBoxes:
    ignore = annotations.difficult
    if annotations.crowd is not None:
        ignore = ignore | annotations.crowd
    return ImageBoxes(annotations.boxes, annotations.classes, ignore)


def _box_fault(boxes: ImageBoxes, num_classes: int) -> str | None:
    """Return a description of the first error in an image's boxes, or `None`."""
    count = len(boxes.boxes)
    if boxes.boxes.shape != (count, 4):
        return f"its boxes have shape {boxes.boxes.shape}; it must be [n, 4]"
    columns = {"classes": boxes.classes, "ignore": boxes.ignore, "weights": boxes.weights}
    for name, column in columns.items():
        if column is not None and column.shape != (count,):
            return f"{name} has shape {column.shape} for {count} boxes"
    if not np.isfinite(boxes.boxes).all():
        return "a box is not finite"
    if (boxes.boxes[:, 2:] < boxes.boxes[:, :2]).any():
        return "a box has x2 < x1 or y2 < y1; boxes are (x1, y1, x2, y2)"
    if count and not 0 <= boxes.classes.min() <= boxes.classes.max() < num_classes:
        return f"a class is outside 0 to {num_classes - 1}"
    if boxes.weights is not None and not (np.isfinite(boxes.weights) & (boxes.weights >= 0)).all():
        return "a weight is negative or not finite"
    return None
