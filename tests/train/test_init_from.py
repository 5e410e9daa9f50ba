"""Starting from other runs and files: by path and shape, in order, reported; what does not fit is refused."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.train.toy import Toy, toy_batches
from wsod_jax.errors import ConfigError, DataError
from wsod_jax.methods.oicr import Oicr
from wsod_jax.methods.spn import Spn
from wsod_jax.nn.box_head import BoxHead
from wsod_jax.nn.tiny import TinyNet
from wsod_jax.train.checkpoint import Checkpoints
from wsod_jax.train.identity import run_metadata
from wsod_jax.train.init_from import init_from, read_sources
from wsod_jax.train.sharding import make_mesh
from wsod_jax.train.state import TrainState, init_state
from wsod_jax.train.weights import save_weights
from wsod_jax.types import Batch, Views

BACKBONE = TinyNet(preprocessing="torch")


def batch_of(num_classes: int) -> Batch:
    """Return zeros in the shape of two images with three proposals."""
    views = Views(
        scale=np.ones((2, 2), np.float32),
        offset=np.zeros((2, 2), np.int32),
        flipped=np.zeros(2, bool),
        original_size=np.full((2, 2), 32, np.int32),
    )
    return Batch(
        image=np.zeros((2, 32, 32, 3), np.uint8),
        image_size=np.full((2, 2), 32, np.int32),
        image_mask=np.ones(2, bool),
        image_index=np.arange(2, dtype=np.int32),
        views=views,
        labels=np.zeros((2, num_classes), np.int32),
        proposals=np.tile(np.array([0, 0, 16, 16], np.float32), (2, 3, 1)),
        proposal_mask=np.ones((2, 3), bool),
    )


def spn(num_classes: int = 3) -> Spn:
    return Spn(backbone=BACKBONE, num_classes=num_classes, extra_channels=8)


def oicr(num_classes: int = 3, width: int = 16) -> Oicr:
    head = BoxHead(dims=(width, width))
    return Oicr(backbone=BACKBONE, num_classes=num_classes, max_classes=2, box_head=head)


def drawn(method, seed: int = 0):
    """Return parameters of the method's layout, other ones for every seed, and its extras."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(method.init, jax.random.key(0), batch_of(method.num_classes))
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), shapes)


def write_run(workdir, params, *, extras=None, ema=None, result="params", backbone=BACKBONE):
    """Write a workdir with one checkpoint, of step 0."""
    metadata = run_metadata(
        method="spn",
        class_names=("a", "b", "c"),
        config={},
        split="train",
        seed=0,
        result=result,
        backbone=None if backbone is None else backbone.description,
    )
    step = jnp.zeros((), jnp.int32)
    state = TrainState(step, params, extras or {}, optax.sgd(0.1).init(params), ema)
    checkpoints = Checkpoints(workdir / "checkpoints", metadata)
    checkpoints.save(0, state)
    checkpoints.close()
    return str(workdir)


def read(*paths):
    return read_sources(paths, BACKBONE.description)


