"""Random and hand-made images for the miners' tests, and the comparison with the oracles."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from tests.oracles import mining as oracle
from wsod_jax.nn.tiny import TinyNet
from wsod_jax.types import Source


def random_boxes(rng, count, size=100.0):
    """Boxes around a few objects, so that they overlap, and a rest that is spread out."""
    centers = rng.uniform(0, size, (count, 2))
    objects = rng.uniform(0, size, (4, 2))
    near = rng.random(count) < 0.6
    centers[near] = objects[rng.integers(0, 4, near.sum())] + rng.normal(0, 3, (near.sum(), 2))
    half = rng.uniform(4, 12, (count, 2))
    return np.concatenate([centers - half, centers + half], axis=1).astype(np.float32)


def random_image(seed, count=40, num_classes=5, num_positive=2, width=8):
    """Scores, boxes, labels and features of one image, all proposals real, no ties."""
    rng = np.random.default_rng(seed)
    boxes = random_boxes(rng, count)
    scores = rng.random((count, num_classes)).astype(np.float32) ** 3
    labels = np.zeros(num_classes, np.int32)
    labels[rng.choice(num_classes, num_positive, replace=False)] = 1
    features = rng.random((count, width)).astype(np.float32)
    return scores, boxes, labels, features


def pad(arrays, extra):
    """Append `extra` rows of NaN to arrays that lead with proposals."""
    return [np.pad(x, ((0, extra), (0, 0)), constant_values=np.nan) for x in arrays]


def to_jax(*arrays):
    return tuple(jnp.asarray(x) for x in arrays)


def real_boxes(mined):
    """The used slots of `Mined.pseudo` as (index, class, score, is_seed), in order."""
    pseudo = mined.pseudo
    used = np.asarray(pseudo.mask)
    fields = (pseudo.index, pseudo.classes, pseudo.scores, pseudo.is_seed)
    return list(zip(*(np.asarray(x)[used] for x in fields), strict=True))


def check(mined, expected, scores, boxes, **assign_options):
    """Compare a miner's boxes and targets with the oracle's."""
    found = real_boxes(mined)
    assert [row[:2] for row in found] == [(box.index, box.cls) for box in expected]
    assert [row[3] for row in found] == [box.is_seed for box in expected]
    np.testing.assert_allclose([row[2] for row in found], [box.weight for box in expected])
    targets = oracle.assign(expected, scores, boxes, **assign_options)
    count = len(boxes)
    slots = np.flatnonzero(np.asarray(mined.pseudo.mask))  # the oracle counts used slots only
    targets["matched_idx"] = np.array([slots[n] if n >= 0 else -1 for n in targets["matched_idx"]])
    for name, values in targets.items():
        np.testing.assert_allclose(np.asarray(getattr(mined.targets, name))[:count], values, 1e-6)
    assert not np.asarray(mined.targets.weights)[count:].any()
    assert not np.asarray(mined.targets.labels)[count:].any()
    for field in ("boxes", "scores", "index"):
        values = np.asarray(getattr(mined.pseudo, field))
        assert np.isfinite(values).all()
    np.testing.assert_array_equal(
        np.asarray(mined.pseudo.boxes)[slots], boxes[[row[0] for row in found]].reshape(-1, 4)
    )


def make(cls, *, num_classes=5, max_classes=5, **options):
    """Make a method of which only mining and loss are of interest."""
    return cls(backbone=TinyNet(), num_classes=num_classes, max_classes=max_classes, **options)


def mine_one(cls, scores, boxes, mask, labels, features=None, **options):
    """Mine one image and stage, at step 0, by the method of these options."""
    source = Source.of(scores, boxes, mask, labels, features)
    return make(cls, **options).mine(source, jnp.zeros((), jnp.int32))


@functools.cache
def _compiled(cls, options):
    return jax.jit(functools.partial(mine_one, cls, **dict(options)))


def mine(cls, *arrays, **options):
    """Mine as `mine_one` does, compiled once per method and options."""
    return _compiled(cls, tuple(sorted(options.items())))(*arrays)
