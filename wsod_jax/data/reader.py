"""What the readers of data sets have in common. A reader is a class of options; its methods read a split.

`images` never looks at a box, and what it returns cannot hold one. Boxes are read on purpose: `ground_truth`
for evaluation, `boxes` for a method that trains on boxes. A faulty image or annotation is left out, logged and counted,
or stops the reader.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from wsod_jax.data.records import BoxSet, GroundTruth, ImageSet
from wsod_jax.errors import ConfigError, DataError
from wsod_jax.options import Mark

logger = logging.getLogger(__name__)

OnBad = Literal["error", "skip"]
_NAMED = 10  # faults named one by one; the count tells of the others


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
    """

    train_split: str
    test_split: str
    val_split: Annotated[str | None, Mark.RESUME] = None
    has_boxes: ClassVar[bool] = False

    @abstractmethod
    def images(self, split: str) -> ImageSet:
        """Read the images of a split and their image-level labels; boxes are not looked at.

        Args:
          split: name of the split.

        Returns:
          The images; `counts` tells what was met on the way.

        Raises:
          DataError: if the split or a file is missing or faulty, or no image is left.
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


def check_on_bad(on_bad: OnBad) -> None:
    """Raise `ConfigError` unless `on_bad` is one of the two."""
    if on_bad not in ("error", "skip"):
        raise ConfigError(f'on_bad={on_bad!r}; allowed are "error" and "skip".')


def skip_or_raise(error: DataError, on_bad: OnBad, counts: dict[str, int]) -> None:
    """Count a fault in `counts["bad_image"]` and log the first ten, or raise it with `on_bad` "error"."""
    if on_bad == "error" or isinstance(error, HostileFile):
        raise error
    counts["bad_image"] += 1
    if counts["bad_image"] <= _NAMED:
        logger.warning("left out: %s", error)


def log_counts(name: str, counts: Mapping[str, int]) -> None:
    """Log what was met while reading a set, where anything was."""
    found = ", ".join(f"{count} {what}" for what, count in sorted(counts.items()) if count)
    if found:
        logger.warning("%s: %s", name, found)