def assert_equal(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def network():
    return {
        "backbone": {"conv1": {"kernel": jnp.zeros((3, 3, 3, 4)), "bias": jnp.zeros(4)}},
        "box_head": {"fc6": {"kernel": jnp.zeros((8, 5), jnp.bfloat16), "bias": jnp.zeros(5)}},
        "midn": {"cls": {"kernel": jnp.zeros((5, 2))}},
    }


def write_file(path, params):
    save_weights(path, params, {**BACKBONE.description, "source": "a test"})
    return str(path)


# -- files


def test_each_layer_of_a_file_finds_its_place(tmp_path, weights):
    params = network()
    path = write_file(tmp_path / "w.npz", {**weights, "fc8": {"bias": np.ones(3, np.float32)}})
    merged, extras, report = init_from(params, {}, read(path))
    assert extras == {}
    np.testing.assert_array_equal(merged["backbone"]["conv1"]["kernel"], weights["conv1"]["kernel"])
    assert merged["box_head"]["fc6"]["kernel"].dtype == jnp.bfloat16
    assert report.taken == {
        path: ("backbone/conv1/bias", "backbone/conv1/kernel", "box_head/fc6/kernel")
    }
    assert report.unused == {path: ("fc8/bias",)}
    assert report.drawn == ("box_head/fc6/bias", "midn/cls/kernel")
    assert f"{path}: 3 arrays taken; 1 not used: fc8/bias" in str(report)
    assert "2 randomly initialized: box_head/fc6/bias, midn/cls/kernel" in str(report)
    assert not np.any(params["backbone"]["conv1"]["kernel"])
    assert not np.any(merged["midn"]["cls"]["kernel"])


def test_names_of_a_whole_network_are_taken_as_they_are(tmp_path, weights):
    file = {"backbone": {"conv1": weights["conv1"]}, "box_head": {"fc6": weights["fc6"]}}
    merged, _, report = init_from(network(), {}, read(write_file(tmp_path / "w.npz", file)))
    assert_equal(merged["backbone"], file["backbone"])
    assert report.drawn == ("box_head/fc6/bias", "midn/cls/kernel")
    merged, _, _ = init_from(
        network()["backbone"], {}, read(write_file(tmp_path / "w.npz", weights))
    )
    assert_equal(merged["conv1"], weights["conv1"])


def test_nothing_that_fits_is_refused(tmp_path, weights):
    sources = read(write_file(tmp_path / "w.npz", weights))
    with pytest.raises(DataError, match=r"w\.npz.*conv1/bias.*cls/kernel"):
        init_from({"midn": network()["midn"]}, {}, sources)
    with pytest.raises(DataError, match="none"):
        init_from(network(), {}, sources, reinit=["^backbone", "^box_head"])


def test_missing_damaged_and_foreign_sources_are_refused(tmp_path, weights):
    with pytest.raises(DataError, match=r"none\.npz.*convert_weights"):
        read(str(tmp_path / "none.npz"))
    with pytest.raises(DataError, match=r"none.*config\.train\.init_from"):
        read(str(tmp_path / "none"))
    (tmp_path / "vgg16.pth").write_bytes(b"weights")
    with pytest.raises(DataError, match=r"vgg16\.pth.*convert_weights"):
        read(str(tmp_path / "vgg16.pth"))
    with pytest.raises(DataError, match="no checkpoint"):
        read(str(tmp_path))
    path = tmp_path / "w.npz"
    write_file(path, weights)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match=r"w\.npz"):
        read(str(path))
    workdir = write_run(tmp_path / "run", drawn(spn())[0])
    next((tmp_path / "run" / "checkpoints" / "0" / "weights").rglob("d/*")).write_bytes(b"?")
    with pytest.raises(DataError, match="weights/"):
        read(workdir)


# -- runs


def test_extra_convolution_of_spn_is_handed_on_and_its_head_is_not(tmp_path):
    """As SPN's networks trained on ImageNet are fine-tuned on sets with other classes (Table 6)."""
    before, _ = drawn(spn(num_classes=3), seed=1)
    sources = read(write_run(tmp_path / "run", before))
    own, _ = drawn(spn(num_classes=5), seed=2)
    with pytest.raises(ConfigError, match="(?s)run.* head/bias.* head/kernel") as error:
        init_from(own, {}, sources)
    assert "head/kernel: (8, 3)" in str(error.value)
    assert "train.reinit" in str(error.value) and "^head/" in str(error.value)
    merged, _, report = init_from(own, {}, sources, reinit=["^head/"])
    assert_equal(merged["extra"], before["extra"])
    assert_equal(merged["backbone"], before["backbone"])
    assert_equal(merged["head"], own["head"])
    assert report.drawn == ("head/bias", "head/kernel")
    assert report.unused == {str(tmp_path / "run"): ("head/bias", "head/kernel")}


def test_box_head_is_handed_on(tmp_path):
    before, _ = drawn(oicr(), seed=1)
    workdir = write_run(tmp_path / "run", before)
    for path in (workdir, f"{workdir}/checkpoints", f"{workdir}/checkpoints/0"):
        merged, _, report = init_from(drawn(oicr(), seed=2)[0], {}, read(path))
        assert_equal(merged, before)
        assert report.drawn == () and "not used" not in str(report)
    own, _ = drawn(spn(), seed=2)
    merged, _, report = init_from(own, {}, read(workdir))
    assert_equal(merged["backbone"], before["backbone"])
    assert_equal(merged["extra"], own["extra"])
    assert "box_head/fc6/kernel" in report.unused[workdir]


def test_reinit_draws_anew_where_shapes_agree_too(tmp_path):
    before, own = (drawn(oicr(), seed=seed)[0] for seed in (1, 2))
    sources = read(write_run(tmp_path / "run", before))
    merged, _, _ = init_from(own, {}, sources, reinit=["^midn/", "^refine/"])
    assert_equal(merged["box_head"], before["box_head"])
    for name in ("midn", "refine"):
        assert_equal(merged[name], own[name])


