"""The programs that are run on an accelerator: steps of methods and their parts, pooling, NMS, a matrix product."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wsod_jax.commands.benchmarks import published
from wsod_jax.commands.benchmarks.counting import model_flops
from wsod_jax.commands.benchmarks.rows import Options, Row
from wsod_jax.methods.base import Method
from wsod_jax.ops.detect import detect
from wsod_jax.ops.roi import roi_align, roi_max_pool
from wsod_jax.train.optim import Optimizer
from wsod_jax.train.sharding import make_mesh, put
from wsod_jax.train.state import init_state
from wsod_jax.train.step import TrainStep
from wsod_jax.types import Batch

DTYPES = ("bfloat16", "float32")  # the smaller first: the device's peak memory only grows
MATRIX = "matrix product"


@dataclasses.dataclass(frozen=True)
class Ready:
    """A program that can be compiled: the function, its arguments, and how it is fed again.

    Attributes:
      function: jitted.
      arguments: to compile it for and run it on.
      flops: its model's operations.
      again: (arguments, results) -> arguments of the next run, for programs that consume their arguments.
    """

    function: Any
    arguments: tuple[Any, ...]
    flops: float = 0.0
    again: Callable[[tuple[Any, ...], Any], tuple[Any, ...]] = lambda arguments, results: arguments


@dataclasses.dataclass(frozen=True)
class Program:
    """A row to be: its name, and what makes it ready, which is done when its turn has come."""

    row: Row
    prepare: Callable[[], Ready]


def programs(options: Options) -> list[Program]:
    """List what is to be run: all of the first dtype before anything of the second."""
    stored = None if options.batches is None else published.stored_batches(options.batches)
    return [
        program
        for dtype in DTYPES
        for program in (
            matrix_product(dtype, options.small),
            *(p for name in options.methods for p in method_programs(name, dtype, options, stored)),
            *pooling_programs(dtype, options.small),
            *(suppression_programs(options.small) if dtype == "float32" else ()),
        )
    ]


def matrix_product(dtype: str, small: bool) -> Program:
    """Return a large square matrix product, whose rate is the peak that others are held to."""
    side = 256 if small else 8192

    def prepare() -> Ready:
        matrix = jnp.ones((side, side), dtype)
        return Ready(jax.jit(jnp.matmul), (matrix, matrix), 2.0 * side**3)

    return Program(Row(program=MATRIX, dtype=dtype, size=f"{side}x{side}"), prepare)


def method_programs(
    name: str, dtype: str, options: Options, stored: list[Batch] | None
) -> list[Program]:
    """Return a method's training steps, predict steps and the parts of a training step."""
    sizes = published.SMALL_SIZES if options.small else published.SIZES
    if stored is None:
        kind = sizes["maps" if name == "spn" else "proposals"]
        cases = [(str(size), functools.partial(published.random_batch, size)) for size in kind]
        num_classes = kind[0].num_classes
    else:
        cases = [(published.describe(one), functools.partial(_usable, name, one)) for one in stored]
        num_classes = stored[0].labels.shape[1]
    method = published.make_method(name, num_classes, dtype, options.small)

    def program(
        what: str, prepare: Callable[[Batch], Ready], case: tuple[str, Callable]
    ) -> Program:
        size, make = case
        row = Row(program=f"{name}: {what}", dtype=dtype, size=size)
        return Program(row, lambda: prepare(make()))

    training, predicting = (functools.partial(f, method) for f in (training_step, predict_step))
    return [
        *(program("training step", training, case) for case in cases),
        *(program("predict step", predicting, case) for case in cases),
        *(
            program(f"part {part}", functools.partial(part_of_step, method, part), cases[-1])
            for part in published.parts(method)
        ),
    ]


def _usable(name: str, batch: Batch) -> Batch:
    """Return a stored batch, if it has what the method needs."""
    if name != "spn" and batch.proposals is None:
        raise ValueError(f"{name} needs proposals, and the stored batch has none")
    return batch


def training_step(method: Method, batch: Batch) -> Ready:
    """Make an update ready: forward, backward and SGD, the state donated."""
    mesh = make_mesh(1)
    frozen = tuple(f"^backbone/{layer}" for layer in method.backbone.frozen)
    # random weights do not stay finite for long at a published rate
    tx, _ = Optimizer(learning_rate=1e-7, weight_decay=5e-4).transformation(1, frozen)
    step = TrainStep(method, tx, seed=0, mesh=mesh)
    state = init_state(method, tx, seed=0, batch=batch, mesh=mesh)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
    flops = sum(model_flops(step.fused, shapes, one) for one in published.without_padding(batch))
    return Ready(
        jax.jit(step.fused, donate_argnums=0),
        (state, put(batch, mesh)),
        flops,
        again=lambda arguments, results: (results[0], arguments[1]),
    )


