"""The input pipeline's rate, and the number of programs that training and evaluation compile."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import time
from collections.abc import Iterator

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from wsod_jax.commands.benchmarks.kernels import random_boxes
from wsod_jax.commands.benchmarks.timing import Measure
from wsod_jax.commands.benchmarks.training import LAPTOP, SMALL, make_batch, make_method, whole_step
from wsod_jax.data.input.loading import Loading
from wsod_jax.data.input.pipeline import train_batches, view_batches
from wsod_jax.data.input.plan import Order
from wsod_jax.data.input.transforms import Canvases
from wsod_jax.data.proposals.proposal_set import ProposalSet
from wsod_jax.data.records import ImageRecord, ImageSet
from wsod_jax.evaluation.decoding import Decoding
from wsod_jax.evaluation.inference import Model, infer
from wsod_jax.methods.oim import Oim
from wsod_jax.nn.box_head import BoxHead
from wsod_jax.nn.tiny import TinyNet
from wsod_jax.train.optim import Optimizer
from wsod_jax.train.sharding import make_mesh, put
from wsod_jax.train.state import init_state
from wsod_jax.train.step import TrainStep

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
    setting = SMALL if small else LAPTOP
    image_set, proposals = jpeg_set(num_images, num_proposals, shrink)
    scales = tuple(scale // shrink for scale in PUBLISHED_SCALES)
    step = whole_step(make_method(setting, jnp.float32), make_batch(setting), repeats=1)
    rows = [
        Measure(
            "training step", 1 / step.seconds, "images/s", f"OIM + IR, VGG16, float32, {setting}"
        )
    ]
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
            Measure("  is faster than the step by", float(rate) * step.seconds, "x"),
        ]
    ratio = float(np.median(rates[:, 1] / rates[:, 0]))
    return [*rows, Measure('  "tf" against "threads"', ratio, "x", "median of paired rates")]


def compilations(*, small: bool, repeats: int) -> list[Measure]:
    """Count the programs of five-scale training and ten-view evaluation, on images of both orientations.

    Scales are a tenth of the published ones: as many canvases, in a tenth of the time.
    """
    del small, repeats
    image_set, proposals = jpeg_set(4, 20, shrink=10)
    canvases = Canvases(tuple(scale // 10 for scale in PUBLISHED_SCALES), multiple=4)
    method = Oim(
        backbone=TinyNet(), num_classes=4, max_classes=4, box_head=BoxHead((16,)), max_nodes=4
    )
    tx, _ = Optimizer(learning_rate=1e-3).transformation(1)
    mesh = make_mesh(1)
    stream = train_batches(
        image_set, proposals, canvases=canvases, order=Order(), loading=Loading(loader="threads")
    )
    train_step = TrainStep(method, tx, seed=0, mesh=mesh)
    state, shapes = None, set()
    for update in stream:
        if state is None:
            state = init_state(method, tx, seed=0, batch=update[0], mesh=mesh)
        state, _ = train_step.update(state, [put(batch, mesh) for batch in update])
        shapes |= {batch.image.shape for batch in update}
        if len(shapes) == len(canvases.shapes()):
            break
    stream.close()

    model = Model(method, state.params, {}, jax.jit(method.predict, static_argnums=3))
    # mAP by the shorter side, CorLoc by the longer one, as OIM is evaluated
    for resize in ("short", "long"):
        sides = dataclasses.replace(canvases, resize=resize)
        views = view_batches(
            image_set, proposals, canvases=sides, loading=Loading(loader="threads")
        )
        images = list(infer(model, views, [method.outputs] * 10, Decoding()))
    bound = 2 * len(canvases.shapes())
    predicting = model.predict._cache_size()
    counted = train_step.num_compilations() + predicting
    return [
        Measure("programs of the training step", train_step.num_compilations(), "", "five scales"),
        Measure(
            "programs of the predict step",
            predicting,
            "",
            f"ten views of {len(images)} images for mAP, ten for CorLoc",
        ),
        Measure(
            "all of them", counted, "", f"2 x canvases x orientations = {bound}; at most 24 allowed"
        ),
    ]
