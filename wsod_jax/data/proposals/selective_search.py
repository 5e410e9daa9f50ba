"""Selective search proposals, computed by OpenCV, in parallel and resumable.

Source: Uijlings et al. 2013, as implemented in OpenCV's contributed modules.
"""

from __future__ import annotations

import multiprocessing
import os
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from wsod_jax.data.proposals.proposal_set import ProposalSet
from wsod_jax.data.proposals.writing import Outcome, ProposalResult, write_proposals
from wsod_jax.data.records import ImageRecord, ImageSet
from wsod_jax.errors import ConfigError, DataError


@dataclass(frozen=True)
class SearchOptions:
    """Options of selective search.

    Attributes:
      method: "fast" (a few hundred to two thousand boxes) or "quality" (several times as many, slower).
      min_side: drop boxes with a shorter side below this many pixels of the original image. Published
        VOC proposals used 20; small images need less.
      max_side: search a copy shrunk to this longer side, in pixels; boxes are scaled back. 0 never shrinks.
    """

    method: Literal["fast", "quality"] = "fast"
    min_side: float = 8.0
    max_side: int = 500

    def __post_init__(self):
        if self.method not in ("fast", "quality"):
            raise ConfigError(f'method must be "fast" or "quality", found {self.method!r}.')
        if self.min_side < 0 or self.max_side < 0:
            raise ConfigError(
                f"min_side and max_side must not be negative, found {self.min_side}, {self.max_side}."
            )

    @property
    def generator(self) -> str:
        """The `generator` of proposals with these options."""
        return (
            f"selective search ({self.method}, min_side={self.min_side:g}, max_side={self.max_side}, "
            f"OpenCV {cv2.__version__})"
        )

    @classmethod
    def of_generator(cls, generator: str) -> SearchOptions | None:
        """Return the options in a file's `generator`; `None` if it names another program."""
        number = r"([0-9.e+]+)"
        pattern = rf"selective search \((fast|quality), min_side={number}, max_side={number},"
        match = re.match(pattern, generator)
        if match is None:
            return None
        return cls(match[1], float(match[2]), int(float(match[3])))

    @classmethod
    def like(cls, path: str | Path) -> tuple[SearchOptions, str | None]:
        """Return the options of a file of proposals; or the defaults, and why its options are unknown."""
        generator = ProposalSet.read_generator(path)
        if generator is None:
            return cls(), f"{path} is missing, so its options are unknown"
        options = cls.of_generator(generator)
        if options is None:
            return cls(), f"{path} has boxes of {generator!r}, which cannot be computed here"
        return options, None


def propose(image: np.ndarray, options: SearchOptions) -> np.ndarray:
    """Run selective search on one image.

    Args:
      image: [H, W, 3] uint8 RGB.
      options: of the search.

    Returns:
      [k, 4] float32 xyxy in pixels of `image`, continuous edges, distinct, k >= 1: the whole image if nothing is
      found. The order is a fixed shuffle, so that the first n are a fair sample. They are the same on every x86
      instruction set.
    """
    height, width = image.shape[:2]
    vectorized = cv2.useOptimized()
    cv2.setUseOptimized(False)  # its vector code rounds differently on every instruction set
    try:
        found, small_size = _search_shrunk(image, options)
    finally:
        cv2.setUseOptimized(vectorized)
    boxes = np.concatenate([found[:, :2], found[:, :2] + found[:, 2:]], axis=1)
    boxes *= np.array([width, height, width, height]) / np.array([*small_size, *small_size])
    boxes = np.clip(boxes, 0, [width, height, width, height]).astype(np.float32)
    boxes = boxes[
        (boxes[:, 2:] - boxes[:, :2]).min(axis=1, initial=np.inf) >= max(options.min_side, 1e-3)
    ]
    if not len(boxes):
        boxes = np.array([[0, 0, width, height]], np.float32)
    boxes = np.unique(boxes, axis=0)
    return boxes[np.random.default_rng(0).permutation(len(boxes))]


