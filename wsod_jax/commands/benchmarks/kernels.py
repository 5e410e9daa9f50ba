"""RoI max pooling, NMS and OIM's mining against simple ways to compute the same; the dense CRF; backbones."""

from __future__ import annotations

import functools
import importlib
import sys
from pathlib import Path
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np

from wsod_jax.commands.benchmarks.timing import Measure, compiled, seconds, working_mib
from wsod_jax.errors import DataError
from wsod_jax.methods.oim import Oim
from wsod_jax.nn.backbone import Backbone
from wsod_jax.nn.efficientnet_lite import EfficientNetLite0
from wsod_jax.nn.squeezenet import SqueezeNet
from wsod_jax.nn.tiny import TinyNet
from wsod_jax.ops.crf import CrfOptions, dense_crf, dense_crf_upsampled
from wsod_jax.ops.nms import greedy_nms, nms_mask
from wsod_jax.ops.roi import roi_max_pool
from wsod_jax.types import Source

BINS = 7
STRIDE = 8


def random_boxes(rng: np.random.Generator, num: int, height: float, width: float) -> np.ndarray:
    """Draw boxes [n, 4] like a proposal method's: every size from 16 px to the image, log-uniform."""
    sides = np.exp(rng.uniform(np.log(16), np.log([width, height]), (num, 2)))
    corner = rng.uniform(0, 1, (num, 2)) * ([width, height] - sides)
    return np.concatenate([corner, corner + sides], axis=1).astype(np.float32)


def reference(name: str) -> ModuleType:
    """Return a module of literal NumPy oracles, which the tests of a checkout hold.

    Raises:
      DataError: if this is not a checkout.
    """
    root = Path(__file__).resolve().parents[3]
    if not (root / "tests" / "oracles" / f"{name}.py").is_file():
        raise DataError(
            f"{root}: there is no tests/oracles/{name}.py, which the measurement compares with; run it from a checkout "
            "of the repository"
        )
    if str(root) not in sys.path:
        sys.path.append(str(root))
    return importlib.import_module(f"tests.oracles.{name}")


# ---------------------------------------------------------------------------------------------------
# RoI max pooling


def bin_masks(box: jax.Array, num_rows: int, num_columns: int) -> tuple[jax.Array, jax.Array]:
    """Return which rows [p, h] and columns [p, w] of the map belong to each bin of a box."""
    edges = jnp.floor(jnp.maximum(box, 0) / STRIDE + 0.5).astype(jnp.int32)

    def along(low: jax.Array, high: jax.Array, cells: int) -> jax.Array:
        length = jnp.maximum(high - low + 1, 1)
        i = jnp.arange(BINS)
        start, end = low + i * length // BINS, low - (-(i + 1) * length // BINS)
        cell = jnp.arange(cells)[None, :]
        return (cell >= start[:, None]) & (cell < end[:, None])

    return along(edges[1], edges[3], num_rows), along(edges[0], edges[2], num_columns)


def masked_pool(features: jax.Array, boxes: jax.Array) -> jax.Array:
    """Pool [h, w, d] over boxes [r, 4] to [r, p, p, d]: masked maxima over rows, then columns, RoI by RoI."""

    @jax.checkpoint
    def one_box(box: jax.Array) -> jax.Array:
        rows, columns = bin_masks(box, *features.shape[:2])
        strips = jnp.where(rows[:, :, None, None], features[None], -jnp.inf).max(
            axis=1
        )  # [p, w, d]
        inside = columns[None, :, :, None]
        pooled = jnp.where(inside, strips[:, None], -jnp.inf).max(axis=2)
        return jnp.where(jnp.isfinite(pooled), pooled, 0.0)

    return jax.lax.map(one_box, boxes)


