"""Read and check COCO's JSON as various tools write it.

Unambiguous variants are accepted: whole numbers as 7.0 or "7", `iscrowd` as null, true or false, images without a size,
a byte-order mark, backslashes in file names, and names that begin with the folder of the images.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from wsod_jax.data.images import text_of_name
from wsod_jax.data.readers.reader import checked_names
from wsod_jax.data.readers.size_index import image_sizes
from wsod_jax.errors import DataError

_DIGITS = re.compile(r"\d+", re.ASCII)


@dataclass(frozen=True)
class CocoImage:
    """An entry of `images`.

    Attributes:
      file_name: path below the folder.
      image_id: the same without suffix.
      size: annotated (height, width), or `None`.
    """

    file_name: str
    image_id: str
    size: tuple[int, int] | None


@dataclass(frozen=True)
class CocoFile:
    """A checked file: the image and the category of every object exist.

    Attributes:
      path: of the file.
      class_names: c names, in the order of the category ids.
      class_index: category id -> position in `class_names`, in that order.
      images: the file's image id -> image, in the order of the file.
      objects: image id -> its annotations as in the file, with `iscrowd` 0 or 1; `None` without annotations.
    """

    path: Path
    class_names: tuple[str, ...]
    class_index: dict[int, int]
    images: dict[int, CocoImage]
    objects: dict[int, list[dict[str, Any]]] | None

    @classmethod
    def read(cls, path: Path, folder: Path) -> CocoFile:
        """Read and check a file of images below `folder`; raise `DataError` for invalid content."""
        try:
            content = json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise DataError(f"{path}: not a readable JSON file ({error}).") from error
        categories = {}
        for item in _entries(content, "categories", path):
            name = item.get("name")
            if not _is_id(item.get("id")) or item["id"] in categories:
                raise DataError(f"{path}: category {item}: its id is missing or not unique.")
            if not isinstance(name, str) or name in categories.values():
                raise DataError(f"{path}: category {item['id']} has no unique name: {name!r}.")
            categories[item["id"]] = name
        if not categories:
            raise DataError(f"{path}: has no categories.")
        order = sorted(categories)
        names = checked_names([categories[number] for number in order], str(path))
        index = {number: position for position, number in enumerate(order)}
        images = _read_images(content, folder, path)
        objects = None
        if "annotations" in content:
            objects = {number: [] for number in images}
            for item in _entries(content, "annotations", path):
                _check_object(item, images, index, path)
                objects[item["image_id"]].append(item)
        return cls(path, names, index, images, objects)

    def file_sizes(self, folder: Path) -> Iterator[tuple[int, tuple[int, int] | DataError]]:
        """Yield (image id, (height, width) of the image file or the error)."""
        names = [image.file_name for image in self.images.values()]
        for number, (_, size) in zip(self.images, image_sizes(folder, names), strict=True):
            yield number, size


def _entries(content: Any, key: str, path: Path) -> list[dict[str, Any]]:
    """Return a list of the file, with numbers such as 7.0 and "7" converted to whole numbers."""
    entries = content.get(key) if isinstance(content, dict) else None
    if not isinstance(entries, list) or not all(isinstance(item, dict) for item in entries):
        raise DataError(
            f"{path}: {key!r} is not a list of objects; COCO's instances have images, annotations "
            "and categories."
        )
    for item in entries:
        for name in ("id", "image_id", "category_id", "height", "width", "iscrowd"):
            value = item.get(name)
            is_text = isinstance(value, str) and _DIGITS.fullmatch(value)
            if is_text or isinstance(value, float) and value.is_integer():
                item[name] = int(value)
    return entries


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _read_images(content: Any, folder: Path, path: Path) -> dict[int, CocoImage]:
    images, seen = {}, set()
    for item in _entries(content, "images", path):
        number, name = item.get("id"), item.get("file_name")
        if not _is_id(number) or number in images:
            raise DataError(
                f"{path}: image {number!r} ({name!r}) has no unique id; ids are distinct whole numbers."
            )
        if not isinstance(name, str) or not name:
            raise DataError(f"{path}: image {number} has no file_name.")
        file = PurePosixPath(name if "/" in name else name.replace("\\", "/"))
        if file.is_absolute() or ".." in file.parts or ":" in file.parts[0]:
            raise DataError(f"{path}: image {number}: {name!r} is outside the data folder.")
        file = _below(file, folder)
        image_id = text_of_name(file.with_suffix("").as_posix())
        if image_id in seen:
            raise DataError(f"{path}: file {name!r} occurs twice, or differs only in its suffix.")
        seen.add(image_id)
        size = item.get("height"), item.get("width")
        is_known = any(size)
        if is_known and not all(_is_id(side) and side > 0 for side in size):
            raise DataError(
                f"{path}: image {number}: (height, width) is {size}; needed are whole numbers above 0, or neither."
            )
        images[number] = CocoImage(file.as_posix(), image_id, size if is_known else None)
    return images


def _below(file: PurePosixPath, folder: Path) -> PurePosixPath:
    """Return the path relative to the folder; it may begin with the last parts of the folder's path."""
    for count in range(len(file.parts) - 1, 0, -1):
        if folder.parts[-count:] == file.parts[:count] and not (folder / file).is_file():
            return PurePosixPath(*file.parts[count:])
    return file


def _check_object(
    item: dict[str, Any], images: dict[int, CocoImage], categories: dict[int, int], path: Path
) -> None:
    """Check an annotation's image and category, and make its `iscrowd` 0 or 1."""
    number, category = item.get("image_id"), item.get("category_id")
    crowd = 0 if item.get("iscrowd") is None else item["iscrowd"]
    name = f"{path}: annotation {item.get('id')}"
    if not _is_id(number) or number not in images:
        raise DataError(f"{name}: image_id {number!r} is not one of the file's images.")
    if not _is_id(category) or category not in categories:
        raise DataError(
            f"{name}: unknown category_id {category!r}; allowed are the ids of 'categories', "
            f"{', '.join(map(str, categories))}."
        )
    if crowd not in (0, 1):
        raise DataError(f"{name}: iscrowd is {crowd!r}; allowed are 0 and 1.")
    item["iscrowd"] = int(crowd)
