"""Pooled proposals out of a folder are those that the network pools, whoever put them there."""

import dataclasses
import functools
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.data.input.test_pipeline import make_proposals
from tests.data.readers.voc_tree import write_voc
from tests.methods import cases
from wsod_jax.data.input.loading import Loading
from wsod_jax.data.input.pipeline import train_batches, view_batches
from wsod_jax.data.input.plan import Order
from wsod_jax.data.input.pooled_cache import PooledCache
from wsod_jax.data.input.proposal_rows import ProposalRules
from wsod_jax.data.input.transforms import Canvases
from wsod_jax.data.readers.voc import Voc
from wsod_jax.errors import ConfigError, DataError

CANVASES = Canvases((32,), multiple=8)
RULES = ProposalRules(16, dedup_stride=4)
METHOD = cases.build("oicr")
PARAMS = {"backbone": cases.params("oicr")["backbone"]}


@pytest.fixture
def images(tmp_path):
    sizes = [(40, 60), (60, 40), (50, 50)]
    names = {f"i{n}": (size, [("cat", (1, 1, 9, 9), False)]) for n, size in enumerate(sizes)}
    root = write_voc(tmp_path / "set", names, classes=("cat", "dog", "hen"))
    return Voc(root=root).images("trainval")


def cache_in(folder, images, *, method=METHOD, params=PARAMS, dtype="float32") -> PooledCache:
    return PooledCache(method.pool, params, images, folder, name="tiny", dtype=dtype)


def proposals_of(images):
    return make_proposals(images, counts={"i0": 12, "i1": 0, "i2": 20})


def views(images, cache=None, **options):
    loading = Loading(loader="threads", cache=cache, **options)
    return list(
        view_batches(
            images,
            proposals_of(images),
            canvases=CANVASES,
            batch_size=2,
            rules=RULES,
            loading=loading,
        )
    )


def pooled(batch) -> np.ndarray:
    return np.asarray(jax.jit(METHOD.pool)(PARAMS, batch))


def files(folder) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 0), ("float16", 2**-11)])
def test_kept_values_are_the_pooled_ones(images, tmp_path, dtype, tolerance):
    plain = views(images)
    for _ in range(2):  # computed, then read by another process's object
        cache = cache_in(tmp_path / "pooled", images, dtype=dtype)
        for expected, found in zip(plain, views(images, cache), strict=True):
            assert found.image is None and found.pooled.dtype == dtype
            np.testing.assert_allclose(found.pooled, pooled(expected), rtol=tolerance, atol=1e-7)
            masked = ~(found.proposal_mask & found.image_mask[:, None])
            assert masked.any() and not found.pooled[masked].any()
            others = found.replace(image=expected.image, pooled=None)
            jax.tree.map(np.testing.assert_array_equal, others, expected)
    assert cache.num_computed == 0
    assert len(files(tmp_path / "pooled")) == 4  # of the image without proposals there are none


def test_scores_and_gradients_are_those_of_the_images(images, tmp_path):
    method = dataclasses.replace(METHOD, score_gate=2.0)
    cache = cache_in(tmp_path, images, method=method)
    params = cases.params("oicr")

    def loss(params, batch):
        batch = batch.replace(proposal_scores=batch.proposal_mask * 0.5)
        terms = method.loss(params, {}, batch, cases.KEY, cases.STEP).terms
        return sum(term.mean() for term in terms.values())

    run = jax.jit(jax.value_and_grad(loss))
    (wanted, expected), (value, found) = (
        run(params, views(images, used)[0]) for used in (None, cache)
    )
    assert not any(x.any() for x in jax.tree.leaves(found["backbone"]))
    np.testing.assert_allclose(value, wanted, rtol=1e-6)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    jax.tree.map(close, found, {**expected, "backbone": found["backbone"]})


@pytest.mark.parametrize("loader", ["threads", "tf"])
def test_images_are_not_decoded_while_training_goes_on(images, tmp_path, loader, monkeypatch):
    views(images, cache_in(tmp_path / "pooled", images))
    monkeypatch.setattr(type(images.records[0]), "load", lambda self: pytest.fail("decoded"))
    chosen = images.select([0, 2])
    cache = cache_in(tmp_path / "pooled", chosen)
    stream = train_batches(
        chosen,
        proposals_of(images),
        canvases=CANVASES,
        order=Order(batch_size=1),
        rules=RULES,
        loading=Loading(loader=loader, cache=cache),
    )
    assert all(next(stream)[0].pooled.any() for _ in range(8))
    stream.close()
    assert cache.num_computed == 0