def roi_pooling(*, small: bool, repeats: int) -> list[Measure]:
    """Time RoI max pooling, forward and backward, against a masked maximum done RoI by RoI."""
    num_boxes, channels, height, width = (20, 8, 12, 16) if small else (1000, 512, 48, 64)
    num_slow = 20  # `lax.map` is a loop: its time is proportional to the boxes
    rng = np.random.default_rng(0)
    features = jnp.asarray(rng.standard_normal((height, width, channels)), jnp.float32)
    boxes = jnp.asarray(random_boxes(rng, num_boxes, height * STRIDE, width * STRIDE))

    def fast(features: jax.Array, boxes: jax.Array) -> jax.Array:
        mask, size = jnp.ones((1, len(boxes)), bool), jnp.array([[height, width]])
        pool = functools.partial(roi_max_pool, output_size=BINS, spatial_scale=1 / STRIDE)
        return pool(features[None], boxes[None], mask, size)[0]

    def both_ways(pool, num: int) -> tuple[float, float, jax.Array]:
        def step(features: jax.Array, boxes: jax.Array, grad: jax.Array):
            pooled, pullback = jax.vjp(lambda x: pool(x, boxes), features)
            return pooled, pullback(grad)[0]

        grad = jnp.ones((num, BINS, BINS, channels))
        program = compiled(step, features, boxes[:num], grad)
        rounds = repeats if num == num_boxes else 1
        time = seconds(program, features, boxes[:num], grad, repeats=rounds)
        pooled, _ = program(features, boxes[:num], grad)
        return time * num_boxes / num, working_mib(program), pooled

    fast_time, fast_memory, pooled = both_ways(fast, num_boxes)
    subject = f"{num_boxes} boxes, {channels} channels, {width}x{height} map"
    result = [
        Measure("RoI max pooling, forward + backward", 1e3 * fast_time, "ms", subject),
        Measure("  working memory", fast_memory, "MiB"),
    ]
    time, memory, reference = both_ways(masked_pool, num_slow)
    difference = float(jnp.max(jnp.abs(reference - pooled[:num_slow])))
    note = f"timed on {num_slow} boxes; results differ by {difference:g}"
    result += [
        Measure("masked maximum, rows then columns, RoI by RoI", 1e3 * time, "ms", note),
        Measure("  working memory", memory, "MiB"),
        Measure("  RoI max pooling is faster by", time / fast_time, "x"),
    ]
    return result


# ---------------------------------------------------------------------------------------------------
# Non-maximum suppression


def suppression(*, small: bool, repeats: int) -> list[Measure]:
    """Time NMS of 2 000 boxes against a literal walk and the usual NumPy form."""
    oracle = reference("nms")
    num, iou_thr = (50 if small else 2000), 0.3
    rng = np.random.default_rng(0)
    boxes = random_boxes(rng, num, 480, 640)
    scores, mask = rng.random(num).astype(np.float32), np.ones(num, bool)
    arguments = jnp.asarray(boxes), jnp.asarray(scores), jnp.asarray(mask)
    program = compiled(lambda *image: nms_mask(*image, iou_thr=iou_thr), *arguments)
    fast = seconds(program, *arguments, repeats=repeats)
    keep = np.asarray(program(*arguments))
    literal = seconds(oracle.nms_mask, boxes, scores, mask, iou_thr, repeats=1, warm_up=False)
    order = np.argsort(-scores, kind="stable")
    usual = seconds(lambda: greedy_nms(boxes[order], iou_thr=iou_thr), repeats=repeats)
    same = bool((keep == oracle.nms_mask(boxes, scores, mask, iou_thr)).all())
    same &= set(order[greedy_nms(boxes[order], iou_thr=iou_thr)]) == set(np.flatnonzero(keep))
    note = f"{num} boxes, {keep.sum()} kept, IoU > {iou_thr}; {'same' if same else 'NOT the same'} answers"
    return [
        Measure("NMS", 1e3 * fast, "ms", note),
        Measure("literal walk in Python", 1e3 * literal, "ms"),
        Measure("  NMS is faster by", literal / fast, "x"),
        Measure("greedy NumPy, vectorized over boxes", 1e3 * usual, "ms"),
        Measure("  NMS is faster by", usual / fast, "x"),
    ]


# ---------------------------------------------------------------------------------------------------
# Mining


def mining_image(num: int, num_classes: int, num_features: int, positives: tuple[int, ...]):
    """Draw one image as mining sees it: scores, boxes, mask, labels and features after dropout."""
    rng = np.random.default_rng(0)
    logits = 2 * rng.standard_normal((num, num_classes))
    scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = np.zeros(num_classes, np.int32)
    labels[list(positives)] = 1
    features = np.maximum(rng.standard_normal((num, num_features)), 0)
    features *= 2 * (rng.random(features.shape) < 0.5)
    boxes = random_boxes(rng, num, 480, 640)
    return scores.astype(np.float32), boxes, np.ones(num, bool), labels, features.astype(np.float32)


