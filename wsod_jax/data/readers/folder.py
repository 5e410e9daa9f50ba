"""Reader of a plain folder of images, with a CSV of labels per image or without any labels.

The CSV has a header and one of two forms:

    image,labels            image,label
    a.jpg,cat;dog           a.jpg,cat
    b/c.jpg,                a.jpg,dog

On the left one row per image; an empty cell means none of the classes. On the right one row per image and class.
`image` is the path below the folder, with or without its suffix; the image's id is that path without the suffix, with
backslash escapes for bytes that are not UTF-8. Further columns are ignored.
"""

from __future__ import annotations

import csv
import dataclasses
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from wsod_jax.data.images import encode, read_image, text_of_name
from wsod_jax.data.readers.image_files import find_images, id_by_name
from wsod_jax.data.readers.reader import LeftOut, OnBad, Reader, check_on_bad, checked_names
from wsod_jax.data.readers.size_index import image_sizes
from wsod_jax.data.records import ImageRecord, ImageSet
from wsod_jax.errors import DataError
from wsod_jax.options import Mark

_SEPARATOR = ";"


@dataclass(frozen=True, kw_only=True)
class Folder(Reader):
    """A folder of images and a CSV of their labels. Every split is the whole folder.

    Attributes:
      folder: searched with its subfolders.
      labels_csv: in one of the two forms above, UTF-8.
      class_names: the classes, in label order; by default all names in the CSV, sorted.
    """

    folder: Annotated[str | Path, Mark.LOCATION]
    labels_csv: Annotated[str | Path, Mark.LOCATION]
    train_split: str = "all"
    test_split: str = "all"
    class_names: tuple[str, ...] | None = None

    def images(self, split: str) -> ImageSet:
        """Read the folder and the labels of its images.

        Args:
          split: any name.

        Returns:
          The images in the CSV, sorted by id. `counts["unlabeled"]` images of the folder are not in it.

        Raises:
          DataError: with the line number, for an unknown image, a duplicate row, an empty or unknown class;
            also for a missing column or file; see `on_bad`; and if no image is left.
        """
        folder, labels_csv, counts = Path(self.folder), Path(self.labels_csv), {}
        files = find_images(folder, counts)
        labels = read_labels(labels_csv, files, self.class_names)
        class_names = self.class_names
        if class_names is None:
            class_names = sorted({name for names in labels.values() for name in names})
        class_names = checked_names(class_names, str(labels_csv))
        left_out = LeftOut(self.on_bad)
        paths = {image_id: folder / files[image_id] for image_id in sorted(labels)}
        records = [
            dataclasses.replace(
                record, labels=tuple(int(name in labels[record.image_id]) for name in class_names)
            )
            for record in _records(paths, left_out)
        ]
        counts["unlabeled"] = len(files) - len(labels)
        left_out.finish(str(labels_csv), len(records), counts)
        name, missing = text_of_name(f"folder {self.folder}"), tuple(left_out.ids)
        return ImageSet(name, class_names, tuple(records), counts, missing=missing)


def list_images(
    images: str | Path | Sequence[str | Path], *, on_bad: OnBad = "skip_all"
) -> ImageSet:
    """Return images without labels, as prediction and proposals need them.

    Args:
      images: a folder, searched with its subfolders, or an image file; or several of both.
      on_bad: for an image whose header cannot be read, "skip_all" leaves it out, logged and counted as `bad_image`;
        "skip" raises if more than a tenth is left out; "error" raises.

    Returns:
      The images sorted by id, with no classes. The id is the path below the folder without suffix, for a file the
      name without suffix; with backslash escapes for bytes that are not UTF-8. If two would have the same id, both
      get the folders in which they differ.

    Raises:
      DataError: if nothing is found or left, or two files differ only in the suffix.
    """
    check_on_bad(on_bad)
    counts, ids = Counter(), {}
    given = [images] if isinstance(images, str | Path) else images
    for path in map(Path, given):
        found = {path: text_of_name(path.with_suffix("").name)}
        if path.is_dir():
            here: dict[str, int] = {}
            found = {path / name: image_id for image_id, name in find_images(path, here).items()}
            counts.update(here)
        ids |= found
    paths = _by_id(ids)
    left_out = LeftOut(on_bad)
    records = _records(dict(sorted(paths.items())), left_out)
    more = ", …" if len(given) > 3 else ""
    name = text_of_name(f"images {', '.join(map(str, given[:3]))}{more}")
    left_out.finish(name, len(records), counts)
    return ImageSet(name, (), tuple(records), dict(counts), missing=tuple(left_out.ids))


def is_one_image(images: Any) -> bool:
    """Return whether this is an array or the path of a file, not a folder or several images."""
    return _is_array(images) or (isinstance(images, str | Path) and not Path(images).is_dir())