def predict_step(method: Method, batch: Batch) -> Ready:
    """Make the prediction of one view ready."""
    params, batch_on_device = parameters(method, batch), jax.tree.map(jnp.asarray, batch)
    want = frozenset(method.outputs)
    counted = functools.partial(_predicted, method, want)
    flops = sum(model_flops(counted, params, one) for one in published.without_padding(batch))
    return Ready(jax.jit(counted), (params, batch_on_device), flops)


def _predicted(method: Method, want: frozenset, params: Any, batch: Batch) -> Any:
    return method.predict(params, {}, batch, want)


def part_of_step(method: Method, name: str, batch: Batch) -> Ready:
    """Make one part of a training step ready, on random input of the right shape."""
    part = published.parts(method)[name]
    params = parameters(method, batch)
    inputs = published.draw(part.inputs(params, batch))
    flops = sum(
        model_flops(part.run, params, one, *part.inputs(params, one))
        for one in published.without_padding(batch)
    )
    return Ready(jax.jit(part.run), (params, jax.tree.map(jnp.asarray, batch), *inputs), flops)


def parameters(method: Method, batch: Batch) -> Any:
    """Draw a method's parameters on the device."""
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)

    def init() -> Any:
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        return method.init(jax.random.key(0), zeros)[0]

    return jax.jit(init)()


def pooling_programs(dtype: str, small: bool) -> list[Program]:
    """Return RoI max pooling and RoIAlign, forward, and forward and backward."""
    size = (published.SMALL_SIZES if small else published.SIZES)["proposals"][-1]
    cells = tuple(-(-side // 8) for side in size.canvas)
    channels = 8 if small else 512
    kinds = {"RoI max pooling": functools.partial(roi_max_pool, inside=True), "RoIAlign": roi_align}

    def prepare(pool: Callable, backward: bool) -> Ready:
        batch = published.random_batch(size)
        boxes, mask = jnp.asarray(batch.proposals), jnp.asarray(batch.proposal_mask)
        features = published.draw(jax.ShapeDtypeStruct((1, *cells, channels), jnp.dtype(dtype)))
        valid = jnp.array([[-(-side // 8) for side in size.image]])

        def run(features: jax.Array, boxes: jax.Array, mask: jax.Array, valid: jax.Array) -> Any:
            def forward(features: jax.Array) -> jax.Array:
                return pool(features, boxes, mask, valid, output_size=7, spatial_scale=1 / 8)

            if not backward:
                return forward(features)
            pooled, pull = jax.vjp(forward, features)
            return pooled, pull(pooled)

        return Ready(jax.jit(run), (features, boxes, mask, valid))

    subject = f"{size.proposals} of {size.rows} proposals, {channels} x {cells[0]}x{cells[1]} cells"
    return [
        Program(
            Row(program=f"{name}, {way}", dtype=dtype, size=subject),
            functools.partial(prepare, pool, way != "forward"),
        )
        for name, pool in kinds.items()
        for way in ("forward", "forward and backward")
    ]


def suppression_programs(small: bool) -> list[Program]:
    """Return the ways from scores to detections."""
    count, num_classes = (30, 4) if small else (2000, 20)

    def prepare(run: Callable, own_boxes: bool) -> Ready:
        rng = np.random.default_rng(0)
        boxes = published.random_boxes(rng, count * (num_classes if own_boxes else 1), 480, 640)
        boxes = boxes.reshape(count, num_classes, 4) if own_boxes else boxes
        scores = rng.random((count, num_classes), dtype=np.float32) ** 4
        arguments = (boxes, scores, np.ones(count, bool))
        return Ready(jax.jit(run), tuple(map(jnp.asarray, arguments)))

    every = functools.partial(detect, score_thr=1e-5, iou_thr=0.3, top_k=100)
    best = functools.partial(every, class_top_k=100)
    subject = f"{count} boxes, {num_classes} classes"
    return [
        Program(Row(program=name, dtype="float32", size=subject), functools.partial(prepare, *how))
        for name, how in {
            "detections out of the best 100 of each class": (best, False),
            "detections: NMS of all, the best 100": (every, False),
            "detections, boxes per class": (every, True),
        }.items()
    ]
