"""Reader of a plain folder of images, with a CSV of labels per image or without any labels.

The CSV has a header and one of two forms:

    image,labels            image,label
    a.jpg,cat;dog           a.jpg,cat
    b/c.jpg,                a.jpg,dog

On the left one row per image; an empty cell says that it shows none of the classes. On the right one row per
image and class. `image` is the path below the folder, with or without its suffix; the image's id is that path
without the suffix, in which bytes that are no UTF-8 become backslash escapes. Further columns are ignored.
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from wsod_jax.data.images import SUFFIXES, image_size, text_of_name
from wsod_jax.data.readers.reader import LeftOut, OnBad, Reader, check_on_bad
from wsod_jax.data.records import ImageRecord, ImageSet
from wsod_jax.errors import DataError
from wsod_jax.options import Mark

logger = logging.getLogger(__name__)

_SEPARATOR = ";"


@dataclass(frozen=True, kw_only=True)
class Folder(Reader):
    """A folder of images and a CSV of their labels. It has no splits: all of them name the whole folder.

    Attributes:
      folder: searched with its subfolders.
      labels_csv: in one of the two forms above, UTF-8.
      class_names: the classes, in label order; by default all names in the CSV, sorted.
      on_bad: what to do about an image whose header cannot be read: "skip" leaves it out, logged and counted as
        `bad_image`, and refuses a folder that loses more than a tenth that way; "skip_all" leaves out any number;
        "error" raises. A faulty CSV always raises.
    """

    folder: Annotated[str | Path, Mark.LOCATION]
    labels_csv: Annotated[str | Path, Mark.LOCATION]
    train_split: str = "all"
    test_split: str = "all"
    class_names: tuple[str, ...] | None = None
    on_bad: OnBad = "skip"

    def __post_init__(self):
        check_on_bad(self.on_bad)

    def images(self, split: str) -> ImageSet:
        """Read the folder and the labels of its images.

        Args:
          split: any name; there is one set of images.

        Returns:
          The images named in the CSV, sorted by id. `counts["unlabelled"]` images of the folder are not in it.

        Raises:
          DataError: with the line number, for an unknown image, a duplicate row, an empty or unknown class;
            also for a missing column or file; see `on_bad`; and if no image is left.
        """
        files = _image_files(Path(self.folder))
        labels_csv = Path(self.labels_csv)
        labels = read_labels(labels_csv, files, self.class_names)
        class_names = self.class_names
        if class_names is None:
            class_names = sorted({name for names in labels.values() for name in names})
        if not class_names:
            raise DataError(f"{labels_csv}: names no class at all.")
        left_out = LeftOut(self.on_bad)
        sizes = _sizes({image_id: files[image_id] for image_id in labels}, left_out)
        left_out.check(str(labels_csv), len(labels))
        if not sizes:
            raise DataError(f"{labels_csv}: none of its {len(labels)} images can be read.")
        records = [
            ImageRecord(
                image_id,
                files[image_id],
                *sizes[image_id],
                tuple(int(name in labels[image_id]) for name in class_names),
            )
            for image_id in sorted(sizes)
        ]
        unlabelled = len(files) - len(labels)
        if unlabelled:
            logger.warning("%s: left out %d images without a row", labels_csv, unlabelled)
        name = text_of_name(f"folder {self.folder}")
        counts = {"bad_image": len(left_out.ids), "unlabelled": unlabelled}
        missing = tuple(left_out.ids)
        return ImageSet(name, tuple(class_names), tuple(records), counts, missing=missing)


def list_images(
    images: str | Path | Sequence[str | Path], *, on_bad: OnBad = "skip_all"
) -> ImageSet:
    """Return images without labels, as prediction and proposals need them.

    Args:
      images: a folder, searched with its subfolders; or one or several image files.
      on_bad: what to do about an image whose header cannot be read: "skip_all" leaves it out, logged and counted as
        `bad_image`; "skip" refuses if more than a tenth is lost that way; "error" raises.

    Returns:
      The images sorted by id, with no classes. The id is the path below the folder without suffix; for
      files given one by one, the name without suffix; with backslash escapes for bytes that are no UTF-8.

    Raises:
      DataError: if nothing is found or left, or two files would have one id.
    """
    if isinstance(images, str | Path) and Path(images).is_dir():
        files = _image_files(Path(images))
    else:
        paths = [images] if isinstance(images, str | Path) else images
        files = _by_id({Path(path): Path(path).with_suffix("").name for path in paths})
    check_on_bad(on_bad)
    left_out = LeftOut(on_bad)
    sizes = _sizes(files, left_out)
    name = text_of_name(f"images {images}")
    left_out.check(name, len(files))
    if not sizes:
        raise DataError(f"{images}: none of the {len(files)} images can be read.")
    records = [
        ImageRecord(image_id, files[image_id], *sizes[image_id]) for image_id in sorted(sizes)
    ]
    counts = {"bad_image": len(left_out.ids)}
    return ImageSet(name, (), tuple(records), counts, missing=tuple(left_out.ids))


def _image_files(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of images.")
    paths = [p for p in sorted(folder.rglob("*")) if p.suffix.lower() in SUFFIXES and p.is_file()]
    if not paths:
        raise DataError(f"{folder}: holds no image; looked for {', '.join(SUFFIXES)}.")
    return _by_id({path: path.relative_to(folder).with_suffix("").as_posix() for path in paths})


def _by_id(ids: dict[Path, str]) -> dict[str, Path]:
    files = {}
    for path, name in ids.items():
        image_id = text_of_name(name)
        if image_id in files:
            raise DataError(
                f"{path} and {files[image_id]} have one id, {image_id!r}, or differ only in the suffix; rename one."
            )
        files[image_id] = path
    return files


def _sizes(files: dict[str, Path], left_out: LeftOut) -> dict[str, tuple[int, int]]:
    sizes = {}
    for image_id, path in files.items():
        try:
            sizes[image_id] = image_size(path)
        except DataError as error:
            left_out.add(image_id, error)
    return sizes


def read_labels(
    path: Path, files: dict[str, Path], class_names: Sequence[str] | None
) -> dict[str, set[str]]:
    """Read a CSV of labels.

    Args:
      path: in one of the two forms above, UTF-8.
      files: image id -> its file; rows name images by id, or by id with the file's suffix.
      class_names: those allowed; `None` allows any.

    Returns:
      image id -> names of the classes present, in the order of the rows.

    Raises:
      DataError: with the line number, for an unknown image, a duplicate row, an empty or unknown class; also
        for a missing column or file.
    """
    known = {image_id: image_id for image_id in files}
    known |= {f"{image_id}{file.suffix}": image_id for image_id, file in files.items()}
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
