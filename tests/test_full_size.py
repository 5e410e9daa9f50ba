"""Published configurations at full size: two updates and a prediction on random pixels and weights, in 24 GiB.

OIM with the reweighted loss has the largest training scale, 2000 proposals and its ten-view test's largest
canvas. The other methods with proposals differ in mining and losses alone: they take the smallest scale and 500
proposals. SPN has no proposals, and its largest maps. One image per batch.
About ten minutes on two cores, most of it fully connected layers; memory peaks near 10 GiB.
"""

import functools
import importlib
import resource
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsod_jax import build
from wsod_jax.data.input.transforms import Canvases
from wsod_jax.nn.backbone import is_frozen
from wsod_jax.train.sharding import make_mesh, put
from wsod_jax.train.state import init_state
from wsod_jax.train.step import TrainStep
from wsod_jax.types import Batch, Views

NUM_CLASSES = 20
SIZES = {  # configuration: (scale's position among the sorted ones, proposals, or None for none)
    "wsddn_vgg16_voc07": (0, 500),
    "oicr_vgg16_voc07": (0, 500),
    "pcl_vgg16_voc07": (0, 500),
    "mist_vgg16_voc07": (0, 500),
    "oim_vgg16_voc07": (0, 500),
    "oim_ir_vgg16_voc07": (-1, 2000),
    "spn_vgg16_voc07:560": (0, None),
    "spn_googlenet_voc07": (0, None),
}
PREDICTING = ("oim_ir_vgg16_voc07", "spn_vgg16_voc07:560", "spn_googlenet_voc07")


def random_batch(canvases: Canvases, scale: int, rows: int | None, seed: int) -> Batch:
    """Return one photograph-shaped image of noise, warped where the configuration warps."""
    rng = np.random.default_rng(seed)
    view = canvases.view(375, 500, scale)
    height, width = view.size
    image = np.zeros((1, *view.canvas, 3), np.uint8)
    image[0, :height, :width] = rng.integers(0, 256, (height, width, 3))
    labels = np.zeros((1, NUM_CLASSES), np.int32)
    labels[0, rng.choice(NUM_CLASSES, 2, replace=False)] = 1
    batch = Batch(
        image=image,
        image_size=np.array([view.size], np.int32),
        image_mask=np.ones(1, bool),
        image_index=np.array([seed], np.int32),
        labels=labels,
        views=Views(
            scale=np.ones((1, 2), np.float32),
            offset=np.zeros((1, 2), np.int32),
            flipped=np.zeros(1, bool),
            original_size=np.array([view.size], np.int32),
        ),
    )
    return batch if rows is None else with_proposals(batch, rows, rng)


def with_proposals(batch: Batch, rows: int, rng: np.random.Generator) -> Batch:
    """Return the batch with boxes of all sizes; a tenth of the rows is padding."""
    height, width = batch.image_size[0]
    corners = rng.uniform(0, [width, height] * 2, (rows, 4))
    boxes = np.concatenate(
        [np.minimum(corners[:, :2], corners[:, 2:]), np.maximum(corners[:, :2], corners[:, 2:])], 1
    )
    return batch.replace(
        proposals=boxes[None].astype(np.float32),
        proposal_mask=np.arange(rows)[None] < rows - rows // 10,
        representative=np.arange(rows, dtype=np.int32)[None],
    )


def peak_gib() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**30 if sys.platform == "darwin" else peak / 2**20


def check_training(config, scale, rows):
    """Do two updates; return the state."""
    mesh = make_mesh(1)
    method = build.method(config, num_classes=NUM_CLASSES, max_classes=4, max_targets=1)
    tx, schedule = build.optimizer(config)
    batches = [random_batch(config.train.canvases, scale, rows, seed) for seed in (1, 2)]
    state = init_state(method, tx, seed=0, batch=batches[0], mesh=mesh)
    before = jax.device_get(state.params["backbone"])
    step = TrainStep(method, tx, seed=0, mesh=mesh, schedule=schedule)
    for batch in batches:
        state, metrics = step.update(state, [put(batch, mesh)])
        for name, value in jax.device_get(metrics).items():
            assert np.isfinite(value), name
        assert metrics["loss"] > 0 and metrics["grad_norm"] > 0
        if rows is not None:
            assert metrics["proposals"] == rows - rows // 10
    assert step.num_compilations() == 1
    after = jax.device_get(state.params["backbone"])
    for layer, arrays in before.items():
        leaves = zip(*map(jax.tree.leaves, (arrays, after[layer])), strict=True)
        moved = any(np.any(a != b) for a, b in leaves)
        assert moved == (not is_frozen(layer, config.backbone.frozen)), layer
    return method, state


def check_scores(scores, real):
    """Scores of proposals are probabilities, and 0 in padded rows."""
    assert scores.shape == (*real.shape, NUM_CLASSES) and np.isfinite(scores).all()
    assert (scores[real] >= 0).all() and scores[real].any() and not scores[~real].any()
    assert (scores.sum(axis=-1) <= 1 + 1e-5).all()


def check_maps(maps):
    """Activations and proposal map are of one size; the map has mean 1, and is not uniform."""
    cells = maps.proposal_map.shape[1:]
    assert maps.cams.shape == (1, *cells, NUM_CLASSES)
    assert tuple(np.asarray(maps.size)[0]) == tuple(np.asarray(maps.proposal_size)[0]) == cells
    assert np.isfinite(maps.cams).all() and np.ptp(maps.cams) > 0
    mass = np.asarray(maps.proposal_map)
    assert (mass >= 0).all() and abs(mass.mean() - 1) < 1e-4 and np.ptp(mass) > 0


def check_prediction(config, method, state, rows):
    """Predict two views of one image on the largest canvas of the test; compile once."""
    settings = config.eval
    traced = []

    @functools.partial(jax.jit, static_argnums=3)
    def predict(*arguments):
        traced.append(arguments[-1])
        return method.predict(*arguments)

    for seed in (3, 4):
        batch = random_batch(settings.canvases, max(settings.scales), rows, seed)
        arrays = jax.tree.map(jnp.asarray, batch)
        found = predict(state.params, state.extras, arrays, method.outputs)
        assert np.isfinite(found.image_scores).all()
        if rows is None:
            check_maps(found.maps)
        else:
            check_scores(np.asarray(found.scores), batch.proposal_mask)
    assert len(traced) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", list(SIZES))
def test_two_updates_and_a_prediction(name):
    position, rows = SIZES[name]
    file, _, variant = name.partition(":")
    get_config = importlib.import_module(f"configs.{file}").get_config
    config = get_config(variant) if variant else get_config()
    if rows is not None:
        config.proposals.max_proposals = rows
    config.optim.learning_rate = (
        1e-7  # at the published rate random weights are not finite for long
    )
    config = build.read_config(config)
    scale = sorted(config.train.scales)[position]
    method, state = check_training(config, scale, rows)
    if name in PREDICTING:
        check_prediction(config, method, state, rows)
    assert peak_gib() < 24
