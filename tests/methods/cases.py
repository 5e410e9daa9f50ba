"""Very small networks, batches and compiled functions that the tests of all methods share."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from wsod_jax.methods.mist import Mist
from wsod_jax.methods.oicr import Oicr
from wsod_jax.methods.oim import Oim
from wsod_jax.methods.pcl import Pcl
from wsod_jax.methods.regression import Regression
from wsod_jax.methods.wsddn import Wsddn
from wsod_jax.nn.box_head import BoxHead
from wsod_jax.nn.tiny import TinyNet
from wsod_jax.types import Batch, Views

NUM_CLASSES, NUM_PROPOSALS, CANVAS = 3, 16, (48, 64)
KEY = jax.random.key(5)
STEP = jnp.zeros((), jnp.int32)

REGRESSED = Regression(beta=0.5, mined_boxes="regressed")

# Every method as its config builds it, on one network; `wsddn` with the spatial regularizer too, and those with
# refinement heads once more with box regression.
METHODS = {
    "wsddn": functools.partial(Wsddn, spatial_weight=0.01),
    "oicr": functools.partial(Oicr, ignore_iou_thr=0.1),
    "pcl": Pcl,
    "mist": functools.partial(Mist, top_fraction=0.3),
    "oim": functools.partial(Oim, max_nodes=6),
    "oicr_reg": functools.partial(Oicr, regression=REGRESSED),
    "mist_reg": functools.partial(Mist, top_fraction=0.3, regression=Regression()),
    "pcl_reg": functools.partial(Pcl, regression=REGRESSED),
    "oim_reg": functools.partial(Oim, max_nodes=6, regression=REGRESSED),
}
HEADS = {
    "midn": 10.0,
    "refine": 40.0,
    "refine_boxes": 1000.0,
}  # how much larger than drawn: no saturation, no near-ties


def build(
    name: str,
    *,
    max_classes=NUM_CLASSES,
    options=None,
    dropout_rate=0.0,
    frozen=(),
    dtype=jnp.float32,
):
    """Make a method on a tiny network; `options` are its own."""
    return METHODS[name](
        backbone=TinyNet(widths=(4, 4, 8, 8), frozen=frozen, dtype=dtype),
        num_classes=NUM_CLASSES,
        max_classes=max_classes,
        box_head=BoxHead(dims=(16, 16), dropout_rate=dropout_rate, dtype=dtype),
        roi_size=3,
        **(options or {}),
    )


@functools.cache
def params(name: str) -> dict:
    """Random parameters, the heads' large enough that scores are far from equal."""
    drawn, extras = build(name).init(jax.random.key(1), make_batch(0))
    assert extras == {}
    factors = {key: HEADS.get(key, 1.0) for key in drawn}
    return jax.tree.map(
        lambda factor, tree: jax.tree.map(lambda x: factor * x, tree), factors, drawn
    )


def distinct_boxes(rng, count: int, height: int, width: int) -> np.ndarray:
    """Boxes that no two pool the same cells of a stride-8 map, and so get scores of their own.

    Two to three cells long, so that some overlap much and others do not at all.
    """
    cells = set()
    while len(cells) < count:
        w, h = rng.integers(2, 4, 2)
        x, y = rng.integers(0, width // 8 - w + 1), rng.integers(0, height // 8 - h + 1)
        cells.add((int(x), int(y), int(x + w), int(y + h)))
    corners = 8.0 * np.array(sorted(cells)) + rng.uniform(-2, 2, (count, 4))
    return np.clip(rng.permutation(corners), 0, [width, height] * 2).astype(np.float32)


def whole_views(sizes) -> Views:
    """Views of images [b] of these (height, width) that were neither resized nor mirrored."""
    sizes = jnp.asarray(sizes, jnp.int32)
    count = len(sizes)
    return Views(
        scale=jnp.ones((count, 2)),
        offset=jnp.zeros((count, 2), jnp.int32),
        flipped=jnp.zeros(count, bool),
        original_size=sizes,
    )


def predict_function(method):
    """Compile (params, extras, batch) -> all that the method predicts."""
    return jax.jit(lambda p, extras, batch: method.predict(p, extras, batch, method.outputs))


def make_batch(seed: int, *, images=2, rows=NUM_PROPOSALS, labels=None) -> Batch:
    """Random pixels, boxes and labels on one canvas; the second image is smaller than the canvas."""
    rng = np.random.default_rng(seed)
    height, width = CANVAS
    sizes = np.array([CANVAS, (40, 56)] * images, np.int32)[:images]
    boxes = np.stack([distinct_boxes(rng, rows, *size) for size in sizes])
    inside = np.arange(height)[None, :, None] < sizes[:, :1, None]
    inside = inside & (np.arange(width)[None, None, :] < sizes[:, 1:, None])
    image = rng.integers(0, 256, (images, height, width, 3)) * inside[..., None]
    if labels is None:
        labels = np.array([[1, 0, 1], [0, 1, 0]] * images)[:images]
    return Batch(
        image=jnp.asarray(image, jnp.float32),
        image_size=jnp.asarray(sizes),
        image_mask=jnp.ones(images, bool),
        image_index=jnp.arange(7, 7 + images, dtype=jnp.int32),
        views=whole_views(sizes),
        labels=jnp.asarray(labels, jnp.int32),
        proposals=jnp.asarray(boxes),
        proposal_mask=jnp.ones((images, rows), bool).at[:, rows - 2].set(False),
        representative=jnp.tile(jnp.arange(rows, dtype=jnp.int32), (images, 1)),
    )


def only(batch: Batch, image: int) -> Batch:
    """Return one image of a batch, as a batch."""
    return jax.tree.map(lambda x: x[image : image + 1], batch)


def changed(batch: Batch, **fields) -> Batch:
    """Replace fields by arrays of the same types."""
    return dataclasses.replace(
        batch, **{k: jnp.asarray(v, getattr(batch, k).dtype) for k, v in fields.items()}
    )


def loss_function(method):
    """Compile (params, batch, key, step) -> (output, gradient of the objective)."""

    def objective(values, batch, key, step):
        out = method.loss(values, {}, batch, key, step)
        return sum(term.mean() for term in out.terms.values()), out

    @jax.jit
    def run(values, batch, key=KEY, step=STEP):
        grads, out = jax.grad(objective, has_aux=True)(values, batch, key, step)
        return out, grads

    return run


def means(terms) -> dict[str, float]:
    return {name: float(term.mean()) for name, term in terms.items()}


def assert_finite(tree) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            assert np.isfinite(np.asarray(leaf)).all(), jax.tree_util.keystr(path)


def assert_close(a, b, tolerance=1e-5) -> None:
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True
    ):
        np.testing.assert_allclose(
            x, y, rtol=tolerance, atol=tolerance, err_msg=jax.tree_util.keystr(path)
        )
