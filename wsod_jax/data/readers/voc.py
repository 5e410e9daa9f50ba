"""Reader of the PASCAL VOC layout: VOCdevkit 2007/2012, or any folder in that layout with other classes.

    <root>/ImageSets/Main/<split>.txt   <root>/JPEGImages/<id>.jpg   <root>/Annotations/<id>.xml
    <root>/SegmentationObject/<id>.png and <root>/SegmentationClass/<id>.png, of some images, for evaluation

The XML, with its 1-based inclusive boxes, is read by `voc_xml.py`.
"""

from __future__ import annotations

import functools
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal

import numpy as np

from wsod_jax.data.images import SUFFIXES, image_size
from wsod_jax.data.readers.image_files import find_images, id_by_name
from wsod_jax.data.readers.label_images import (
    VOID,
    check_size,
    majority_classes,
    read_indices,
    to_labels,
)
from wsod_jax.data.readers.reader import LabelMapReader, LeftOut, checked_names
from wsod_jax.data.readers.voc_xml import (
    class_index,
    named_objects,
    read_boxes,
    read_xml,
)
from wsod_jax.data.records import AnnotatedBoxes, ImageInstances, ImageRecord, ImageSet
from wsod_jax.errors import ConfigError, DataError
from wsod_jax.options import Mark

logger = logging.getLogger(__name__)

CLASS_NAMES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip

DifficultRule = Literal["drop", "ignore", "keep"]
_NUMBER = re.compile(r"[+-]?\d+")


