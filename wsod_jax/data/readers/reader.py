"""Base classes of the readers of data sets. A reader is a class of options; its methods read a split.

`images` never reads boxes, and its result cannot contain any. Boxes are read explicitly: `annotated_boxes` (and masks:
`instances`, `label_maps`) for evaluation, `boxes` for a method that trains on boxes.
"""

from __future__ import annotations

import logging
import re
import unicodedata
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np

from wsod_jax.data.images import SUFFIXES
from wsod_jax.data.records import AnnotatedBoxes, BoxSet, ImageInstances, ImageSet
from wsod_jax.errors import ConfigError, DataError
from wsod_jax.options import Mark

logger = logging.getLogger(__name__)

OnBad = Annotated[Literal["error", "skip", "skip_all"], Mark.TEST]
_NAMED = 10  # faults that are logged; others are only counted
_MAX_SHARE = 10  # with "skip", at most one image in this many may be left out


class FatalFault(DataError):
    """A fault that is never skipped: an unknown class, or a malicious file."""


@dataclass(frozen=True, kw_only=True)
class Reader(ABC):
    """The location of a data set, and the splits that a run uses.

    Attributes:
      train_split: name of the split to train on.
      test_split: name of the split to test on.
      val_split: name of the split to evaluate while training, or `None`.
      on_bad: for an image whose file or annotation is missing or unreadable, "skip" leaves it out, logged and counted
        as `bad_image`, and raises if more than a tenth of a split is left out; "skip_all" leaves out any number;
        "error" raises. A missing split, an invalid list, CSV or JSON, an unknown class and an unsafe id or file
        always raise.
      has_boxes: whether the reader has the methods of `BoxReader`.
      has_instances: whether it has the method of `InstanceReader`, for masks of objects.
      has_label_maps: whether it has the method of `LabelMapReader`, for the class of every pixel.
    """

    train_split: str
    test_split: str
    val_split: Annotated[str | None, Mark.RESUME] = None
    on_bad: OnBad = "skip"
    has_boxes: ClassVar[bool] = False
    has_instances: ClassVar[bool] = False
    has_label_maps: ClassVar[bool] = False

    def __post_init__(self):
        check_on_bad(self.on_bad)

    @abstractmethod
    def images(self, split: str) -> ImageSet:
        """Read the images of a split and their image-level labels, without boxes.

        Args:
          split: name of the split.

        Returns:
          The images, with statistics in `counts` and ids of images left out in `missing`.

        Raises:
          DataError: if the split or a file is missing or invalid, or too few images are left.
        """


@dataclass(frozen=True, kw_only=True)
class BoxReader(Reader):
    """A reader of a data set that has annotated boxes."""

    has_boxes: ClassVar[bool] = True

    @abstractmethod
    def annotated_boxes(self, split: str) -> AnnotatedBoxes:
        """Read the boxes of a split, for evaluation.

        Args:
          split: name of the split.

        Returns:
          The boxes of every annotated image of the split, difficult objects and crowds included and marked.

        Raises:
          DataError: if the split or a file is missing or invalid.
        """

    def boxes(self, split: str) -> BoxSet:
        """Read the images of a split together with their annotated boxes, for a method that trains on boxes.

        Args:
          split: name of the split.

        Returns:
          The images that have an annotation, in the order of `images`; `source` is "annotations". Difficult
          objects and crowds are ignored in training.

        Raises:
          DataError: as `images` and `annotated_boxes`; also if no image has an annotation.
        """
        return BoxSet.from_ground_truth(self.images(split), self.annotated_boxes(split))


@dataclass(frozen=True, kw_only=True)
class InstanceReader(BoxReader):
    """A reader of a data set whose objects have annotated masks."""

    has_instances: ClassVar[bool] = True

    @abstractmethod
    def instances(self, split: str) -> Mapping[str, Callable[[], ImageInstances]]:
        """Return readers of the masks of a split, for evaluation; masks are decoded only when needed.

        Args:
          split: name of the split.

        Returns:
          Image id -> a function that reads the masks of that image, for every image of `images` and its `missing`.
          The function raises `DataError` for masks that are missing, invalid or of another size than the image.

        Raises:
          DataError: if the split is missing or invalid.
        """


@dataclass(frozen=True, kw_only=True)
class LabelMapReader(InstanceReader):
    """A reader of a data set in which the class of every pixel is annotated."""

    has_label_maps: ClassVar[bool] = True

    @abstractmethod
    def label_maps(self, split: str) -> Mapping[str, Callable[[], np.ndarray]]:
        """Return readers of the label maps of a split, for evaluation; maps are decoded only when needed.

        Args:
          split: name of the split.

        Returns:
          Image id -> a function that reads the label map of that image, for the images of `instances`: [H, W] uint8,
          0 background, class + 1, 255 void. The function raises `DataError` as in `instances`.

        Raises:
          DataError: if the split is missing or invalid.
        """


