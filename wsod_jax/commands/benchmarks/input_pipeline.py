"""The input pipeline's rate."""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Iterator

import cv2
import numpy as np

from wsod_jax.commands.benchmarks.kernels import random_boxes
from wsod_jax.commands.benchmarks.programs import training_step
from wsod_jax.commands.benchmarks.published import random_batch
from wsod_jax.commands.benchmarks.timing import Measure
from wsod_jax.commands.benchmarks.training import laptop_step, measured
from wsod_jax.data.input.loading import Loading
from wsod_jax.data.input.pipeline import train_batches
from wsod_jax.data.input.plan import Order
from wsod_jax.data.input.transforms import Canvases
from wsod_jax.data.proposals.proposal_set import ProposalSet
from wsod_jax.data.records import ImageRecord, ImageSet

VOC_SIZES = (
    (375, 500),
    (500, 375),
    (333, 500),
    (500, 500),
)  # (height, width), as VOC's photographs
PUBLISHED_SCALES = (480, 576, 688, 864, 1200)


def jpeg_set(num_images: int, num_proposals: int, shrink: int) -> tuple[ImageSet, ProposalSet]:
    """Draw smooth images of VOC's sizes divided by `shrink`, as JPEG in memory, with random proposals."""
    rng = np.random.default_rng(0)
    records, sizes, boxes = [], {}, {}
    for number in range(num_images):
        height, width = (side // shrink for side in VOC_SIZES[number % len(VOC_SIZES)])
        coarse = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8)
        pixels = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
        encoded = cv2.imencode(".jpg", pixels)[1].tobytes()
        labels = tuple(int(c in (number % 4, 3)) for c in range(4))
        name = f"image{number}"
        records.append(ImageRecord(name, functools.partial(bytes, encoded), height, width, labels))
        sizes[name] = (height, width)
        boxes[name] = random_boxes(rng, num_proposals, height, width)
    proposals = ProposalSet.from_images(sizes, boxes, generator="random boxes")
    return ImageSet("benchmark", tuple("abcd"), tuple(records)), proposals


def images_per_second(batches: Iterator, num_updates: int) -> float:
    """Return the rate of a stream of one-image updates, after a warm-up."""
    for _ in itertools.islice(batches, 4):
        pass
    started = time.perf_counter()
    for _ in itertools.islice(batches, num_updates):
        pass
    return num_updates / (time.perf_counter() - started)


def input_rate(*, small: bool, repeats: int) -> list[Measure]:
    """Time the training stream at the published five scales, with both loaders, against the step."""
    num_images, num_proposals, shrink = (8, 30, 8) if small else (40, 2000, 1)
    image_set, proposals = jpeg_set(num_images, num_proposals, shrink)
    scales = tuple(scale // shrink for scale in PUBLISHED_SCALES)
    method, size, subject = laptop_step(small)
    step, _ = measured(training_step(method, random_batch(size)), repeats=1)
    rows = [Measure("training step", 1 / step, "images/s", subject)]
    streams = [
        train_batches(
            image_set,
            proposals,
            canvases=Canvases(scales),
            order=Order(),
            loading=Loading(loader=loader),
        )
        for loader in ("threads", "tf")
    ]
    # in turn: a stream that nobody reads is soon as far ahead as it may be, and rests
    rates = np.array([[images_per_second(s, num_images) for s in streams] for _ in range(repeats)])
    for stream in streams:
        stream.close()
    note = f"JPEG of VOC's size, scales {scales}, {num_proposals} proposals"
    for loader, rate in zip(("threads", "tf"), np.median(rates, axis=0), strict=True):
        rows += [
            Measure(f'input pipeline, loader "{loader}"', float(rate), "images/s", note),
            Measure("  is faster than the step by", float(rate) * step, "x"),
        ]
    ratio = float(np.median(rates[:, 1] / rates[:, 0]))
    return [*rows, Measure('  "tf" against "threads"', ratio, "x", "median of paired rates")]
