"""What the readers of data sets have in common. A reader is a class of options; its methods read a split.

`images` never looks at a box, and what it returns cannot hold one. Boxes are read on purpose: `ground_truth` (and
masks: `instances`, `label_maps`) for evaluation, `boxes` for a method that trains on boxes. A faulty image or
annotation is left out, logged and counted, or stops the reader; a split that loses more than a tenth of its images that
way is refused unless told otherwise.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np

from wsod_jax.data.records import BoxSet, GroundTruth, ImageInstances, ImageSet
from wsod_jax.errors import ConfigError, DataError
from wsod_jax.options import Mark

logger = logging.getLogger(__name__)

OnBad = Annotated[Literal["error", "skip", "skip_all"], Mark.TEST]
_NAMED = 10  # faults named one by one; the count tells of the others
_MAX_SHARE = 10  # with "skip", at most one image in so many may be left out


class HostileFile(DataError):
    """A file made to harm its reader; never skipped."""


@dataclass(frozen=True, kw_only=True)
class Reader(ABC):
    """Where a data set lies and which of its splits a run uses.

    Attributes:
      train_split: name of the split to train on.
      test_split: name of the split to test on.
      val_split: name of the split that is measured while training; `None` measures nothing.
      has_boxes: whether the reader knows boxes, and has the methods of `BoxReader`.
      has_instances: whether it knows the masks of objects, and has the method of `InstanceReader`.
      has_label_maps: whether it knows the class of every pixel, and has the method of `LabelMapReader`.
    """

    train_split: str
    test_split: str
    val_split: Annotated[str | None, Mark.RESUME] = None
    has_boxes: ClassVar[bool] = False
    has_instances: ClassVar[bool] = False
    has_label_maps: ClassVar[bool] = False

    @abstractmethod
    def images(self, split: str) -> ImageSet:
        """Read the images of a split and their image-level labels; boxes are not looked at.

        Args:
          split: name of the split.

        Returns:
          The images; `counts` tells what was met on the way, `missing` names what was left out.

        Raises:
          DataError: if the split or a file is missing or faulty, or too few images are left.
        """


@dataclass(frozen=True, kw_only=True)
class BoxReader(Reader):
    """A reader of a data set that has annotated boxes."""

    has_boxes: ClassVar[bool] = True

    @abstractmethod
    def ground_truth(self, split: str) -> GroundTruth:
        """Read the boxes of a split, for evaluation.

        Args:
          split: name of the split.

        Returns:
          The boxes of every annotated image of the split, difficult objects and crowds included and marked.

        Raises:
          DataError: if the split or a file is missing or faulty.
        """

    def boxes(self, split: str) -> BoxSet:
        """Read the images of a split together with their annotated boxes, for a method that trains on boxes.

        Args:
          split: name of the split.

        Returns:
          The images that have an annotation, in the order of `images`; `source` is "annotations". Difficult
          objects and crowds are to be ignored in training.

        Raises:
          DataError: as `images` and `ground_truth`; also if no image has an annotation.
        """
        return BoxSet.from_ground_truth(self.images(split), self.ground_truth(split))


@dataclass(frozen=True, kw_only=True)
class InstanceReader(BoxReader):
    """A reader of a data set whose objects have annotated masks."""

    has_instances: ClassVar[bool] = True

    @abstractmethod
    def instances(self, split: str) -> Mapping[str, Callable[[], ImageInstances]]:
        """Return where the masks of a split are, for evaluation; nothing is decoded before it is asked for.

        Args:
          split: name of the split.

        Returns:
          Image id -> a function that reads the masks of that image, for every image of `images` and its `missing`.
          The function raises `DataError` where masks are missing, faulty or of another size than the image.

        Raises:
          DataError: if the split is missing or faulty.
        """


@dataclass(frozen=True, kw_only=True)
class LabelMapReader(InstanceReader):
    """A reader of a data set in which the class of every pixel is annotated."""

    has_label_maps: ClassVar[bool] = True

    @abstractmethod
    def label_maps(self, split: str) -> Mapping[str, Callable[[], np.ndarray]]:
        """Return where the label maps of a split are, for evaluation; nothing is decoded before it is asked for.

        Args:
          split: name of the split.

        Returns:
          Image id -> a function that reads the label map of that image, for the images of `instances`: [H, W] uint8,
          0 background, class + 1, 255 void. The function raises `DataError` as there.

        Raises:
          DataError: if the split is missing or faulty.
        """


def check_on_bad(on_bad: OnBad) -> None:
    """Raise `ConfigError` unless `on_bad` is one of the three."""
    if on_bad not in ("error", "skip", "skip_all"):
        raise ConfigError(f'on_bad={on_bad!r}; allowed are "error", "skip" and "skip_all".')


class LeftOut:
    """The images of a split whose file or annotation cannot be read.

    Args:
      on_bad: what to do about them: "error" raises; "skip" leaves out at most a tenth of a split; "skip_all"
        leaves out any number.

    Attributes:
      ids: of the images left out so far.
    """

    def __init__(self, on_bad: OnBad):
        self.ids: list[str] = []
        self._on_bad, self._first = on_bad, None

    def add(self, image_id: str, error: DataError) -> None:
        """Leave an image out and log why, for the first ten; or raise why it cannot be read."""
        if self._on_bad == "error" or isinstance(error, HostileFile):
            raise error
        self.ids.append(image_id)
        self._first = self._first or error
        if len(self.ids) <= _NAMED:
            logger.warning("left out: %s", error)

    def check(self, name: str, total: int) -> None:
        """Check that enough is left of a split.

        Args:
          name: of the split.
          total: its number of images.

        Raises:
          DataError: with "skip", if more than a tenth of them is left out.
        """
        count = len(self.ids)
        if self._on_bad == "skip_all" or count * _MAX_SHARE <= total:
            return
        first = ", ".join(self.ids[:3]) + (", …" if count > 3 else "")
        raise DataError(
            f"{name}: {count} of {total} images cannot be read ({first}), more than the tenth that may be left out; "
            f'restore them, or set data.on_bad="skip_all" to go on without them. The first fault: {self._first}'
        )


def log_counts(name: str, counts: Mapping[str, int]) -> None:
    """Log what was met while reading a set, where anything was."""
    found = ", ".join(f"{count} {what}" for what, count in sorted(counts.items()) if count)
    if found:
        logger.warning("%s: %s", name, found)