def check_on_bad(on_bad: OnBad) -> None:
    """Raise `ConfigError` unless `on_bad` is one of its values."""
    if on_bad not in ("error", "skip", "skip_all"):
        raise ConfigError(f'on_bad={on_bad!r}; allowed are "error", "skip" and "skip_all".')


class LeftOut:
    """The images of a split whose file or annotation cannot be read.

    Args:
      on_bad: "error" raises; "skip" leaves out at most a tenth of a split; "skip_all" leaves out any number.

    Attributes:
      ids: of the images left out so far.
    """

    def __init__(self, on_bad: OnBad):
        self.ids: list[str] = []
        self._on_bad, self._first = on_bad, None

    def add(self, image_id: str, error: DataError) -> None:
        """Leave an image out and log the error, for the first ten; or raise it."""
        if self._on_bad == "error" or isinstance(error, FatalFault):
            raise error
        self.ids.append(image_id)
        self._first = self._first or error
        if len(self.ids) <= _NAMED:
            logger.warning("left out: %s", error)

    def finish(self, name: str, num_kept: int, counts: MutableMapping[str, int]) -> None:
        """Log the statistics of a split, and check that enough images are left.

        Args:
          name: of the split.
          num_kept: images that are left.
          counts: statistics; "bad_image" is set to the number of images left out.

        Raises:
          DataError: if no image is left; with "skip", if more than a tenth of them is left out.
        """
        count = counts["bad_image"] = len(self.ids)
        text = ", ".join(f"{number} {what}" for what, number in sorted(counts.items()) if number)
        if text:
            logger.warning("%s: %s", name, text)
        total = num_kept + count
        fault = f" The first fault: {self._first}" if count else ""
        if count * _MAX_SHARE > total and self._on_bad != "skip_all":
            first = ", ".join(self.ids[:3]) + (", …" if count > 3 else "")
            raise DataError(
                f"{name}: {count} of {total} images cannot be read ({first}), more than the tenth that may be left "
                f'out; restore them, or set data.on_bad="skip_all" to continue without them.{fault}'
            )
        if not num_kept:
            what = (
                f"no image is left of {total}"
                if total
                else f"no image; they end in {', '.join(SUFFIXES)}"
            )
            raise DataError(f"{name}: {what}.{fault}")


def frame_scale(
    annotated: tuple[int, int] | None, size: tuple[int, int] | None, path: Path | str
) -> tuple[float, float]:
    """Return the factors (x, y) from pixels of an annotation to those of its image, which may be a resized copy.

    Args:
      annotated: (height, width) in the annotation, or `None`.
      size: (height, width) of the image; `None` if it cannot be read. Unless both are known, the factors are 1.
      path: of the annotation, for errors.

    Raises:
      DataError: if the aspects differ by more than rounding to whole pixels.
    """
    if annotated is None or size is None or annotated == size:
        return 1.0, 1.0
    y, x = (new / old for new, old in zip(size, annotated, strict=True))
    off_by = min(abs(x / y - 1) * annotated[0], abs(y / x - 1) * annotated[1])
    if min(1.0, x, y) * off_by > 1.0:  # in pixels of the smaller one
        raise DataError(
            f"{path}: annotated at (height, width) {annotated}, but the image has {size}, of another aspect; boxes "
            "cannot be scaled. Correct the size, or annotate this image again."
        )
    return x, y


def checked_names(class_names: Sequence[str], where: str) -> tuple[str, ...]:
    """Return class names; warn if any differ only in case, spaces, "_" and "-".

    Raises:
      DataError: if there are none, or one occurs twice.
    """
    if not class_names or len(set(class_names)) < len(class_names):
        raise DataError(
            f"{where}: class names must be distinct and at least one, found {tuple(class_names)}."
        )
    spellings = defaultdict(list)
    for name in class_names:
        folded = unicodedata.normalize("NFKC", name).casefold()
        spellings[re.sub(r"[\s_-]", "", folded)].append(name)
    similar = [" and ".join(map(repr, names)) for names in spellings.values() if len(names) > 1]
    if similar:
        logger.warning(
            "%s: similar names are different classes, each labeled absent in the images of the other: %s. If they "
            "mean the same class, use one spelling.",
            where,
            "; ".join(similar),
        )
    return tuple(class_names)
