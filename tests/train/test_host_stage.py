"""Cues made on the host between two programs of an update, through the whole loop."""

from __future__ import annotations

import multiprocessing
import os
import signal
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from tests.train.test_checkpoint import assert_bitwise
from tests.train.test_loop import TOTAL, start
from tests.train.toy import Toy, ToyBatch, toy_batches
from wsod_jax.errors import ConfigError, CueError
from wsod_jax.train.checkpoint import checkpoint_steps
from wsod_jax.train.host_stage import add_cues
from wsod_jax.train.logging import read_jsonl
from wsod_jax.train.loop import Interrupted
from wsod_jax.train.optim import Optimizer
from wsod_jax.train.sharding import make_mesh, put
from wsod_jax.train.state import init_state
from wsod_jax.train.step import TrainStep
from wsod_jax.types import Term


@struct.dataclass
class Cued(ToyBatch):
    """A toy batch with a place for cues, and for what `propose` computed on the way."""

    cues: jax.Array | None = None
    computed: jax.Array | None = None


def cued_batches(num: int, **options) -> list[Cued]:
    return [Cued(**vars(batch)) for batch in toy_batches(num, **options)]


class Proposing(Toy):
    """Asks for the errors of its rows; the answers weigh the rows in a term of its own."""

    def propose(self, params, extras, batch, key, step):
        kernel = params["head"]["kernel"] + params["frozen"]["kernel"]
        noise = jax.random.normal(key)
        return {"error": batch.x @ kernel - batch.y, "noise": noise + 0 * batch.y}, batch.replace(
            computed=2.0 * batch.y
        )

    def loss(self, params, extras, batch, key, step):
        out = super().loss(params, extras, batch, key, step)
        kernel = params["head"]["kernel"] + params["frozen"]["kernel"]
        weighed = jnp.mean(batch.cues * jnp.square(batch.x @ kernel - batch.computed / 2), axis=1)
        term = Term(weighed * batch.image_mask, out.terms["fit"].weight)
        same = jnp.full_like(weighed, jax.random.normal(key))  # to compare with the request's
        return out.replace(
            terms={**out.terms, "weighed": term},
            metrics={"noise": Term(same, jnp.ones_like(same))},
        )


class Weights:
    """Answers with a function of the error; keeps what it was asked."""

    def __init__(self, answer=lambda request: np.abs(request["error"])):
        self.answer, self.asked, self.open = answer, [], 0

    def __enter__(self):
        self.open += 1
        return self

    def __exit__(self, *failure):
        self.open -= 1

    def __call__(self, request, image_index, image_mask):
        assert self.open == 1
        self.asked.append((request, image_index, image_mask))
        return self.answer(request)


def go(folder, source, *, accumulate=1, method=None, **options):
    batches = options.pop("batches", None) or cued_batches(TOTAL * accumulate)
    return start(
        folder,
        method=method or Proposing(),
        batches=batches,
        accumulate=accumulate,
        cues=source,
        **options,
    )


def test_every_micro_batch_is_asked_before_its_update(tmp_path):
    source, said = Weights(), []
    go(tmp_path, source, accumulate=2, say=said.append)
    assert source.open == 0
    batches = cued_batches(2 * TOTAL)
    assert len(source.asked) == 2 * TOTAL
    for (request, index, mask), batch in zip(source.asked, batches, strict=True):
        assert isinstance(request["error"], np.ndarray)
        np.testing.assert_array_equal(index, batch.image_index)
        np.testing.assert_array_equal(mask, batch.image_mask)
    # Both micro-batches of an update are proposed with the parameters and the key of its loss.
    noises = [float(request["noise"][0, 0]) for request, *_ in source.asked]
    assert noises[::2] == noises[1::2] and len(set(noises)) == TOTAL
    first, *entries = read_jsonl(tmp_path / "metrics.jsonl")
    np.testing.assert_allclose(first["noise"], noises[0], rtol=1e-5)
    mean = np.mean([noises[0], noises[2]])
    np.testing.assert_allclose(entries[0]["noise"], mean, rtol=1e-5)
    assert all(0 < entry["cues_s"] < float("inf") for entry in entries)
    assert [line.split(" in ")[0] for line in said] == [
        "compiled the request for cues",
        "compiled the training step",
    ]


def test_interrupted_and_resumed_equals_straight(tmp_path):
    straight = go(tmp_path / "straight", Weights())

    def stop(step, state, batches, metrics):
        if step == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        go(tmp_path / "cut", Weights(), hooks=[stop])
    assert_bitwise(go(tmp_path / "cut", Weights()), straight)
    plain = go(tmp_path / "other", Weights(lambda request: np.ones_like(request["error"])))
    assert np.any(plain.params["head"]["kernel"] != straight.params["head"]["kernel"])


def test_four_devices_ask_for_the_same_rows():
    answers = {}
    for devices in (1, 4):
        mesh, tx = make_mesh(devices), Optimizer(learning_rate=0.05).transformation(7, ())[0]
        (batch,), method, source = cued_batches(1), Proposing(), Weights()
        step = TrainStep(method, tx, seed=3, mesh=mesh)
        state = init_state(method, tx, seed=3, batch=batch, mesh=mesh)
        placed = put(batch, mesh)
        with source:
            cued = [add_cues(step, state, placed, source) for _ in range(2)][1]
        assert step.num_compilations("propose") == 1 and step.num_compilations() == 0
        assert cued.cues.sharding == placed.x.sharding
        answers[devices] = cued.cues
    np.testing.assert_allclose(answers[1], answers[4], rtol=1e-6)