def mining(*, small: bool, repeats: int) -> list[Measure]:
    """Time OIM's mining of one image and stage against the literal NumPy oracle."""
    oracle = reference("mining")
    num, num_features = (40, 16) if small else (2000, 4096)
    image = mining_image(num, 20, num_features, positives=(1, 6, 11, 14))
    scores, boxes, _, labels, features = image
    arguments = tuple(jnp.asarray(x) for x in image)
    alpha, max_nodes = 5.0, 64

    def literal_mining() -> dict:
        return oracle.assign(oracle.oim(scores, boxes, labels, features, alpha), scores, boxes)

    oim = Oim(
        backbone=TinyNet(),
        num_classes=20,
        max_classes=4,
        alpha=((0, alpha),),
        max_nodes=max_nodes,
    )
    program = compiled(lambda *x: oim.mine(Source.of(*x), jnp.int32(0)), *arguments)
    fast = seconds(program, *arguments, repeats=repeats)
    mined = program(*arguments)
    literal = seconds(literal_mining, repeats=1, warm_up=False)
    expected = [box.index for box in oracle.oim(scores, boxes, labels, features, alpha)]
    same = np.asarray(mined.pseudo.index)[np.asarray(mined.pseudo.mask)].tolist() == expected
    note = f"{num} proposals, 20 classes, 4 positive, {num_features} features; "
    note += f"{len(expected)} boxes mined, {'the same' if same else 'NOT the same'} by both"
    return [
        Measure("OIM mining", 1e3 * fast, "ms", note),
        Measure("  working memory", working_mib(program), "MiB"),
        Measure("literal oracle in NumPy", 1e3 * literal, "ms"),
        Measure("  OIM mining is faster by", literal / fast, "x"),
    ]


def laptop_backbones(*, small: bool, repeats: int) -> list[Measure]:
    """Time the forward passes of one photograph at the shorter sides that the small sets use."""

    def forward(backbone: Backbone, image: jax.Array) -> jax.Array:
        size = jnp.array([image.shape[1:3]], jnp.int32)
        return backbone.last_map(backbone.network_input(image, size)).features

    result = []
    for side in (64,) if small else (384, 448):
        image = jnp.full((1, side, side * 4 // 3, 3), 127, jnp.uint8)
        for backbone in (SqueezeNet(), EfficientNetLite0()):
            init = jax.jit(functools.partial(backbone.init, method=forward))
            params = init(jax.random.key(0), image)
            program = compiled(functools.partial(backbone.apply, method=forward), params, image)
            time = seconds(program, params, image, repeats=5 * repeats)
            note = f"{side}x{side * 4 // 3} pixels"
            result.append(Measure(backbone.architecture, 1e3 * time, "ms", note))
    return result


# ---------------------------------------------------------------------------------------------------
# Dense CRF


def scene(height: int, width: int, num_labels: int) -> tuple[jax.Array, jax.Array]:
    """Draw probabilities [1, h, w, k] of stripes that noise has spoiled, and an image of the stripes."""
    rng = np.random.default_rng(0)
    stripe = (np.arange(width) * num_labels // width)[None, :]
    labels = (stripe + (np.arange(height) * 3 // height)[:, None]) % num_labels
    image = rng.uniform(0, 255, (num_labels, 3))[labels] + rng.normal(0, 8, (height, width, 3))
    logits = 3.0 * np.eye(num_labels)[labels] + rng.normal(0, 1, (height, width, num_labels))
    p = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    pixels = np.clip(image, 0, 255).astype(np.uint8)
    return jnp.asarray(p, jnp.float32)[None], jnp.asarray(pixels)[None]


def conditional_random_field(*, small: bool, repeats: int) -> list[Measure]:
    """Time the dense CRF on a map, exactly, and on a test image, upsampled from a grid."""
    options = CrfOptions(max_side=16 if small else 64)
    map_shape, image_shape = ((16, 16), (40, 50)) if small else ((64, 64), (375, 500))
    num_labels, result = 21, []
    for name, solve, shape in (
        ("dense CRF {}, 21 classes, 10 iterations", dense_crf, map_shape),
        ("dense CRF of a {} test image, 21 classes", dense_crf_upsampled, image_shape),
    ):
        arguments = (*scene(*shape, num_labels), jnp.array([shape], jnp.int32))
        program = compiled(functools.partial(solve, options=options), *arguments)
        time = seconds(program, *arguments, repeats=repeats)
        result += [
            Measure(name.format(f"{shape[1]}x{shape[0]}"), 1e3 * time, "ms"),
            Measure("  working memory", working_mib(program), "MiB"),
        ]
    return result
