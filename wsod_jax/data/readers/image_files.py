"""Find the image files below a folder, for all readers.

Files and folders whose name begins with a dot are ignored. Links to folders are followed, but not in cycles.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator, MutableMapping
from pathlib import Path

from wsod_jax.data.images import SUFFIXES, UNREAD_SUFFIXES, text_of_name
from wsod_jax.errors import DataError

logger = logging.getLogger(__name__)


def find_images(folder: Path, counts: MutableMapping[str, int]) -> dict[str, str]:
    """Return the images below a folder, without opening any file.

    Photographs in a format that is not supported, such as HEIC, are included: reading one reports the format.

    Args:
      folder: searched with its subfolders.
      counts: "other_file" is set to the number of files that are not images, if any; they are logged.

    Returns:
      Image id -> path below the folder, sorted by id. The id is the path without suffix, with backslash escapes for
      bytes that are not UTF-8.

    Raises:
      DataError: if there is no such folder, or two images differ only in the suffix.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of images.")
    files, unread, others = {}, [], []
    for name in _names_below(str(folder)):
        stem, suffix = os.path.splitext(name)
        suffix = suffix.lower()
        if suffix not in SUFFIXES:
            (unread if suffix in UNREAD_SUFFIXES else others).append(name)
            continue
        image_id = text_of_name(stem)
        if image_id in files:
            raise DataError(
                f"{folder}: {text_of_name(name)} and {text_of_name(files[image_id])} have the same id, {image_id!r}: "
                "they differ only in the suffix; rename one of them."
            )
        files[image_id] = name
    for name in unread:  # cameras write a JPEG in addition to some of them
        image_id = text_of_name(os.path.splitext(name)[0])
        if files.setdefault(image_id, name) != name:
            others.append(name)
    if others:
        counts["other_file"] = len(others)
        suffixes = Counter(os.path.splitext(name)[1].lower() or "no suffix" for name in others)
        found = ", ".join(f"{number} {suffix}" for suffix, number in suffixes.most_common(10))
        logger.warning(
            "%s: left out %d files that are not images (%s; the first is %s); images end in %s",
            folder,
            len(others),
            found,
            text_of_name(min(others)),
            ", ".join(SUFFIXES),
        )
    return dict(sorted(files.items()))


def id_by_name(files: dict[str, str]) -> dict[str, str]:
    """Return name -> image id, for lists of ids with or without the file's suffix."""
    with_suffix = {
        f"{image_id}{os.path.splitext(name)[1]}": image_id for image_id, name in files.items()
    }
    return {image_id: image_id for image_id in files} | with_suffix


def _names_below(folder: str, below: str = "", above: frozenset = frozenset()) -> Iterator[str]:
    """Yield the paths of all files below a folder; `above` are its parent folders."""
    status = os.stat(folder)
    here = status.st_dev, status.st_ino
    if here in above:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _names_below(entry.path, f"{below}{entry.name}/", above | {here})
            else:
                yield below + entry.name
