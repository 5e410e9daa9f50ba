"""VGG16 configurations at full size: two updates and a prediction on random pixels and weights, in 24 GiB.

OIM with the reweighted loss has the largest training scale, 2000 proposals and its ten-view test's largest
canvas. The other methods differ in mining and losses alone: they take the smallest scale and 500 proposals.
About ten minutes on two cores, most of it fully connected layers; memory peaks near 10 GiB.
"""

import importlib
import resource
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsod_jax import build
from wsod_jax.data.transforms import Canvases
from wsod_jax.train.sharding import make_mesh, put
from wsod_jax.train.state import init_state
from wsod_jax.train.step import make_train_step
from wsod_jax.types import Batch

NUM_CLASSES = 20
SIZES = {  # configuration: (scale's position among the sorted ones, proposals)
    "wsddn_vgg16_voc07": (0, 500),
    "oicr_vgg16_voc07": (0, 500),
    "pcl_vgg16_voc07": (0, 500),
    "mist_vgg16_voc07": (0, 500),
    "oim_vgg16_voc07": (0, 500),
    "oim_ir_vgg16_voc07": (-1, 2000),
}


def random_batch(canvases: Canvases, scale: int, rows: int, seed: int) -> Batch:
    """Return one photograph-shaped image of noise with boxes of all sizes; a tenth of the rows is padding."""
    rng = np.random.default_rng(seed)
    view = canvases.view(375, 500, scale)
    height, width = view.size
    image = np.zeros((1, *view.canvas, 3), np.uint8)
    image[0, :height, :width] = rng.integers(0, 256, (height, width, 3))
    corners = rng.uniform(0, [width, height] * 2, (rows, 4))
    boxes = np.concatenate(
        [np.minimum(corners[:, :2], corners[:, 2:]), np.maximum(corners[:, :2], corners[:, 2:])], 1
    )
    labels = np.zeros((1, NUM_CLASSES), np.int32)
    labels[0, rng.choice(NUM_CLASSES, 2, replace=False)] = 1
    return Batch(
        image=image,
        image_size=np.array([view.size], np.int32),
        image_mask=np.ones(1, bool),
        image_index=np.array([seed], np.int32),
        labels=labels,
        proposals=boxes[None].astype(np.float32),
        proposal_mask=np.arange(rows)[None] < rows - rows // 10,
        representative=np.arange(rows, dtype=np.int32)[None],
    )


def peak_gib() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**30 if sys.platform == "darwin" else peak / 2**20


def check_training(config, scale, rows):
    """Do two updates; return the state."""
    settings, mesh = build.train_settings(config), make_mesh(1)
    method = build.method(config, num_classes=NUM_CLASSES, max_classes=4)
    tx, schedule = build.optimizer(config)
    batches = [random_batch(settings.canvases, scale, rows, seed) for seed in (1, 2)]
    state = init_state(method, tx, seed=0, batch=batches[0], mesh=mesh)
    before = jax.device_get(state.params["backbone"])
    step = make_train_step(method, tx, seed=0, mesh=mesh, schedule=schedule)
    for batch in batches:
        state, metrics = step.update(state, [put(batch, mesh)])
        for name, value in jax.device_get(metrics).items():
            assert np.isfinite(value), name
        assert metrics["loss"] > 0 and metrics["grad_norm"] > 0
        assert metrics["proposals"] == rows - rows // 10
    assert step.num_compilations() == 1
    after = jax.device_get(state.params["backbone"])
    for layer, arrays in before.items():
        changed = np.any(arrays["kernel"] != after[layer]["kernel"])
        assert changed == (not layer.startswith(("conv1", "conv2"))), layer
    return method, state


def check_prediction(config, method, state, rows):
    """Predict two views of one image on the largest canvas of the test; compile once."""
    settings = build.eval_settings(config)
    predict = jax.jit(method.predict)
    for seed in (3, 4):
        batch = random_batch(settings.canvases("map"), max(settings.scales), rows, seed)
        found = predict(state.params, state.extras, jax.tree.map(jnp.asarray, batch))
        scores, real = np.asarray(found.scores), batch.proposal_mask
        assert scores.shape == (1, rows, NUM_CLASSES) and np.isfinite(scores).all()
        assert (scores[real] >= 0).all() and scores[real].any() and not scores[~real].any()
        assert (scores.sum(axis=-1) <= 1 + 1e-5).all()
        assert np.isfinite(found.image_scores).all()
    assert predict._cache_size() == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", list(SIZES))
def test_two_updates_and_a_prediction(name):
    position, rows = SIZES[name]
    config = importlib.import_module(f"configs.{name}").get_config()
    config.proposals.max_proposals = rows
    config.optim.learning_rate = (
        1e-7  # at the published rate random weights are not finite for long
    )
    scale = sorted(config.train.scales)[position]
    method, state = check_training(config, scale, rows)
    if name == "oim_ir_vgg16_voc07":
        check_prediction(config, method, state, rows)
    assert peak_gib() < 24
