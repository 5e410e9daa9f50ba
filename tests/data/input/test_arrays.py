"""Stored batches come back as they were; cached features equal computed ones."""

import itertools

import jax
import numpy as np
import pytest

from tests.data.readers.voc_tree import write_voc
from wsod_jax.data.input.feature_cache import FeatureCache
from wsod_jax.data.input.loading import Loading
from wsod_jax.data.input.pipeline import train_batches, view_batches
from wsod_jax.data.input.plan import Order
from wsod_jax.data.input.stored_batches import play_batches, save_batches
from wsod_jax.data.input.transforms import Canvases
from wsod_jax.data.readers.voc import Voc
from wsod_jax.errors import ConfigError, DataError
from wsod_jax.types import Batch, FeatureMap, Targets, Views

CANVASES = Canvases((16, 24), multiple=8)


@pytest.fixture
def images(tmp_path):
    sizes = [(20, 30), (30, 20), (24, 24)]
    return Voc(
        root=write_voc(
            tmp_path / "set",
            {f"i{n}": (s, [("cat", (1, 1, 9, 9), False)]) for n, s in enumerate(sizes)},
        )
    ).images("trainval")


def views(images, **options):
    loading = Loading(loader="threads", **options)
    return view_batches(images, None, canvases=CANVASES, batch_size=2, loading=loading)


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


def test_batches_come_back(images, tmp_path):
    path = tmp_path / "sub" / "batches.npz"
    expected = list(views(images))
    assert save_batches(iter(expected), path) == len(expected) == 8
    assert_same(list(play_batches(path)), expected)
    assert [p.name for p in path.parent.iterdir()] == ["batches.npz"]


def test_batches_of_features_come_back(tmp_path):
    batch = Batch(
        image=None,
        image_size=np.ones((1, 2), np.int32),
        image_mask=np.array([True]),
        image_index=np.array([4], np.int32),
        views=Views(
            scale=np.ones((1, 2), np.float32),
            offset=np.zeros((1, 2), np.int32),
            flipped=np.array([True]),
            original_size=np.ones((1, 2), np.int32),
        ),
        features={
            "c5": FeatureMap(np.ones((1, 2, 3, 4), np.float16), np.ones((1, 2), np.int32), 14.0)
        },
        targets=Targets(
            boxes=np.ones((1, 3, 4), np.float32),
            classes=np.ones((1, 3), np.int32),
            weights=np.ones((1, 3), np.float32),
            ignore=np.array([[True, False, False]]),
            mask=np.array([[True, True, False]]),
        ),
    )
    save_batches([batch], tmp_path / "b.npz")
    assert_same(list(play_batches(tmp_path / "b.npz")), [batch])


def test_failed_saving_leaves_nothing_new(images, tmp_path):
    path = tmp_path / "batches.npz"
    save_batches(views(images), path)
    before = path.read_bytes()

    def broken():
        yield next(iter(views(images)))
        raise OSError("disk full")

    with pytest.raises(OSError):
        save_batches(broken(), path)
    assert path.read_bytes() == before
    assert not list(tmp_path.glob("*.partial"))


def test_bad_files_are_named(tmp_path):
    for name, content in (("text.npz", b"hello"), ("zip.npz", b"PK\x03\x04 broken")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=name):
            list(play_batches(tmp_path / name))
    np.savez(tmp_path / "other.npz", weights=np.ones(3))
    with pytest.raises(DataError, match="other.npz"):
        list(play_batches(tmp_path / "other.npz"))
    with pytest.raises(DataError, match="none.npz"):
        list(play_batches(tmp_path / "none.npz"))


class Backbone:
    """Average-pools 8 x 8 cells of each image; counts its calls."""

    def __init__(self):
        self.calls = 0

    def __call__(self, batch):
        self.calls += 1
        b, height, width, d = batch.image.shape
        cells = batch.image.reshape(b, height // 8, 8, width // 8, 8, d).astype(np.float32)
        size = -(-batch.image_size // 8)
        maps = cells.mean(axis=(2, 4))
        for i in range(b):
            maps[i, size[i, 0] :] = 0
            maps[i, :, size[i, 1] :] = 0
        return FeatureMap(maps, size, 8.0)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 0), ("float16", 0.1)])
def test_cached_features_equal_computed_ones(images, dtype, tolerance):
    backbone = Backbone()
    cache = FeatureCache(backbone, dtype=dtype)
    batches = list(views(images))
    for _ in range(3):
        for batch in batches:
            cached = cache(batch)
            assert cached.image is None and cached.features["c5"].features.dtype == np.float32
            expected = np.where(
                batch.image_mask[:, None, None, None], Backbone()(batch).features, 0
            )
            found = cached.features["c5"].features
            np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)
            np.testing.assert_array_equal(cached.image_size, batch.image_size)
    assert backbone.calls == len(batches)
    assert len(cache) == cache.num_computed == 3 * 4


def test_cached_images_are_not_decoded_any_more(images):
    cache = FeatureCache(Backbone())
    expected = [cache(batch) for batch in views(images)]
    for record in images.records:
        record.path.unlink()
    assert_same(list(views(images, cache=cache, on_bad_image="error")), expected)


def test_cache_serves_training_with_prefetch(images):
    cache = FeatureCache(Backbone(), dtype="float32")
    options = dict(canvases=CANVASES, order=Order(batch_size=2, accumulate=2))
    plain = train_batches(images, None, **options, loading=Loading(loader="threads"))
    loading = Loading(loader="threads", cache=cache, prefetch=3)
    cached = train_batches(images, None, **options, loading=loading)
    for expected, found in itertools.islice(zip(plain, cached, strict=True), 12):
        for a, b in zip(expected, found, strict=True):
            maps = np.where(a.image_mask[:, None, None, None], Backbone()(a).features, 0)
            np.testing.assert_array_equal(b.features["c5"].features, maps)
    plain.close()
    cached.close()
    assert len(cache) == 3 * 4


def test_full_cache_computes_anew(images, caplog):
    backbone = Backbone()
    cache = FeatureCache(backbone, dtype="float32", max_bytes=200)
    batches = list(views(images))
    first = [cache(batch) for batch in batches]
    assert_same([cache(batch) for batch in batches], first)
    assert 0 < cache.num_bytes <= 200 and len(cache) < 12
    assert backbone.calls > len(batches)
    assert caplog.text.count("computed again") == 1


def test_too_large_features_and_wrong_dtype(images):
    def huge(batch):
        output = Backbone()(batch)
        return output.replace(features=output.features * 1e6)

    with pytest.raises(ConfigError, match="float32"):
        FeatureCache(huge)(next(iter(views(images))))
    with pytest.raises(ConfigError, match="bfloat16"):
        FeatureCache(huge, dtype="bfloat16")


def test_windows_are_not_cached(images):
    canvases = Canvases((16,), "warp", crop_margin=8)
    stream = train_batches(
        images,
        None,
        canvases=canvases,
        order=Order(flip=False),
        loading=Loading(loader="threads"),
    )
    [batch] = next(stream)
    stream.close()
    cache = FeatureCache(Backbone())
    with pytest.raises(ConfigError, match="feature map"):
        cache(batch)
    # The map of the whole image does not stand in for those of its windows.
    index, record = int(batch.image_index[0]), images.records[int(batch.image_index[0])]
    cache(batch.replace(views=batch.views.replace(offset=np.zeros((1, 2), np.int32))))
    whole, window = (
        canvases.view(record.height, record.width, 16, crop=crop) for crop in (None, (0.0, 0.0))
    )
    assert cache.has(index, whole) and not cache.has(index, window)