def raising(request):
    raise RuntimeError("no such mask")


def leaving(request):
    raise SystemExit(3)


def killed(request):
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(os._exit, 9).result()


class FailsLater(Weights):
    """Fails when it is asked for the fifth time."""

    def __call__(self, request, image_index, image_mask):
        if len(self.asked) < 4:
            self.asked.append(None)
            return np.ones_like(request["error"])
        return self.answer(request)


@pytest.mark.parametrize(
    ("answer", "cause", "message"),
    [
        (raising, RuntimeError, "FailsLater.*RuntimeError: no such mask"),
        (leaving, SystemExit, r"FailsLater.*SystemExit: 3"),
        (killed, BrokenExecutor, "FailsLater.*killed"),
    ],
)
def test_failing_sources_are_named_and_the_checkpoint_is_intact(tmp_path, answer, cause, message):
    source = FailsLater(answer)
    with pytest.raises(CueError, match=f"update 5: .*{message}") as caught:
        go(tmp_path, source, resume_command="python go.py")
    assert "step 3" in str(caught.value)
    assert str(caught.value).endswith("python go.py")
    assert isinstance(caught.value.__cause__, cause)
    assert source.open == 0
    assert checkpoint_steps(tmp_path) == [0, 3]
    assert_bitwise(
        go(tmp_path, Weights(lambda request: np.ones_like(request["error"]))),
        go(tmp_path / "straight", Weights(lambda request: np.ones_like(request["error"]))),
    )


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda r: r["error"][:-1], r"\[7, 5\].* 8 rows"),
        (lambda r: {"mask": np.float32(1)}, r"cues\['mask'\].*numpy.float32"),
        (lambda r: {"mask": np.ones(())}, r"cues\['mask'\].*\[\].* 8"),
        (lambda r: jnp.asarray(r["error"]), "ArrayImpl.*NumPy"),
        (lambda r: {"names": np.array(["a"] * 8)}, r"cues\['names'\].*<U1"),
        (lambda r: None, "None.* 8 rows"),
    ],
)
def test_answers_of_another_kind_are_refused(tmp_path, answer, message):
    with pytest.raises(CueError, match=message):
        go(tmp_path, Weights(answer))
    assert checkpoint_steps(tmp_path) == [0]


def test_requests_that_do_not_lead_with_rows_are_refused(tmp_path):
    class Summing(Proposing):
        def propose(self, params, extras, batch, key, step):
            return {"error": jnp.sum(batch.y, axis=0)}, batch

    with pytest.raises(TypeError, match=r"Summing.*request\['error'\].*\[5\].*\[8\]"):
        go(tmp_path, Weights(), method=Summing())


def test_source_and_method_belong_together(tmp_path):
    with pytest.raises(ConfigError, match="config.cues"):
        go(tmp_path, None)
    with pytest.raises(ConfigError, match="Weights.*cues"):
        go(tmp_path, Weights(), method=Toy())


def test_two_streams_through_the_loop(tmp_path):
    class Two(Proposing):
        """Asks about the weak stream alone; counts the rows of both."""

        def propose(self, params, extras, batch, key, step):
            request, weak = super().propose(params, extras, batch["weak"], key, step)
            return request, {**batch, "weak": weak}

        def loss(self, params, extras, batch, key, step):
            out = super().loss(params, extras, batch["weak"], key, step)
            strong = Toy.loss(self, params, out.extras, batch["strong"], key, step)
            terms = {
                f"strong_{n}": t.replace(per=f"strong_{t.per}") for n, t in strong.terms.items()
            }
            return out.replace(terms={**out.terms, **terms}, extras=strong.extras)

    asked = []

    class Source(Weights):
        def __call__(self, request, image_index, image_mask):
            asked.append({name: len(rows) for name, rows in image_index.items()})
            assert image_mask["strong"].shape == (4,)
            return self.answer(request)

    streams = [
        {"weak": weak, "strong": strong}
        for weak, strong in zip(
            cued_batches(TOTAL), toy_batches(TOTAL, images=4, seed=1), strict=True
        )
    ]
    state = go(
        tmp_path,
        Source(lambda request: {"weak": np.abs(request["error"])}),
        method=Two(),
        batches=streams,
    )
    assert asked == [{"weak": 8, "strong": 4}] * TOTAL
    assert int(state.extras["seen"]) == 12 * TOTAL
    entry = read_jsonl(tmp_path / "metrics.jsonl")[-1]
    assert np.isfinite(entry["loss/strong_rows"])
    assert entry["images_per_s"] == pytest.approx(12 / entry["step_s"])
    for answer, message in (
        (lambda r: np.abs(r["error"]), "returned ndarray, but with several streams"),
        (lambda r: {"week": np.abs(r["error"])}, r"returned \['week'\].*\['strong', 'weak'\]"),
        (
            lambda r: {"strong": np.abs(r["error"])},
            "cues of stream 'strong' of shape .8, 5.*4 rows",
        ),
    ):
        with pytest.raises(CueError, match=message):
            go(tmp_path / "refused", Source(answer), method=Two(), batches=streams)
