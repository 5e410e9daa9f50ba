"""The images of a split, and what is known of each: labels, boxes, masks, label maps."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from wsod_jax.data.readers.reader import LeftOut, OnBad, Reader
from wsod_jax.data.records import AnnotatedBoxes, BoxAnnotations, ImageSet
from wsod_jax.errors import DataError
from wsod_jax.evaluation.evaluators import Annotation, evaluation_labels
from wsod_jax.evaluation.metrics.tables import GroundTruth
from wsod_jax.types import ImageResult

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class AnnotatedImages:
    """A split and what is known of it.

    Attributes:
      images: the images that can be predicted, with their labels.
      objects: the objects of every one of them, then those of `known_missing`; `None` where the reader knows no boxes.
      known_missing: ids of the split's missing images whose objects are known.
      instances: image id -> reads its masks; `label_maps`: its label map. Empty where the reader has none.
      counts: what was met in the annotations, by name (boxes dropped, clipped, ...).
    """

    images: ImageSet
    objects: tuple[BoxAnnotations, ...] | None = None
    known_missing: tuple[str, ...] = ()
    instances: Mapping[str, Callable[[], Any]] = dataclasses.field(default_factory=dict)
    label_maps: Mapping[str, Callable[[], np.ndarray]] = dataclasses.field(default_factory=dict)
    counts: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @classmethod
    def read(
        cls, reader: Reader, split: str, reads: frozenset[str] = frozenset({"boxes"})
    ) -> AnnotatedImages:
        """Read a split; masks and label maps only if `reads` holds "masks" and "semantic".

        An image whose boxes alone cannot be read is missing, as if it were not there. If no boxes can be read, that is
        an error where `reads` holds what they measure: "boxes", "maps" or "masks". Else it is logged, they are
        unknown, and labels count as training has them.
        """
        images, objects, missing, counts = reader.images(split), None, (), {}
        if reader.has_boxes and not images.counts.get("no_annotation"):
            try:
                truth = reader.annotated_boxes(split)
                images, counts = annotated_only(images, truth, reader.on_bad), truth.counts
                missing = tuple(one for one in images.missing if one in truth.boxes)
                objects = tuple(truth.select([*images.image_ids, *missing]).boxes.values())
            except DataError as error:
                if reads & {"boxes", "maps", "masks"}:
                    raise
                logger.warning("%s: the objects are not known; %s", images.name, error)
        has_masks = "masks" in reads and reader.has_instances
        has_maps = "semantic" in reads and reader.has_label_maps
        return cls(
            images,
            objects,
            missing,
            reader.instances(split) if has_masks else {},
            reader.label_maps(split) if has_maps else {},
            counts,
        )

    @property
    def has_boxes(self) -> bool:
        """Whether the objects are known."""
        return self.objects is not None

    @functools.cached_property
    def truth(self) -> GroundTruth:
        """The objects of the images, those of missing ones left out."""
        objects = self.objects[: len(self.images)]
        return GroundTruth.from_annotations(objects, num_classes=len(self.images.class_names))

    @property
    def sizes(self) -> np.ndarray:
        """[n, 2] (height, width) of the images in pixels."""
        return np.array([(record.height, record.width) for record in self.images.records])

    @functools.cached_property
    def query(self) -> np.ndarray:
        """[n, c] bool, the classes that images are labeled with or contain."""
        labeled = self.images.labels == 1
        return labeled | self.truth.present() if self.has_boxes else labeled

    def __len__(self) -> int:
        """Images that count, the missing ones included."""
        return len(self.objects) if self.has_boxes else len(self.images)

    @functools.cached_property
    def image_ids(self) -> tuple[str, ...]:
        """Ids of the images that count: those of the set, then the missing ones whose objects are known."""
        return (*self.images.image_ids, *self.known_missing)

    def annotation(self, index: int) -> Annotation:
        """Return what is known of an image; of a missing one no more than its annotations."""
        objects = self.objects[index] if self.has_boxes else None
        unlabeled = (0,) * len(self.images.class_names)
        is_there = index < len(self.images)
        labels = self.images.records[index].labels if is_there else unlabeled
        image_id = self.image_ids[index]
        return Annotation(
            evaluation_labels(labels, objects),
            objects,
            self.instances.get(image_id),
            self.label_maps.get(image_id),
        )

    def size(self, index: int) -> tuple[int, int]:
        """Return (height, width) of an image; of a missing one as far as its annotated objects reach."""
        if index < len(self.images):
            record = self.images.records[index]
            return record.height, record.width
        corners = np.append(self.objects[index].boxes[:, 2:], [[1, 1]], axis=0)
        image_id = self.image_ids[index]
        if image_id in self.instances:
            ends = [
                np.add((m.left, m.top), m.pixels.shape[::-1])
                for m in self.instances[image_id]().masks
            ]
            corners = np.append(corners, np.reshape(ends, (-1, 2)), axis=0)
        width, height = np.ceil(corners.max(axis=0)).astype(int).tolist()
        return height, width

    def known(self) -> frozenset[str]:
        """Return what evaluators can read here."""
        found = {"labels"} if (self.images.label_vectors[0] >= 0).any() or self.has_boxes else set()
        found |= {"boxes"} if self.has_boxes else set()
        found |= {"masks"} if self.instances else set()
        return frozenset(found | ({"semantic"} if self.label_maps else set()))


def annotated_only(images: ImageSet, truth: AnnotatedBoxes, on_bad: OnBad) -> ImageSet:
    """Return the set without images that have no ground truth, which become missing.

    Raises:
      DataError: if they are too many, as `on_bad` has it.
    """
    left_out = LeftOut(on_bad)
    for image_id in images.image_ids:
        if image_id not in truth.boxes:
            left_out.add(
                image_id, DataError(f"image {image_id!r} has no ground truth that can be read")
            )
    if not left_out.ids:
        return images
    keep = [i for i, image_id in enumerate(images.image_ids) if image_id in truth.boxes]
    left_out.finish(f"ground truth of {images.name}", len(keep), {})
    missing = (*images.missing, *left_out.ids)
    return dataclasses.replace(images.select(keep), missing=missing)


def truth_table(images: ImageSet, truth: AnnotatedBoxes) -> GroundTruth:
    """Return the objects of a set as metrics read them."""
    selected = truth.select(images.image_ids)
    return GroundTruth.from_annotations(selected.boxes.values(), num_classes=len(truth.class_names))


def count_notes(data: AnnotatedImages, counts: Mapping[str, int]) -> list[str]:
    """Say what was met in a set: images shrunk or unreadable, proposals merged or dropped, boxes scaled or clipped."""
    per_view = ", each image counted once per view" if counts else ""
    found = []
    for what, met in (
        (f"input of {data.images.name}{per_view}", {**data.images.counts, **counts}),
        (f"ground truth of {data.images.name}", data.counts),
    ):
        told = ", ".join(f"{name} {n}" for name, n in met.items() if n)
        found += [f"{what}: {told}"] if told else []
    return found


def left_out_sentences(data: AnnotatedImages, unread: Sequence[int]) -> list[str]:
    """Say what of a split the numbers do not see, to stand before them."""
    found, missing = [], data.images.missing
    counted = "their objects count as missed, and classification mAP leaves them out"
    unknown = "what they show is not known, and no number sees them"
    for ids, fault, effect in (
        ([data.images.image_ids[i] for i in unread], "could not be read", counted),
        (data.known_missing, "are missing or broken", counted),
        ([i for i in missing if i not in data.known_missing], "are missing or broken", unknown),
    ):
        if ids:
            names = ", ".join(ids[:5]) + (" ..." if len(ids) > 5 else "")
            total = len(data.images) + len(missing)
            told = f"{len(ids)} of {total} images of {data.images.name} {fault} ({names})"
            found.append(f"{told}: {effect}")
    if data.counts.get("dropped"):
        found.append(
            f"{data.counts['dropped']} annotated boxes of {data.images.name} have no area inside their image, or no "
            "readable corners: no number sees them"
        )
    return found


def in_order(results: Iterable[ImageResult], data: AnnotatedImages) -> Iterator[ImageResult]:
    """Yield a result for every image that counts, without any output where there is none; `results` are ascending."""
    expected = 0
    for result in results:
        yield from (ImageResult(i, data.size(i)) for i in range(expected, result.image_index))
        yield result
        expected = result.image_index + 1
    yield from (ImageResult(i, data.size(i)) for i in range(expected, len(data)))
