"""Reader of the ImageNet layout: a folder per class, or one flat folder with a CSV of labels.

    <root>/train/n01440764/n01440764_10026.JPEG     a class is a folder
    <root>/val/ILSVRC2012_val_00000001.JPEG         flat, with <root>/val.csv as in `folder.py`
    <root>/annotations/val/….xml                    optional boxes, in VOC's format
    <root>/class_names.txt                          optional: "n01440764 tench", a class folder and its name per line

Class folders are the same for every split: by default the sorted folders of class_names.txt, or without that file the
split's sorted folders (flat: classes of the CSV).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from wsod_jax.data.images import text_of_name
from wsod_jax.data.readers.folder import read_labels
from wsod_jax.data.readers.image_files import find_images
from wsod_jax.data.readers.reader import BoxReader, LeftOut, checked_names
from wsod_jax.data.readers.size_index import indexed_sizes
from wsod_jax.data.readers.voc_xml import read_boxes, read_xml
from wsod_jax.data.records import AnnotatedBoxes, ImageRecord, ImageSet
from wsod_jax.errors import DataError
from wsod_jax.options import Mark


@dataclass(frozen=True, kw_only=True)
class ImageFolder(BoxReader):
    """A data set in ImageNet layout.

    Attributes:
      root: the folder of the splits.
      class_names: the class folders, in label order; by default as above.
      annotations: the folder of the boxes; <root>/annotations by default.
      index_path: the file of sizes; <root>/<split>.sizes.npz by default.
    """

    root: Annotated[str | Path, Mark.LOCATION]
    train_split: str = "train"
    test_split: str = "val"
    class_names: tuple[str, ...] | None = None
    annotations: Annotated[str | Path | None, Mark.LOCATION] = None
    index_path: Annotated[str | Path | None, Mark.LOCATION] = None

    def images(self, split: str) -> ImageSet:
        """Read a split's images and their labels, from class folders or from the CSV.

        Reading the sizes of a large set takes minutes; they are kept in an index for the next start. A million
        images then take about 20 s and 1 GB of memory.

        Args:
          split: name of the folder, like "train".

        Returns:
          The images sorted by id, which is the path below the split's folder without suffix, with backslash
          escapes for bytes that are not UTF-8. Classes have the names in class_names.txt, followed by the folder
          if two have the same name. `counts["unlabeled"]` images, outside class folders or without a row, are not
          in it.

        Raises:
          DataError: see `on_bad`; also if no image is left.
        """
        listing = _Split.read(Path(self.root), split, self.class_names)
        left_out = LeftOut(self.on_bad)
        sizes = self._sizes(listing, split, lambda name, error: left_out.add(_id_of(name), error))
        vectors: dict[frozenset[str], tuple[int, ...]] = {}  # shared by images of the same classes
        records = []
        for image_id, shown in listing.shown.items():
            size = sizes.get(listing.files[image_id])
            if size is None:
                continue
            if shown not in vectors:
                vectors[shown] = tuple(int(name in shown) for name in listing.class_folders)
            path = listing.folder / listing.files[image_id]
            records.append(ImageRecord(image_id, path, *size, vectors[shown]))
        counts = {**listing.counts, "unlabeled": len(listing.files) - len(listing.shown)}
        name, missing = f"images {split}", tuple(left_out.ids)
        left_out.finish(name, len(records), counts)
        return ImageSet(name, listing.class_names, tuple(records), counts, missing=missing)

    def annotated_boxes(self, split: str) -> AnnotatedBoxes:
        """Read the boxes of a split, for evaluation.

        The XML of an image is <annotations>/<split>/<id>.xml, or <annotations>/<split>/<file name>.xml if no other
        image has that file name. Its objects have the names of class folders. Boxes that extend outside their image
        are clipped (`counts["clipped"]`); those without area or with unreadable coordinates are dropped
        (`counts["dropped"]`).

        Args:
          split: name of the folder.

        Returns:
          Boxes of every image of the split that has an XML; `counts["no_annotation"]` have none. Boxes annotated at
          another image size are scaled (`counts["scaled"]` images).

        Raises:
          DataError: see `on_bad`; also if no image is left.
        """
        listing = _Split.read(Path(self.root), split, self.class_names)
        folder = Path(self.annotations or Path(self.root) / "annotations") / split
        if not folder.is_dir():
            raise DataError(
                f"{folder}: no such folder of annotations; without it there are no boxes."
            )
        counts = Counter(bad_image=0, no_annotation=0, clipped=0, dropped=0, scaled=0)
        sizes = self._sizes(listing, split, lambda name, error: None)  # `images` reports errors
        boxes, left_out = {}, LeftOut(self.on_bad)
        for image_id, path in _xml_paths(folder, listing).items():
            if not path.is_file():
                counts["no_annotation"] += 1
                continue
            size = sizes.get(listing.files[image_id])
            try:
                boxes[image_id] = read_boxes(
                    read_xml(path), size, listing.class_folders, path, counts
                )
            except DataError as error:
                left_out.add(image_id, error)
        left_out.finish(f"ground truth of {split} in {self.root}", len(boxes), counts)
        return AnnotatedBoxes(listing.class_names, boxes, dict(counts))

    def _sizes(
        self, listing: _Split, split: str, on_bad: Callable[[str, DataError], None]
    ) -> dict[str, tuple[int, int]]:
        """Return path below the split's folder -> (height, width) of the labeled images that can be read."""
        names = [listing.files[image_id] for image_id in listing.shown]
        index = Path(self.index_path or Path(self.root) / f"{split}.sizes.npz")
        return indexed_sizes(listing.folder, names, index, on_bad)