@pytest.mark.parametrize(
    ("reinit", "message"),
    [(["^haed/"], "(?s)'\\^haed/'.*box_head/fc6/bias"), (["("], "'\\('")],
)
def test_reinit_that_says_nothing_is_refused(tmp_path, weights, reinit, message):
    sources = read(write_file(tmp_path / "w.npz", weights))
    with pytest.raises(ConfigError, match=message):
        init_from(network(), {}, sources, reinit=reinit)


def test_other_shapes_are_refused_with_both_and_the_way_out(tmp_path):
    sources = read(write_run(tmp_path / "run", drawn(oicr(width=16))[0]))
    own, _ = drawn(oicr(width=8))
    with pytest.raises(
        ConfigError, match=r"box_head/fc6/bias: \(16,\).*\(8,\)(?s:.)*train\.reinit"
    ):
        init_from(own, {}, sources)


def test_later_sources_replace_what_earlier_ones_gave(tmp_path, weights):
    first, second = drawn(oicr(), seed=1)[0], drawn(spn(), seed=2)[0]
    paths = write_run(tmp_path / "first", first), write_run(tmp_path / "second", second)
    own, _ = drawn(oicr(), seed=3)
    merged, _, report = init_from(own, {}, read(*paths))
    assert_equal(merged["backbone"], second["backbone"])
    assert_equal(merged["box_head"], first["box_head"])
    assert list(report.taken) == list(paths) and str(report).count("arrays taken") == 2
    merged, _, _ = init_from(own, {}, read(*reversed(paths)))
    assert_equal(merged["backbone"], first["backbone"])


def test_weights_that_are_the_detector_and_extras_are_read(tmp_path):
    params, own = (drawn(spn(), seed=seed)[0] for seed in (1, 2))
    ema = jax.tree.map(lambda w: w + 1, params)
    extras = {"centers": jnp.ones(3), "stage": {"count": jnp.full((), 7)}}
    wanted = {
        "centers": jnp.zeros(3),
        "stage": {"count": jnp.zeros((), jnp.int32)},
        "new": jnp.zeros(2),
    }
    for result, expected in (("params", params), ("ema", ema)):
        path = write_run(tmp_path / result, params, extras=extras, ema=ema, result=result)
        merged, found, report = init_from(own, wanted, read(path))
        assert_equal(merged, expected)
        assert_equal(found, {**extras, "new": jnp.zeros(2)})
        assert found["stage"]["count"].dtype == jnp.int32
        assert report.drawn == ("extras/new",)
    _, found, _ = init_from(own, wanted, read(path), reinit=["^extras/centers"])
    assert not found["centers"].any() and found["stage"]["count"] == 7
    with pytest.raises(ConfigError, match=r"extras/centers: \(3,\).*\(4,\)"):
        init_from(own, {**wanted, "centers": jnp.zeros(4)}, read(path))


def test_weights_made_for_other_preprocessing_are_refused(tmp_path, weights):
    other = BACKBONE.clone(preprocessing="caffe")
    run = write_run(tmp_path / "run", drawn(spn())[0], backbone=other)
    file = tmp_path / "w.npz"
    save_weights(file, weights, {**other.description, "source": "a test"})
    for path in (run, str(file)):
        with pytest.raises(DataError, match="preprocessing .*'caffe'.*'torch'"):
            read(path)
        assert len(read_sources([path], None)) == 1  # a method without a backbone
    assert read(write_run(tmp_path / "none", drawn(spn())[0], backbone=None))


# -- the state that it makes


def test_average_starts_as_an_exact_copy_of_the_merged_parameters(tmp_path):
    method, mesh = Toy(), make_mesh(4)
    start = {"head": {"kernel": np.arange(3, dtype=np.float32)}, "seen": np.zeros(3, np.float32)}
    sources = read(write_file(tmp_path / "w.npz", start))

    def merge(params, extras):
        return init_from(params, extras, sources)[:2]

    state = init_state(
        method,
        optax.sgd(0.1),
        seed=0,
        batch=toy_batches(1)[0],
        mesh=mesh,
        ema=True,
        warm_start=merge,
    )
    np.testing.assert_array_equal(state.params["head"]["kernel"], [0, 1, 2])
    np.testing.assert_array_equal(state.params["frozen"]["kernel"], [0.5] * 3)
    assert_equal(state.ema, state.params)
    arrays = jax.tree.leaves((state.params, state.ema, state.extras))
    buffers = [s.data.unsafe_buffer_pointer() for x in arrays for s in x.addressable_shards]
    assert len(set(buffers)) == len(buffers) == 4 * 7
    assert all(x.sharding.is_equivalent_to(arrays[0].sharding, x.ndim) for x in arrays)