def images_of(images: Any) -> ImageSet:
    """Return images as a set without labels, after decoding each once as a check.

    Args:
      images: an array [h, w, 3] uint8 RGB, the path of a file, a sequence of these, or a folder, searched with its
        subfolders and sorted.

    Returns:
      The images in their order.

    Raises:
      DataError: lists the images that cannot be used.
    """
    if is_one_image(images):
        images = [images]
    elif isinstance(images, str | Path):
        folder = Path(images)
        images = [folder / name for name in find_images(folder, {}).values()]
        if not images:
            raise DataError(
                f"{folder}: no image is in this folder; give a folder or files of images."
            )
    records, problems = [], []
    with ThreadPoolExecutor() as pool:
        for number, future in [(n, pool.submit(_record_of, n, x)) for n, x in enumerate(images)]:
            try:
                records.append(future.result())
            except DataError as error:
                problems.append(f"image {number}: {error}")
    if problems:
        total = len(records) + len(problems)
        raise DataError(f"{len(problems)} of {total} images cannot be used. {' '.join(problems)}")
    return ImageSet("images", (), tuple(records))


def _record_of(number: int, image: Any) -> ImageRecord:
    """Return the record of an image file or array that can be decoded."""
    if _is_array(image):
        array = np.asarray(image)
        data = encode(array)
        return ImageRecord(f"image {number}", lambda: data, *array.shape[:2])
    if not isinstance(image, str | Path):
        raise DataError(f"an image is a path or an array, found {type(image).__name__}.")
    return ImageRecord(f"image {number}", Path(image), *read_image(image).shape[:2])


def _is_array(image: Any) -> bool:
    """Return whether NumPy can convert it, including JAX arrays and Pillow images."""
    return hasattr(image, "__array__") or hasattr(image, "__array_interface__")


def _by_id(ids: dict[Path, str]) -> dict[str, Path]:
    """Return id -> file; files with the same id get their path below their common folder as id."""
    uses = Counter(ids.values())
    shared = [path.absolute() for path, image_id in ids.items() if uses[image_id] > 1]
    top = os.path.commonpath([path.parent for path in shared]) if shared else ""
    files: dict[str, Path] = {}
    for path, image_id in ids.items():
        if uses[image_id] > 1:
            below = path.absolute().relative_to(top)
            image_id = text_of_name(below.with_suffix("").as_posix())
        if image_id in files:
            raise DataError(
                f"{path} and {files[image_id]} have the same id, {image_id!r}: they differ only in the suffix, or are "
                "one file; rename or remove one."
            )
        files[image_id] = path
    return files


def _records(paths: dict[str, Path], left_out: LeftOut) -> list[ImageRecord]:
    """Return the images whose size can be read, without labels."""
    names = {str(path): image_id for image_id, path in paths.items()}
    records = []
    for name, size in image_sizes(Path(), list(names)):
        if isinstance(size, DataError):
            left_out.add(names[name], size)
        else:
            records.append(ImageRecord(names[name], paths[names[name]], *size))
    return records


def read_labels(
    path: Path, files: dict[str, str], class_names: Sequence[str] | None
) -> dict[str, set[str]]:
    """Read a CSV of labels.

    Args:
      path: in one of the two forms above, UTF-8.
      files: image id -> name of its file; rows have the image's id, or the id with the file's suffix.
      class_names: those allowed; `None` allows any.

    Returns:
      image id -> names of the classes present, in the order of the rows.

    Raises:
      DataError: with the line number, for an unknown image, a duplicate row, an empty or unknown class; also
        for a missing column or file.
    """
    known = id_by_name(files)
    column, rows = _read_rows(path)
    labels: dict[str, set[str]] = {}
    seen = set()
    for line, image, cell in rows:
        if image not in known:
            raise DataError(f"{path}:{line}: unknown image {image!r}; no such file in the folder.")
        image_id = known[image]
        names = [name.strip() for name in cell.split(_SEPARATOR)] if column == "labels" else [cell]
        if column == "labels" and not cell:
            names = []
        if "" in names:
            raise DataError(f"{path}:{line}: an empty class name for image {image!r}.")
        for name in names:
            if class_names is not None and name not in class_names:
                allowed = ", ".join(class_names)
                raise DataError(f"{path}:{line}: unknown class {name!r}; allowed are {allowed}.")
        key = image_id if column == "labels" else (image_id, cell)
        if key in seen or len(set(names)) < len(names):
            raise DataError(f"{path}:{line}: image {image!r} has this row or class already.")
        seen.add(key)
        labels.setdefault(image_id, set()).update(names)
    return labels


def _read_rows(path: Path) -> tuple[str, list[tuple[int, str, str]]]:
    """Return the form ("labels" or "label") and (line number, image, class cell) per row."""
    if not path.is_file():
        raise DataError(f"{path}: no such labels file.")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            columns = [(name or "").strip() for name in reader.fieldnames or ()]
            reader.fieldnames = columns
            forms = [name for name in ("labels", "label") if name in columns]
            if "image" not in columns or len(forms) != 1:
                raise DataError(
                    f'{path}: the header is {columns}; it must have a column "image" and one of '
                    '"labels" (separated by ";") and "label" (one per row).'
                )
            rows = [
                (reader.line_num, (row["image"] or "").strip(), (row[forms[0]] or "").strip())
                for row in reader
            ]
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a readable CSV in UTF-8 ({error}).") from error
    return forms[0], rows
