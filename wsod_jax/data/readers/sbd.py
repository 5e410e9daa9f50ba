"""Reader of the Semantic Boundaries Dataset (SBD): masks of VOC's 20 classes on 11 355 images, as published.

    <root>/dataset/train.txt, val.txt           one image id per line
    <root>/dataset/img/<id>.jpg
    <root>/dataset/inst/<id>.mat                GTinst.Segmentation [H, W], numbers of objects; GTinst.Categories [n]
    <root>/dataset/cls/<id>.mat                 GTcls.Segmentation [H, W], numbers of classes

Source: Hariharan et al., Semantic Contours from Inverse Detectors, ICCV 2011.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np

from wsod_jax.data.images import image_size
from wsod_jax.data.readers.label_images import VOID, check_size, to_labels
from wsod_jax.data.readers.mat import read_mat
from wsod_jax.data.readers.reader import LabelMapReader, LeftOut
from wsod_jax.data.readers.voc import CLASS_NAMES, read_split
from wsod_jax.data.records import (
    AnnotatedBoxes,
    BoxAnnotations,
    ImageInstances,
    ImageRecord,
    ImageSet,
)
from wsod_jax.errors import DataError
from wsod_jax.options import Mark

_TABLE = np.array([*range(len(CLASS_NAMES) + 1), *[-1] * (VOID - len(CLASS_NAMES) - 1), VOID])


@dataclass(frozen=True, kw_only=True)
class Sbd(LabelMapReader):
    """The Semantic Boundaries Dataset. Boxes are those of the masks, none difficult.

    Attributes:
      root: the folder that contains `dataset`, or that folder itself.
    """

    root: Annotated[str | Path, Mark.LOCATION]
    train_split: str = "train"
    test_split: str = "val"

    def images(self, split: str) -> ImageSet:
        """Read a split's images and their image-level labels, from the classes of its objects.

        Args:
          split: "train", "val", or the name of another list in the same folder.

        Returns:
          The images in the order of the list, sizes from the image headers. `counts["no_object"]` images have no
          object, which is legal: all their labels are 0.

        Raises:
          DataError: see `on_bad`; also if no image is left.
        """
        counts, records = Counter(bad_image=0, no_object=0), []
        left_out = LeftOut(self.on_bad)
        for image_id in self._image_ids(split):
            image, objects, _ = self._paths(image_id)
            try:
                size = image_size(image)
                classes = set(_read_objects(objects)[1].values())
            except DataError as error:
                left_out.add(image_id, error)
                continue
            counts["no_object"] += not classes
            labels = tuple(int(index in classes) for index in range(len(CLASS_NAMES)))
            records.append(ImageRecord(image_id, image, *size, labels))
        name, missing = f"sbd {split}", tuple(left_out.ids)
        left_out.finish(name, len(records), counts)
        return ImageSet(name, CLASS_NAMES, tuple(records), dict(counts), missing=missing)

    def annotated_boxes(self, split: str) -> AnnotatedBoxes:
        """Read the tight boxes around the masks of a split, for evaluation. Image files are not required.

        Args:
          split: as in `images`.

        Returns:
          Boxes of every image of the split, none difficult; areas are those of the masks.

        Raises:
          DataError: see `on_bad`; also if no annotation can be read.
        """
        boxes, counts, left_out = {}, {}, LeftOut(self.on_bad)
        for image_id, read in self.instances(split).items():
            try:
                boxes[image_id] = _boxes_around(read())
            except DataError as error:
                left_out.add(image_id, error)
        left_out.finish(f"ground truth of {split} in {self.root}", len(boxes), counts)
        return AnnotatedBoxes(CLASS_NAMES, boxes, counts)

    def instances(self, split: str) -> dict[str, Callable[[], ImageInstances]]:
        """Return readers of the masks of a split, for evaluation; masks are decoded only when needed.

        Args:
          split: as in `images`.

        Returns:
          Image id -> a function that reads the masks of that image, for every image of the split. An object without
          pixels is left out; none is ignored.

        Raises:
          DataError: if the split is missing or invalid.
        """
        return {i: functools.partial(_instances, *self._paths(i)) for i in self._image_ids(split)}

    def label_maps(self, split: str) -> dict[str, Callable[[], np.ndarray]]:
        """Return readers of the label maps of a split, for evaluation; maps are decoded only when needed.

        Args:
          split: as in `images`.

        Returns:
          Image id -> a function that reads the label map of that image, as in `LabelMapReader`.

        Raises:
          DataError: if the split is missing or invalid.
        """
        return {i: functools.partial(_label_map, *self._paths(i)) for i in self._image_ids(split)}

    def _image_ids(self, split: str) -> Iterator[str]:
        folder = self._folder()
        path = folder / f"{split}.txt"
        if not path.is_file():
            found = ", ".join(sorted(file.stem for file in folder.glob("*.txt")))
            raise DataError(f"{path}: no such split; found {found or 'none'}.")
        return read_split(path, {})

    def _paths(self, image_id: str) -> tuple[Path, Path, Path]:
        """Return an image's files: itself, objects, classes."""
        folder = self._folder()
        return (
            folder / "img" / f"{image_id}.jpg",
            folder / "inst" / f"{image_id}.mat",
            folder / "cls" / f"{image_id}.mat",
        )

    def _folder(self) -> Path:
        inner = Path(self.root) / "dataset"
        return inner if inner.is_dir() else Path(self.root)


def _field(path: Path, variable: str, name: str) -> np.ndarray:
    """Return a field of a structure, an array of whole numbers from 0 to 255."""
    content = read_mat(path)
    try:
        values = np.asarray(content[variable][name][0, 0])
    except (KeyError, IndexError, ValueError, TypeError) as error:
        found = sorted(key for key in content if not key.startswith("__"))
        raise DataError(f"{path}: needs {variable}.{name}, found {found}.") from error
    if values.dtype.kind not in "iuf" or not ((values >= 0) & (values <= 255)).all():
        raise DataError(f"{path}: {variable}.{name} must be numbers from 0 to 255.")
    return values.astype(np.uint8)


def _read_objects(path: Path) -> tuple[np.ndarray, dict[int, int]]:
    """Return the object number of every pixel, and number -> class of the objects that have pixels."""
    indices = _field(path, "GTinst", "Segmentation")
    categories = _field(path, "GTinst", "Categories").ravel().tolist()
    numbers = [number for number in np.unique(indices).tolist() if number not in (0, VOID)]
    for number in numbers:
        if number > len(categories) or not 1 <= categories[number - 1] <= len(CLASS_NAMES):
            raise DataError(
                f"{path}: object {number} has no class from 1 to {len(CLASS_NAMES)} in GTinst.Categories, which is "
                f"{categories}."
            )
    return indices, {number: categories[number - 1] - 1 for number in numbers}


def _instances(image: Path, objects: Path, classes: Path) -> ImageInstances:
    indices, class_of = _read_objects(objects)
    check_size(indices, objects, image)
    return ImageInstances.from_indices(indices, class_of)


def _label_map(image: Path, objects: Path, classes: Path) -> np.ndarray:
    indices = _field(classes, "GTcls", "Segmentation")
    check_size(indices, classes, image)
    return to_labels(indices, _TABLE, classes)


def _boxes_around(instances: ImageInstances) -> BoxAnnotations:
    sides = [(mask.left, mask.top, *mask.pixels.shape[::-1]) for mask in instances.masks]
    boxes = [(x, y, x + width, y + height) for x, y, width, height in sides]
    return BoxAnnotations.from_lists(
        boxes, instances.classes, [False] * len(boxes), areas=list(instances.areas)
    )
