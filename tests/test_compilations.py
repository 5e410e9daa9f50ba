"""Five-scale training and ten-view evaluation compile as many programs as the formula says."""

import dataclasses

import jax
import pytest

from wsod_jax.commands.benchmarks.input_pipeline import PUBLISHED_SCALES, jpeg_set
from wsod_jax.data.input.loading import Loading
from wsod_jax.data.input.pipeline import train_batches, view_batches
from wsod_jax.data.input.plan import Order
from wsod_jax.data.input.transforms import Canvases
from wsod_jax.evaluation.decoding import Decoding
from wsod_jax.evaluation.inference import Model, infer
from wsod_jax.methods.oim import Oim
from wsod_jax.nn.box_head import BoxHead
from wsod_jax.nn.tiny import TinyNet
from wsod_jax.train.optim import Optimizer
from wsod_jax.train.sharding import make_mesh, put
from wsod_jax.train.state import init_state
from wsod_jax.train.step import TrainStep

THREADS = Loading(loader="threads")


@pytest.mark.slow
def test_compilations_equal_the_formula():
    """Scales are a tenth of the published ones: the same number of canvases in a tenth of the time."""
    images, proposals = jpeg_set(4, 20, shrink=10)  # of both orientations
    canvases = Canvases(tuple(scale // 10 for scale in PUBLISHED_SCALES), multiple=4)
    head = BoxHead((16,))
    method = Oim(backbone=TinyNet(), num_classes=4, max_classes=4, box_head=head, max_nodes=4)
    tx, _ = Optimizer(learning_rate=1e-3).transformation(1)
    mesh = make_mesh(1)
    stream = train_batches(images, proposals, canvases=canvases, order=Order(), loading=THREADS)
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

    traced = []

    def predict(params, extras, batch, want):
        traced.append(batch.image.shape)
        return method.predict(params, extras, batch, want)

    model = Model(method, state.params, {}, jax.jit(predict, static_argnums=3))
    for resize in (
        "short",
        "long",
    ):  # mAP by the shorter side, CorLoc by the longer one, as published
        sides = dataclasses.replace(canvases, resize=resize)
        views = view_batches(images, proposals, canvases=sides, loading=THREADS)
        assert len(list(infer(model, views, [method.outputs] * 10, Decoding()))) == len(images)
    assert train_step.num_compilations() == len(traced) == 5 * 2
    assert 2 * len(canvases.shapes()) == 2 * 5 * 2 <= 24