def test_a_damaged_file_is_computed_anew_and_said(images, tmp_path, caplog):
    expected = views(images, cache_in(tmp_path, images))
    before = files(tmp_path / cache_in(tmp_path, images).folder.name)
    flipped, cut, empty = list(before)[:3]
    content = bytearray(before[flipped])
    content[7] ^= 1
    flipped.write_bytes(content)
    cut.write_bytes(before[cut][:-9])
    empty.write_bytes(b"")
    cache = cache_in(tmp_path, images)
    jax.tree.map(np.testing.assert_array_equal, views(images, cache), expected)
    assert cache.num_computed == 3 and files(cache.folder) == before
    assert all(f"{path} is damaged" in caplog.text for path in (flipped, cut, empty))


def test_a_deleted_file_ends_the_run_with_its_name(images, tmp_path):
    views(images, cache_in(tmp_path / "pooled", images))
    cache = cache_in(tmp_path / "pooled", images)
    views(images, cache)
    batch = views(images)[0]
    for path in files(cache.folder):
        path.unlink()
    with pytest.raises(DataError, match=f"{cache.folder.name}.*deleted"):
        cache(batch)


def test_other_values_have_other_names(images, tmp_path):
    views(images, cache_in(tmp_path / "pooled", images))
    number = len(files(tmp_path / "pooled"))

    def computed(**changes) -> int:
        cache = cache_in(tmp_path / "pooled", **{"images": images} | changes)
        views(changes.get("images", images), cache)
        return cache.num_computed

    assert computed() == 0
    assert computed(params=jax.tree.map(lambda x: x + 1e-6, PARAMS)) == 4
    assert computed(dtype="float16") == 4
    for change in (dict(roi_size=2), dict(pooling="align")):
        assert computed(method=dataclasses.replace(METHOD, **change)) == 4
    head = dataclasses.replace(METHOD, num_stages=2, score_gate=1.0, iou_thrs=(0.1, 0.5))
    assert computed(method=head) == 0
    assert len(files(tmp_path / "pooled")) == 5 * number
    first, second, third = images.records
    third = dataclasses.replace(third, source=third.path.read_bytes)
    other = dataclasses.replace(images, records=(first, second, third))
    assert computed(images=other) == 0  # the content counts, not the place
    first.path.write_bytes(first.path.read_bytes() + b"\0")
    assert computed() == 2


def test_names_are_the_same_in_another_process(images, tmp_path):
    views(images, cache_in(tmp_path, images))
    code = (
        "from tests.data.input.test_pooled_cache import *\n"
        "images = Voc(root=sys.argv[1]).images('trainval')\n"
        "cache = cache_in(sys.argv[2], images)\n"
        "views(images, cache)\n"
        "assert cache.num_computed == 0, cache.num_computed"
    )
    root = images.records[0].path.parents[1]
    command = [sys.executable, "-c", code, str(root), str(tmp_path)]
    subprocess.run(command, check=True, cwd=Path(__file__).resolve().parents[3])


def test_a_full_disk_is_said_once_and_changes_no_value(images, tmp_path, caplog, monkeypatch):
    expected = views(images, cache_in(tmp_path / "a", images))

    def full(path, mode):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("wsod_jax.data.input.pooled_cache.atomic_write", full)
    cache = cache_in(tmp_path / "b", images)
    jax.tree.map(np.testing.assert_array_equal, views(images, cache), expected)
    assert cache.num_computed == 4 and not files(tmp_path / "b")
    assert caplog.text.count("No space left on device") == 1


def test_room_is_counted_before_anything_is_computed(images, tmp_path, monkeypatch):
    cache = cache_in(tmp_path / "pooled", images, dtype="float16")
    proposals = proposals_of(images)
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("wsod_jax.data.input.pooled_cache.shutil.disk_usage", lambda folder: usage)
    needed = (12 + 16) * 4 * 3 * 3 * 8 * 2
    assert cache.missing_bytes(proposals, 16, 4) == needed - 1000
    views(images, cache)
    assert cache.missing_bytes(proposals, 16, 4) < needed - 1000


def test_windows_and_numbers_that_do_not_fit_are_refused(images, tmp_path):
    [batch, *_] = views(images)
    cache = cache_in(tmp_path, images)
    with pytest.raises(ConfigError, match="crop_margin"):
        cache(batch.replace(views=batch.views.replace(offset=np.ones((2, 2), np.int32))))
    large = cache_in(
        tmp_path, images, params=jax.tree.map(lambda x: x * 1e3, PARAMS), dtype="float16"
    )
    with pytest.raises(ConfigError, match="float16"):
        large(batch)