@dataclass(frozen=True, kw_only=True)
class Voc(LabelMapReader):
    """A data set in VOC layout.

    A split is a file in ImageSets/Main, else in ImageSets/Segmentation; "Segmentation/val" if both have a "val".

    Attributes:
      root: a folder in VOC layout (VOCdevkit/VOC2007), or the VOCdevkit folder together with `year`.
      year: "2007", 2012, or a union like "07+12" (each year's split of that name).
      test_year: the year of `test_split`, if different.
      class_names: the classes, in label order. By default those of a classes.txt (one name per line) in
        the folder or up to two levels above it, else the 20 VOC classes.
      difficult: the label of a class whose objects in an image are all marked difficult: "drop" 0,
        absent (as in OICR, PCL and OIM); "ignore" -1, unknown (WSDDN); "keep" 1, present.
    """

    root: Annotated[str | Path, Mark.LOCATION]
    year: str | int | None = None
    test_year: str | int | None = None
    train_split: str = "trainval"
    test_split: str = "test"
    class_names: tuple[str, ...] | None = None
    difficult: DifficultRule = "drop"

    def __post_init__(self):
        super().__post_init__()
        difficult_label(self.difficult)
        if self.test_year is not None and self.test_split == self.train_split:
            raise ConfigError(
                f"test_year={self.test_year!r} is the year of test_split only, but train_split has the same name, "
                f"{self.train_split!r}. Set only year, or use another split."
            )

    def images(self, split: str) -> ImageSet:
        """Read a split's images and their image-level labels, without boxes.

        A split in which no image has an XML, like the test splits of the VOC challenges, is read without labels: every
        label is -1, unknown, and images are counted as `no_annotation`. If only some images lack one, these are left
        out, since their labels are unknown.

        Args:
          split: name of a file in ImageSets/Main, like "trainval".

        Returns:
          The images in the order of the split files, sizes from the image headers. `counts["no_object"]`
          images have no object, which is legal: all their labels are 0.

        Raises:
          DataError: see `on_bad`; also if no image is left.
        """
        folders, class_names = self._layout(split)
        counts, records = Counter(bad_image=0, no_object=0, no_annotation=0), []
        left_out = LeftOut(self.on_bad)
        for folder in folders:
            records += self._records(folder, split, class_names, counts, left_out)
        name = " ".join(["voc", *(folder.name.removeprefix("VOC") for folder in folders), split])
        left_out.finish(name, len(records), counts)
        missing = tuple(left_out.ids)
        return ImageSet(name, class_names, tuple(records), dict(counts), missing=missing)

    def annotated_boxes(self, split: str) -> AnnotatedBoxes:
        """Read the boxes of a split, for evaluation.

        Boxes that extend outside their image are clipped (`counts["clipped"]`); those without area or with
        unreadable coordinates are dropped (`counts["dropped"]`). If the size in the XML differs from the image's,
        boxes are scaled (`counts["scaled"]` images); an image of another aspect is left out as bad. Image files are
        not required: without one, the size in the XML is used.

        Args:
          split: name of a file in ImageSets/Main.

        Returns:
          Boxes of every image of the split, difficult ones included and marked.

        Raises:
          DataError: see `on_bad`; also if no image is left.
        """
        folders, class_names = self._layout(split)
        counts, boxes = Counter(bad_image=0, clipped=0, dropped=0, scaled=0), {}
        left_out = LeftOut(self.on_bad)
        for folder in folders:
            for image_id, image in _split_images(folder, split, {}).items():
                path = _xml_path(folder, image_id)
                try:
                    xml, size = read_xml(path), _size_if_readable(image)
                    boxes[image_id] = read_boxes(xml, size, class_names, path, counts)
                except DataError as error:
                    left_out.add(image_id, error)
        left_out.finish(f"ground truth of {split} in {self.root}", len(boxes), counts)
        return AnnotatedBoxes(class_names, boxes, dict(counts))

    def instances(self, split: str) -> dict[str, Callable[[], ImageInstances]]:
        """Return readers of the masks of a split, for evaluation; masks are decoded only when needed.

        Every number in SegmentationObject is an object; its class is that of most of its pixels in SegmentationClass
        (of equal counts the lowest). Void pixels belong to no object. None is difficult.

        Args:
          split: as in `images`.

        Returns:
          Image id -> a function that reads the masks of that image, by ascending number; of the images of the
          split that have a file in SegmentationObject. It raises `DataError` for files that are broken, of another
          size, or lack their companion in SegmentationClass.

        Raises:
          DataError: if the split is missing or faulty.
        """
        return self._readers(split, "SegmentationObject", _instances)

    def label_maps(self, split: str) -> dict[str, Callable[[], np.ndarray]]:
        """Return where the label maps of a split are, for evaluation; nothing is decoded before it is asked for.

        Numbers in SegmentationClass are those of the classes in classes.txt, or of VOC's 20 where there is none.

        Args:
          split: as in `images`.

        Returns:
          Image id -> a function that reads the label map of that image, as in `LabelMapReader`; of the images that
          have a file in SegmentationClass. It raises `DataError` as in `instances`, and for a number of no class.

        Raises:
          DataError: if the split is missing or faulty.
        """
        return self._readers(split, "SegmentationClass", _label_map)

    def _readers(
        self, split: str, annotated_in: str, read: Callable[[Path, str, Path, np.ndarray], Any]
    ) -> dict[str, Callable[[], Any]]:
        """Return image id -> `read` of that image, where it has a file in the folder `annotated_in`."""
        folders, class_names = self._layout(split)
        table = _class_table(class_names, folders[0])
        readers = {}
        for folder in folders:
            for image_id, image in _split_images(folder, split, {}).items():
                if (folder / annotated_in / f"{image_id}.png").is_file():
                    readers[image_id] = functools.partial(read, folder, image_id, image, table)
        return readers

    def _layout(self, split: str) -> tuple[list[Path], tuple[str, ...]]:
        """Return the folders of a split, one per year, and the classes."""
        of_test = self.test_year is not None and split == self.test_split
        folders = _folders(Path(self.root), self.test_year if of_test else self.year)
        return folders, _class_names(folders[0], self.class_names)

    def _records(
        self,
        folder: Path,
        split: str,
        class_names: tuple[str, ...],
        counts: Counter,
        left_out: LeftOut,
    ) -> Iterator[ImageRecord]:
        """Yield the images of one year."""
        images = _split_images(folder, split, counts)
        annotated = any(_xml_path(folder, image_id).exists() for image_id in images)
        if images and not annotated:
            logger.warning(
                "%s: no image of split %r has an annotation; it is read without labels",
                folder,
                split,
            )
        for image_id, path in images.items():
            xml, objects = _xml_path(folder, image_id), None
            try:
                height, width = image_size(path)
                if annotated:
                    objects = named_objects(read_xml(xml), xml)
            except DataError as error:
                left_out.add(image_id, error)
                continue
            if objects is None:
                counts["no_annotation"] += 1
                labels = (-1,) * len(class_names)
            else:
                counts["no_object"] += not objects
                if_difficult = difficult_label(self.difficult)
                labels = _image_labels(objects, class_names, if_difficult, xml)
            yield ImageRecord(image_id, path, height, width, labels)


def _class_table(class_names: tuple[str, ...], folder: Path) -> np.ndarray:
    """Return the label of each number in SegmentationClass, [256]: 0 background, class + 1, 255 void, -1 invalid."""
    numbered = _class_names(folder, None)
    if not set(class_names) <= set(numbered):
        numbered = class_names
    table = np.full(256, -1)
    table[[0, VOID]] = 0, VOID
    for number, name in enumerate(numbered, 1):
        if name in class_names:
            table[number] = class_names.index(name) + 1
    return table


def _label_map(folder: Path, image_id: str, image: Path, table: np.ndarray) -> np.ndarray:
    path = folder / "SegmentationClass" / f"{image_id}.png"
    indices = read_indices(path)
    check_size(indices, path, image)
    return to_labels(indices, table, path)


def _instances(folder: Path, image_id: str, image: Path, table: np.ndarray) -> ImageInstances:
    path = folder / "SegmentationObject" / f"{image_id}.png"
    indices = read_indices(path)
    check_size(indices, path, image)
    labels = _label_map(folder, image_id, image, table)
    return ImageInstances.from_indices(indices, majority_classes(indices, labels, path))