def _search_shrunk(image: np.ndarray, options: SearchOptions) -> tuple[np.ndarray, tuple[int, int]]:
    """Return boxes [k, 4] float64 (x, y, width, height), and the (width, height) of the searched copy."""
    height, width = image.shape[:2]
    shrink = min(1.0, options.max_side / max(height, width)) if options.max_side else 1.0
    small_size = max(1, round(width * shrink)), max(1, round(height * shrink))
    if shrink < 1:
        image = cv2.resize(image, small_size, interpolation=cv2.INTER_AREA)

    search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    search.setBaseImage(np.ascontiguousarray(image[:, :, ::-1]))
    if options.method == "fast":
        search.switchToSelectiveSearchFast()
    else:
        search.switchToSelectiveSearchQuality()
    return np.asarray(search.process(), np.float64).reshape(-1, 4), small_size


def search_images(image_set: ImageSet, options: SearchOptions) -> ProposalSet:
    """Compute the proposals of a few images in memory, on threads; nothing is written.

    Raises:
      DataError: lists the images in which the search failed.
    """
    with ThreadPoolExecutor() as pool:
        outcomes = list(pool.map(lambda record: _search_file(record, options), image_set.records))
    boxes = dict(zip(image_set.image_ids, (found for found, _ in outcomes), strict=True))
    problems = [problem for _, problem in outcomes if problem is not None]
    if problems:
        raise DataError("; ".join(problems))
    sizes = {record.image_id: (record.height, record.width) for record in image_set.records}
    return ProposalSet.from_images(sizes, boxes, generator=options.generator)


def run_selective_search(
    image_set: ImageSet,
    out: str | Path,
    *,
    options: SearchOptions | None = None,
    workers: int = 1,
    report: Callable[[int, int], None] | None = None,
) -> ProposalResult:
    """Compute the proposals of a set of images and save them to one file.

    Finished images are kept in partial files next to `out` (`<out>.parts/`); after an interruption, the same
    call continues from there. Images already in `out` are kept, too. The result does not depend on the number
    of workers or on interruptions.

    Args:
      image_set: the images; labels are not needed.
      out: the .npz file to write.
      options: of the search.
      workers: processes to use; 1 runs in this one.
      report: called with (images done, total) after each image.

    Returns:
      The content of `out`, and the images that could not be read, which it lacks.

    Raises:
      DataError: if `out` has proposals of another generator, or no image could be read.
      KeyboardInterrupt: after the finished images have been saved.
    """
    options = options or SearchOptions()
    return write_proposals(
        image_set,
        out,
        generator=options.generator,
        propose=lambda records: _search(records, options, workers),
        report=report,
    )


def _search(
    records: Sequence[ImageRecord], options: SearchOptions, workers: int
) -> Iterator[Outcome]:
    """Yield every image's outcome, in order."""
    if workers <= 1 or len(records) < 2:
        yield from (Outcome(r, *_search_file(r, options)) for r in records)
        return
    # A fork of a process that runs JAX or TensorFlow may hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker) as pool:
        waiting: deque[tuple[ImageRecord, Future]] = deque()
        try:
            for record in records:
                waiting.append((record, _submit(pool, record, options)))
                if len(waiting) >= 4 * workers:  # limits the images and results in memory
                    yield _collect(*waiting.popleft())
            while waiting:
                yield _collect(*waiting.popleft())
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _start_worker() -> None:
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    cv2.setNumThreads(1)
    os.environ["OMP_NUM_THREADS"] = "1"


def _submit(pool: Executor, record: ImageRecord, options: SearchOptions) -> Future:
    """Start one image; a file is read by the worker, other sources here, since they may not be picklable."""
    if record.path is not None:
        return pool.submit(_search_file, record, options)
    try:
        return pool.submit(_search_pixels, record.load(), options)
    except DataError as error:
        failed: Future = Future()
        failed.set_result((None, str(error)))
        return failed


def _collect(record: ImageRecord, future: Future) -> Outcome:
    try:
        return Outcome(record, *future.result())
    except BrokenProcessPool as error:
        raise DataError(
            "A worker process died, probably for lack of memory; finished images are kept. Run again with fewer "
            "workers or a smaller max_side."
        ) from error


def _search_file(
    record: ImageRecord, options: SearchOptions
) -> tuple[np.ndarray | None, str | None]:
    try:
        return _search_pixels(record.load(), options)
    except DataError as error:
        return None, str(error)


def _search_pixels(
    image: np.ndarray, options: SearchOptions
) -> tuple[np.ndarray | None, str | None]:
    try:
        return propose(image, options), None
    except (cv2.error, MemoryError) as error:
        return None, f"selective search failed: {error}"
