"""Every method sees jittered pixels, in each program of an update, and none of them twice."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from wsod_jax.ops.color import jitter_hsv, jitter_rgb
from wsod_jax.train.host_stage import add_cues
from wsod_jax.train.sharding import fetch, local_rows, make_mesh, put
from wsod_jax.train.state import init_state
from wsod_jax.train.step import TrainStep
from wsod_jax.types import Batch, FeatureMap, LossOutput, Photometric, Term, Views

JITTERS = {"hsv": jitter_hsv, "rgb": jitter_rgb}


@dataclasses.dataclass(frozen=True)
class Colors:
    """Its loss is w times the mean pixel, differentiated with respect to the image as well."""

    streams: tuple[str, ...] = ()

    def init(self, key, batch):
        del key, batch
        return {"w": jnp.ones(3)}, {}

    def loss(self, params, extras, batch, key, step):
        del key, step
        parts = [batch[name] for name in self.streams] or [batch]
        terms = {}
        for name, part in zip(self.streams or ("colors",), parts, strict=True):
            assert part.views.photometric is None and part.image.dtype == jnp.float32
            mask = part.image_mask.astype(jnp.float32)

            def score(image):
                return jnp.sum(image * params["w"][None, None, None, :], axis=(1, 2, 3))

            # Quadratic in the pixels, so that the gradient with respect to them shows which ones it saw.
            gradient = jax.grad(lambda image, score=score: jnp.sum(score(image) ** 2) / 2)(
                part.image
            )
            terms[name] = Term(score(part.image) * mask, mask, name)
        figures = {"image": part.image, "gradient": gradient}
        return LossOutput(terms, extras, {}, figures=figures)


class Asking(Colors):
    """Asks for its pixels."""

    def propose(self, params, extras, batch, key, step):
        del params, extras, key, step
        assert batch.views.photometric is None
        return {"image": batch.image}, batch


class Echo:
    """Answers with what was asked."""

    def __call__(self, request, image_index, image_mask):
        return request


def make(seed, space, rows=4):
    rng = np.random.default_rng(seed)
    sizes = np.array([[8, 12], [6, 10]] * rows, np.int32)[:rows]
    image = rng.integers(0, 256, (rows, 8, 12, 3)).astype(np.uint8)
    image[1::2, 6:], image[1::2, :, 10:] = 0, 0
    factors = rng.uniform(1 / 1.5, 1.5, (rows, 2)).astype(np.float32)
    return Batch(
        image=image,
        image_size=sizes,
        image_mask=np.ones(rows, bool),
        image_index=np.arange(rows, dtype=np.int32),
        views=Views(
            scale=np.ones((rows, 2), np.float32),
            offset=np.zeros((rows, 2), np.int32),
            flipped=np.zeros(rows, bool),
            original_size=sizes,
            photometric=Photometric(factors, space),
        ),
    )


def jittered(batch):
    """The same batch, jittered before it comes."""
    photometric = batch.views.photometric
    image = np.asarray(JITTERS[photometric.space](batch.image, photometric.factors))
    return batch.replace(image=image, views=batch.views.replace(photometric=None))


def build(example, *, method=None, devices=1, accumulate=1):
    method, mesh, tx = method or Colors(), make_mesh(devices), optax.sgd(1e-3)
    state = init_state(method, tx, seed=0, batch=example, mesh=mesh)
    return state, TrainStep(method, tx, seed=0, mesh=mesh, accumulate=accumulate)


def updated(batches, **options):
    state, step = build(batches[0], accumulate=len(batches), **options)
    with jax.transfer_guard("disallow"):
        state, metrics = step.update(state, [put(batch, step.mesh) for batch in batches])
    return fetch((state.params, metrics))


def assert_close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4), a, b)


@pytest.mark.parametrize("space", JITTERS)
def test_an_update_sees_jittered_pixels(space):
    batch = make(0, space)
    expected = updated([jittered(batch)])
    assert_close(updated([batch]), expected)
    bare = batch.replace(views=batch.views.replace(photometric=None))
    plain = updated([bare.replace(image=bare.image.astype(np.float32))])
    assert not np.allclose(plain[1]["loss"], expected[1]["loss"], rtol=1e-2)


@pytest.mark.parametrize("space", JITTERS)
def test_devices_and_micro_batches_change_nothing(space):
    batch = make(1, space)
    whole = updated([batch])
    assert_close(updated([batch], devices=4), whole)
    halves = [jax.tree.map(lambda x, p=part: x[p], batch) for part in (slice(0, 2), slice(2, 4))]
    assert_close(updated(halves), whole)
    assert_close(updated(halves, devices=2), whole)


def test_one_compilation_for_other_factors():
    state, step = build(make(0, "hsv"))
    for seed in range(3):
        state, _ = step.update(state, [put(make(seed, "hsv"), step.mesh)])
    assert step.num_compilations() == 1


def test_examine_shows_what_the_loss_saw():
    batch = make(2, "rgb")
    state, step = build(batch)
    figures = step.examine(state, put(batch, step.mesh)).figures
    expected = jittered(batch).image
    np.testing.assert_allclose(figures["image"], expected, atol=1e-3)
    gradient = expected.sum(axis=(1, 2, 3))[:, None, None, None] * np.ones_like(expected)
    np.testing.assert_allclose(figures["gradient"], gradient, rtol=1e-4)
    assert not figures["image"][1, 6:].any() and not figures["image"][1, :, 10:].any()


@pytest.mark.parametrize("devices", [1, 4])
def test_a_proposing_method_is_jittered_once(devices):
    batch = make(3, "hsv")
    state, step = build(batch, method=Asking(), devices=devices)
    cued = add_cues(step, state, put(batch, step.mesh), Echo())
    expected = jittered(batch).image
    assert cued.views.photometric is None
    np.testing.assert_allclose(local_rows(cued.cues["image"]), expected, atol=1e-3)
    np.testing.assert_allclose(local_rows(cued.image), expected, atol=1e-3)
    shown = step.examine(state, cued).figures["image"]
    np.testing.assert_array_equal(local_rows(shown), local_rows(cued.image))


def test_streams_are_jittered_one_by_one():
    strong, weak = make(4, "rgb"), make(5, "hsv", rows=2)
    both = {"strong": strong, "weak": weak}
    method = Colors(streams=("strong", "weak"))
    expected = updated([{name: jittered(batch) for name, batch in both.items()}], method=method)
    assert_close(updated([both], method=method), expected)
    mixed = {"strong": strong, "weak": jittered(weak)}
    assert_close(updated([mixed], method=method), expected)


def test_batches_of_features_go_through():
    batch = make(6, "hsv")
    maps = {"c5": FeatureMap(np.ones((4, 2, 3, 5), np.float32), np.ones((4, 2), np.int32), 8.0)}
    batch = batch.replace(image=None, features=maps)

    class Features(Colors):
        def loss(self, params, extras, batch, key, step):
            assert batch.image is None and batch.views.photometric is None
            value = jnp.sum(batch.features["c5"].features, axis=(1, 2, 3)) * jnp.sum(params["w"])
            return LossOutput(
                {"sum": Term(value, batch.image_mask.astype(jnp.float32))}, extras, {}
            )

    _, metrics = updated([batch], method=Features())
    np.testing.assert_allclose(metrics["loss"], 90.0)