def difficult_label(rule: DifficultRule) -> int:
    """Return the label of a class whose objects in an image are all marked difficult; see `Voc.difficult`.

    Raises:
      ConfigError: for another rule.
    """
    labels = {"drop": 0, "ignore": -1, "keep": 1}
    if rule not in labels:
        raise ConfigError(
            f"the rule for difficult objects or crowds is {rule!r}; allowed are {', '.join(labels)}."
        )
    return labels[rule]


def _folders(root: Path, year: str | int | None) -> list[Path]:
    """Return the folders with ImageSets, one per year."""
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; give the VOCdevkit folder or one inside it.")
    if (root / "ImageSets").is_dir():
        if year is not None and root.name != f"VOC{_years(year)[0]}":
            raise DataError(f"{root} is one year's folder; give its parent with year={year!r}.")
        return [root]
    if (root / "VOCdevkit").is_dir():
        root = root / "VOCdevkit"
    found = sorted(path.parent.name for path in root.glob("*/ImageSets"))
    if year is None:
        if len(found) != 1:
            raise DataError(
                f"{root} has {found or 'no folder with ImageSets'}; choose one by year=."
            )
        return [root / found[0]]
    folders = [root / f"VOC{digits}" for digits in _years(year)]
    for folder in folders:
        if not (folder / "ImageSets").is_dir():
            raise DataError(
                f"{folder} is not a folder in VOC layout; {root} has {found or 'none'}."
            )
    return folders


def _years(year: str | int) -> list[str]:
    years = [part.strip() for part in str(year).split("+")]
    years = [f"20{part}" if len(part) == 2 else part for part in years]
    if not all(len(part) == 4 and part.isdigit() for part in years) or len(set(years)) < len(years):
        raise DataError(f'year={year!r}; allowed are a year like "2007" and a union like "07+12".')
    return years


def _class_names(folder: Path, class_names: Sequence[str] | None) -> tuple[str, ...]:
    origin = "class_names"
    if class_names is None:
        origin, class_names = "the VOC classes", CLASS_NAMES
        for parent in [folder, *folder.absolute().parents[:2]]:
            path = parent / "classes.txt"
            if path.is_file():
                lines = [line.strip() for line in _read_lines(path)]
                origin, class_names = str(path), [line for line in lines if line]
                break
    return checked_names(class_names, origin)


def _split_images(folder: Path, split: str, counts: dict[str, int]) -> dict[str, Path]:
    """Return image id -> file of a split's images, in its order; for a missing file its expected path."""
    sets, images = folder / "ImageSets", folder / "JPEGImages"
    paths = [sets / place / f"{split}.txt" for place in ("Main", "Segmentation", "")]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        found = sorted(p.relative_to(sets).with_suffix("").as_posix() for p in sets.glob("*/*.txt"))
        found = [name.removeprefix("Main/") for name in found]
        raise DataError(f"{paths[0]}: no such split; found {', '.join(found[:20]) or 'none'}.")
    files = find_images(images, counts) if images.is_dir() else {}
    return {i: images / files.get(i, f"{i}.jpg") for i in read_split(path, files)}


def read_split(path: Path, files: dict[str, str]) -> Iterator[str]:
    """Yield the image ids of a list, one per line: the line, or its first word, with or without suffix.

    Args:
      path: of the list.
      files: image id -> name of its file. For unknown images, numbers after the first word are ignored, as in VOC's
        lists of one class.

    Raises:
      DataError: with the line number, for an id that occurs twice or is outside the data folder.
    """
    seen, known = set(), id_by_name(files)
    for number, line in enumerate(_read_lines(path), 1):
        line = line.strip()
        if not line:
            continue
        first, *rest = line.split()
        image_id = known.get(line) or known.get(first)
        if image_id is None:
            image_id = first if all(_NUMBER.fullmatch(word) for word in rest) else line
            stem, dot, suffix = image_id.rpartition(".")
            image_id = stem if stem and f".{suffix.lower()}" in SUFFIXES else image_id
        if PurePath(image_id).is_absolute() or ".." in PurePath(image_id).parts:
            raise DataError(f"{path}:{number}: image id {image_id!r} is outside the data folder.")
        if image_id in seen:
            raise DataError(f"{path}:{number}: image {image_id!r} occurs twice.")
        seen.add(image_id)
        yield image_id


def _read_lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a text file in UTF-8 ({error}).") from error


def _xml_path(folder: Path, image_id: str) -> Path:
    return folder / "Annotations" / f"{image_id}.xml"


def _image_labels(
    objects: list[tuple[str, bool]],
    class_names: tuple[str, ...],
    if_difficult: int,
    path: Path,
) -> tuple[int, ...]:
    labels = [0] * len(class_names)
    for name, is_difficult in objects:
        index = class_index(name, class_names, path)
        if not is_difficult:
            labels[index] = 1
        elif labels[index] != 1:
            labels[index] = if_difficult
    return tuple(labels)


def _size_if_readable(path: Path) -> tuple[int, int] | None:
    try:
        return image_size(path)
    except DataError:  # `images` reports it
        return None