@dataclass(frozen=True)
class _Split:
    """The files of a split.

    Attributes:
      folder: of its images.
      files: image id -> path below the folder, sorted.
      counts: of files that are not images.
      shown: image id -> class folders whose classes it shows, sorted; without unlabeled images.
      class_folders: in label order.
      class_names: likewise, readable.
    """

    folder: Path
    files: dict[str, str]
    counts: dict[str, int]
    shown: dict[str, frozenset[str]]
    class_folders: tuple[str, ...]
    class_names: tuple[str, ...]

    @classmethod
    def read(cls, root: Path, split: str, class_names: Sequence[str] | None) -> _Split:
        """List the images of a split and their classes; raise `DataError` if there is no such folder."""
        folder, labels_csv, counts = root / split, root / f"{split}.csv", {}
        readable = _readable_names(root / "class_names.txt")
        if class_names is None and readable:
            class_names = sorted(readable)
        files = find_images(folder, counts)
        if labels_csv.is_file():
            labels = read_labels(labels_csv, files, class_names)
            shown = {i: frozenset(labels[i]) for i in files if i in labels}
            existing = {name for names in labels.values() for name in names}
        else:
            entries = (path for path in folder.iterdir() if not path.name.startswith("."))
            existing = {text_of_name(path.name) for path in entries if path.is_dir()}
            of_one = {name: frozenset([name]) for name in existing}
            shown = {i: of_one[i.partition("/")[0]] for i in files if "/" in i}
        class_names = _class_folders(class_names, existing, folder, labels_csv)
        readable_names = checked_names(_distinct(class_names, readable), str(folder))
        return cls(folder, files, counts, shown, class_names, readable_names)


def _xml_paths(folder: Path, split: _Split) -> dict[str, Path]:
    """Return the path of each image's XML; the file name alone is used only if no other image has it."""
    nested = {i: folder / f"{os.path.splitext(split.files[i])[0]}.xml" for i in split.shown}
    uses = Counter(path.name for path in nested.values())
    return {
        image_id: folder / path.name if uses[path.name] == 1 and not path.is_file() else path
        for image_id, path in nested.items()
    }


def _id_of(name: str) -> str:
    """Return the image id of a path."""
    return text_of_name(os.path.splitext(name)[0])


def _readable_names(path: Path) -> dict[str, str]:
    """Return class folder -> name, from a file with a folder and a name per line; empty without the file."""
    if not path.is_file():
        return {}
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a text file in UTF-8 ({error}).") from error
    names: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        folder, _, name = line.strip().partition(" ")
        if not folder:
            continue
        if folder in names:
            raise DataError(f"{path}:{number}: class folder {folder!r} occurs twice.")
        names[folder] = name.strip() or folder
    return names


def _class_folders(
    class_names: Sequence[str] | None, existing: Iterable[str], folder: Path, labels_csv: Path
) -> tuple[str, ...]:
    """Return the class folders in label order, after checking that they include all of the split's."""
    if class_names is None:
        class_names = sorted(existing)
    if not class_names or len(set(class_names)) < len(class_names):
        raise DataError(
            f"{folder}: class names must be distinct and at least one, found {tuple(class_names)}. A split is "
            f"a folder with a folder per class, or has its labels in {labels_csv}."
        )
    unknown = sorted(set(existing) - set(class_names))
    if unknown:
        raise DataError(
            f"{folder}: {len(unknown)} classes are not among the {len(class_names)} of class_names or "
            f"class_names.txt; the first is {unknown[0]!r}. Add them there, or move them out of the folder."
        )
    return tuple(class_names)


def _distinct(class_folders: Sequence[str], readable: dict[str, str]) -> tuple[str, ...]:
    """Return readable names; equal ones get their folder, such as ILSVRC's "crane (n02012849)"."""
    names = [readable.get(folder, folder) for folder in class_folders]
    uses = Counter(names)
    return tuple(
        name if uses[name] == 1 else f"{name} ({folder})"
        for name, folder in zip(names, class_folders, strict=True)
    )
