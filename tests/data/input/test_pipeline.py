"""Batches: the same from both loaders and after a restart, free of boxes, and whole whatever the input."""

import dataclasses
import itertools
import logging
import subprocess
import sys

import cv2
import jax
import numpy as np
import pytest

from tests.data.readers.voc_tree import write_voc
from wsod_jax.data.input.loading import Loading, load
from wsod_jax.data.input.pipeline import train_batches, view_batches
from wsod_jax.data.input.plan import Order
from wsod_jax.data.input.proposal_rows import ProposalRules
from wsod_jax.data.input.transforms import Canvases
from wsod_jax.data.proposals.proposal_set import ProposalSet
from wsod_jax.data.readers.voc import Voc
from wsod_jax.data.records import BoxSet, ImageBoxes, ImageRecord, ImageSet
from wsod_jax.errors import ConfigError, DataError

SIZES = [(40, 60), (60, 40), (50, 50), (45, 64), (64, 30), (30, 100), (40, 41)]
CANVASES = Canvases((32, 48), multiple=8)


def tree(tmp_path):
    images = {
        f"im{i}": (size, [(("cat", "dog")[i % 2], (3, 4, 20, 25), False)])
        for i, size in enumerate(SIZES)
    }
    return write_voc(tmp_path / "VOC2007", images)


@pytest.fixture
def images(tmp_path):
    return Voc(root=tree(tmp_path)).images("trainval")


def random_boxes(seed, count, height, width):
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, [width - 4, height - 4], (count, 2))
    high = rng.uniform(low + 2, [width, height])
    return np.concatenate([low, high], axis=1).astype(np.float32)


def make_proposals(images, *, counts=None, scores=False, boxes=None):
    sizes = {r.image_id: (r.height, r.width) for r in images.records}
    counts = counts or {i: 12 + n for n, i in enumerate(sizes)}
    made = {i: random_boxes(n, counts[i], *sizes[i]) for n, i in enumerate(sizes)} | (boxes or {})
    values = {i: np.linspace(0, 1, len(made[i])) for i in sizes} if scores else None
    return ProposalSet.from_images(sizes, made, values, generator="test")


def taken_from(options, cls):
    names = {field.name for field in dataclasses.fields(cls)}
    return {name: options.pop(name) for name in list(options) if name in names}


def train(images, proposals, *, canvases=CANVASES, start_step=0, **changes):
    options = dict(batch_size=2, accumulate=2, max_proposals=16, seed=3, loader="threads") | changes
    order = Order(**taken_from(options, Order))
    loading = Loading(**taken_from(options, Loading))
    rules = None if options["max_proposals"] is None else ProposalRules(**options)
    return train_batches(
        images,
        proposals,
        canvases=canvases,
        order=order,
        rules=rules,
        loading=loading,
        start_step=start_step,
    )


THREADS = Loading(loader="threads")


def take(stream, count):
    taken = list(itertools.islice(stream, count))
    stream.close()
    return taken


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype and type(x) is type(y) is np.ndarray
        np.testing.assert_array_equal(x, y)


def test_contents_of_a_batch(images):
    proposals = make_proposals(images, scores=True)
    for batch in itertools.chain.from_iterable(take(train(images, proposals), 4)):
        height, width = batch.image.shape[1:3]
        assert (height, width) in CANVASES.shapes()
        assert batch.image.dtype == np.uint8 and batch.image_size.dtype == np.int32
        assert batch.labels.dtype == np.int32 and batch.proposals.dtype == np.float32
        assert batch.proposals.shape == (2, 16, 4)
        assert batch.features is None
        for i in range(2):
            size = tuple(batch.image_size[i])
            assert not batch.image[i, size[0] :].any() and not batch.image[i, :, size[1] :].any()
            if not batch.image_mask[i]:
                assert batch.image_index[i] == -1 and not batch.proposal_mask[i].any()
                continue
            record = images.records[batch.image_index[i]]
            assert batch.image[i, : size[0], : size[1]].any()
            assert tuple(batch.labels[i]) == record.labels
            expected = np.float32([size[1] / record.width, size[0] / record.height])
            np.testing.assert_array_equal(batch.views.scale[i], expected)
            # Back in the original image, every proposal is one of the file's.
            boxes = batch.proposals[i].copy()
            if batch.views.flipped[i]:
                boxes[:, [0, 2]] = size[1] - boxes[:, [2, 0]]
            boxes = boxes / np.tile(batch.views.scale[i], 2)
            file = proposals.get(record.image_id)
            count = min(len(file), 16)
            kept = np.sort(np.argsort(-proposals.get_scores(record.image_id), kind="stable")[:16])
            np.testing.assert_allclose(boxes[:count], file[kept], atol=1e-3)
            real = batch.proposal_mask[i]
            stands_for_itself = batch.representative[i] == np.arange(16)
            np.testing.assert_array_equal(real[:count], stands_for_itself[:count])
            assert real[batch.representative[i][:count]].all() and not real[count:].any()


@pytest.mark.parametrize("scales", [tuple(range(32, 64, 4)), tuple(range(32, 128, 3))])
def test_many_scales_compile_few_programs(images, scales):
    """Eight scales and 32, upright and lying: every view is there, of at most 6 × 2 shapes; training uses the same."""
    canvases = Canvases(scales, multiple=8)
    score = jax.jit(lambda image, size: image.sum() + size.sum())
    seen = set()
    stream = view_batches(images, None, canvases=canvases, flips=(False,), loading=THREADS)
    for batch in stream:
        score(batch.image, batch.image_size)
        short, long = sorted(batch.image_size[0])
        record = images.records[batch.image_index[0]]
        if max(record.height, record.width) <= 1.5 * min(record.height, record.width):
            seen.add((int(batch.image_index[0]), int(short)))
    fitting = [
        i
        for i, (height, width) in enumerate(SIZES)
        if max(height, width) <= 1.5 * min(height, width)
    ]
    assert seen == set(itertools.product(fitting, scales))
    for batch in itertools.chain.from_iterable(
        take(train(images, None, canvases=canvases, batch_size=1), 60)
    ):
        score(batch.image, batch.image_size)
    assert 6 < score._cache_size() <= len(canvases.shapes()) <= 12


def test_both_loaders_give_the_same_batches(images):
    pytest.importorskip("tensorflow")
    proposals = make_proposals(images, scores=True)
    for options in ({}, {"start_step": 3, "flip": False}):
        first, second = (
            train(images, proposals, loader=name, **options) for name in ("threads", "tf")
        )
        a, b = take(first, 5), take(second, 5)
        assert_same(a, b)
        assert first.counts == second.counts
    views = [
        list(
            view_batches(
                images, None, canvases=CANVASES, batch_size=2, loading=Loading(loader=name)
            )
        )
        for name in ("threads", "tf")
    ]
    assert_same(*views)


@pytest.mark.parametrize("workers", [1, 3])
def test_restart_from_any_step(images, workers):
    proposals = make_proposals(images)
    whole = take(train(images, proposals), 9)
    for start in (1, 5, 8):
        part = take(train(images, proposals, start_step=start, workers=workers), 9 - start)
        assert_same(part, whole[start:])


def watched(images):
    """Return the same set, and the list to which it adds the id of every image that is read."""
    read = []

    def copy(record):
        def source():
            read.append(record.image_id)
            return record.path.read_bytes()

        return ImageRecord(record.image_id, source, record.height, record.width, record.labels)

    return ImageSet("w", images.class_names, tuple(map(copy, images.records))), read


def test_restart_reads_no_earlier_image(images):
    watched_set, read = watched(images)
    options = dict(batch_size=1, accumulate=1, workers=1, prefetch=0)
    [[batch]] = take(train(watched_set, None, start_step=100, **options), 1)
    assert images.records[batch.image_index[0]].image_id == read[0]
    assert len(read) <= 2


def test_annotated_boxes_change_no_training_batch(tmp_path, images):
    proposals = make_proposals(images)
    expected = take(train(images, proposals), 6)
    for path in (tmp_path / "VOC2007" / "Annotations").iterdir():
        text = path.read_text()
        for value, other in (("3", "9"), ("4", "11"), ("20", "nan"), ("25", "x")):
            text = text.replace(f">{value}</", f">{other}</")
        assert text != path.read_text()
        path.write_text(text)
    garbled = Voc(root=tmp_path / "VOC2007").images("trainval")
    assert_same(take(train(garbled, proposals), 6), expected)


WARPED = Canvases((32, 48), "warp", crop_margin=12)


def test_warped_micro_batches_mix_orientations(images):
    stream = train(images, None, canvases=WARPED, batch_size=7, accumulate=1)
    assert stream.plan.batches_per_epoch == 1
    for [batch] in take(stream, 4):
        assert batch.image_mask.all() and sorted(batch.image_index) == list(range(7))
        height, width = batch.image.shape[1:3]
        assert height == width and (batch.image_size == height).all()
    proposals = make_proposals(images)
    options = dict(canvases=Canvases((48,), "warp"), batch_size=3, flips=(False,), loading=THREADS)
    rules = ProposalRules(20, dedup_stride=None)
    batches = list(view_batches(images, proposals, rules=rules, **options))
    assert [batch.image_index.tolist() for batch in batches] == [[0, 1, 2], [3, 4, 5], [6, -1, -1]]
    for batch in batches:
        assert not batch.views.offset.any()
        for index, boxes, scale in zip(
            batch.image_index, batch.proposals, batch.views.scale, strict=True
        ):
            if index >= 0:
                record = images.records[index]
                np.testing.assert_array_equal(
                    scale, np.float32([48 / record.width, 48 / record.height])
                )
                file = proposals.get(record.image_id)
                np.testing.assert_allclose(boxes[: len(file)] / np.tile(scale, 2), file, atol=1e-3)


@pytest.mark.parametrize("resize", ["short", "warp"])
def test_windows_show_the_image_that_their_offset_says(images, resize):
    canvases = Canvases((32, 48), resize, multiple=8, crop_margin=12)
    seen = {}
    for batch in itertools.chain.from_iterable(take(train(images, None, canvases=canvases), 12)):
        scale = {32: 44 / 32, 48: 60 / 48}[min(batch.image.shape[1:3])]
        for i in np.flatnonzero(batch.image_mask):
            record = images.records[batch.image_index[i]]
            height, width = batch.image_size[i]
            resized = [int(np.floor(side * scale + 0.5)) for side in (width, height)]
            np.testing.assert_array_equal(
                batch.views.scale[i],
                np.float32(resized) / np.float32([record.width, record.height]),
            )
            left, top = batch.views.offset[i]
            whole = cv2.resize(record.load(), resized, interpolation=cv2.INTER_LINEAR)
            expected = whole[top : top + height, left : left + width]
            assert expected.shape == (height, width, 3)  # the window lies inside
            expected = expected[:, ::-1] if batch.views.flipped[i] else expected
            np.testing.assert_array_equal(batch.image[i, :height, :width], expected)
            seen.setdefault(record.image_id, set()).add((left, top))
    assert all(len(offsets) > 1 for offsets in seen.values()) and len(seen) == 7


@pytest.mark.parametrize("loader", ["threads", "tf"])
def test_windows_are_the_same_after_a_restart_and_from_both_loaders(images, loader):
    if loader == "tf":
        pytest.importorskip("tensorflow")
    options = dict(canvases=WARPED, batch_size=3, accumulate=1)
    whole = take(train(images, None, **options), 9)
    for start in (0, 4, 8):
        part = take(train(images, None, start_step=start, loader=loader, **options), 9 - start)
        assert_same(part, whole[start:])


def test_views_are_whole_whatever_the_margin(images):
    options = dict(batch_size=2, loading=THREADS)
    bare = dataclasses.replace(WARPED, crop_margin=0)
    assert_same(
        list(view_batches(images, None, canvases=WARPED, **options)),
        list(view_batches(images, None, canvases=bare, **options)),
    )


def test_without_proposals(images):
    [[batch, _]] = take(train(images, None), 1)
    assert (
        batch.proposals
        is batch.proposal_mask
        is batch.representative
        is batch.proposal_scores
        is None
    )
    assert batch.image_mask.any()


def test_scores_of_proposals_reach_the_batch_in_the_rows_of_their_boxes(images):
    proposals = make_proposals(images, scores=True)
    stream = view_batches(
        images, proposals, canvases=Canvases((48,)), flips=(True,), rules=ProposalRules(20, dedup_stride=None),
        loading=THREADS,
    )  # fmt: skip
    for batch in stream:
        expected = proposals.get_scores(images.image_ids[batch.image_index[0]])
        padded = np.pad(np.float32(expected), (0, 20 - len(expected)))
        np.testing.assert_array_equal(batch.proposal_scores[0], padded)


def test_max_proposals_by_default_is_the_largest_count(images):
    [[batch, _]] = take(train(images, make_proposals(images), max_proposals=None), 1)
    assert batch.proposals.shape[1] == 12 + 6


def test_counts(images):
    far = np.tile(np.float32([0, 0, 8, 8]), (20, 1)) + np.arange(20, dtype=np.float32)[:, None]
    boxes = {"im0": far, "im1": np.float32([[1, 1, 30, 30], [1.1, 1, 30, 30], [2, 2, 3, 30]])}
    proposals = make_proposals(images, boxes=boxes)
    pair = images.select([0, 1])
    stream = view_batches(
        pair, proposals, canvases=Canvases((48,)), flips=(False,), rules=ProposalRules(16, min_side_px=2),
        loading=THREADS,
    )  # fmt: skip
    batches = list(stream)
    assert stream.counts["images"] == 2
    assert stream.counts["capped"] == 4
    assert stream.counts["dropped"] == 1
    kept = sum(int(b.proposal_mask.sum()) for b in batches)
    assert stream.counts["proposals"] == kept
    assert stream.counts["merged"] == 16 + 2 - kept > 0
    assert stream.counts["shrunk"] == 0


def test_counts_follow_what_was_handed_out(images):
    stream = train(images, None, batch_size=1, accumulate=3, prefetch=4)
    assert stream.counts["images"] == 0
    next(stream)
    assert stream.counts["images"] == 3
    stream.close()


def test_shrunk_images_are_counted(images):
    wide = images.select([5])  # 30 x 100
    stream = view_batches(wide, None, canvases=CANVASES, flips=(False,), loading=THREADS)
    assert len(list(stream)) == 2
    assert stream.counts["shrunk"] == 2


# Bad input


def truncate(images, index):
    path = images.records[index].path
    content = path.read_bytes()
    path.write_bytes(content[: len(content) - 200])


@pytest.mark.parametrize("loader", ["threads", "tf"])
def test_bad_image_is_masked_counted_and_named_once(images, loader, caplog):
    if loader == "tf":
        pytest.importorskip("tensorflow")
    truncate(images, 2)
    with caplog.at_level(logging.WARNING):
        stream = train(images, None, batch_size=1, accumulate=7, loader=loader)
        updates = take(stream, 2)
    assert stream.counts["bad_images"] == 2 and stream.counts["images"] == 14
    for update in updates:
        masked = [int(b.image_index[0]) for b in update if not b.image_mask[0]]
        assert masked == [2]
        assert all(not b.image.any() for b in update if not b.image_mask[0])
    assert [r.message for r in caplog.records if "im2.jpg" in r.message][1:] == []
    assert "im2.jpg" in caplog.text


@pytest.mark.parametrize("loader", ["threads", "tf"])
def test_bad_image_can_be_an_error(images, loader):
    if loader == "tf":
        pytest.importorskip("tensorflow")
    truncate(images, 2)
    stream = train(images, None, batch_size=1, accumulate=7, on_bad_image="error", loader=loader)
    with pytest.raises(DataError, match="im2.jpg"):
        next(stream)
    with pytest.raises(ConfigError, match="on_bad_image"):
        train(images, None, on_bad_image="ignore")


@pytest.mark.parametrize("loader", ["threads", "tf"])
def test_results_and_errors_come_in_order_as_they_are(loader):
    if loader == "tf":
        pytest.importorskip("tensorflow")

    def assemble(number):
        if number == 5:
            raise RuntimeError("number 5")
        return {"number": np.array(number), "nothing": None}

    results = load(assemble, range(3, 9), Loading(loader=loader, workers=3))
    assert [int(next(results)["number"]) for _ in range(2)] == [3, 4]
    with pytest.raises(RuntimeError, match="number 5"):
        next(results)
    assert list(load(assemble, range(0), Loading(loader=loader))) == []


def test_image_deleted_after_reading_the_set(images):
    images.records[3].path.unlink()
    stream = view_batches(images, None, canvases=CANVASES, batch_size=2, loading=THREADS)
    masks = {}
    for batch in stream:
        for index, real in zip(batch.image_index.tolist(), batch.image_mask.tolist(), strict=True):
            masks.setdefault(index, []).append(real)
    assert masks.pop(3) == [False] * 4
    assert not any(masks.pop(-1))
    assert all(all(real) and len(real) == 4 for real in masks.values())


def test_image_without_proposals_is_skipped_in_training_only(images):
    proposals = make_proposals(images, boxes={"im4": np.zeros((0, 4), np.float32)})
    stream = train(images, proposals, batch_size=1, accumulate=7)
    [update] = take(stream, 1)
    assert {int(b.image_index[0]) for b in update if not b.image_mask[0]} == {4}
    assert stream.counts["without_proposals"] == 1
    for batch in view_batches(images, proposals, canvases=CANVASES, loading=THREADS):
        assert batch.image_mask.all()
        assert batch.proposal_mask.any() == (batch.image_index[0] != 4)


def test_proposals_of_other_images_are_refused(images):
    proposals = make_proposals(images)
    with pytest.raises(DataError, match=r"'im6'.*make_proposals"):
        train(images, proposals.select(images.image_ids[:-1]))
    record = images.records[0]
    other = ImageRecord("im0", record.source, 41, 60, record.labels)
    resized = ImageSet("s", images.class_names, (other, *images.records[1:]))
    with pytest.raises(DataError, match="'im0'"):
        train(resized, proposals)


def test_unknown_loader(images):
    with pytest.raises(ConfigError, match="threads"):
        train(images, None, loader="fork")


# Evaluation


def test_views_follow_each_other_and_share_rows(images):
    proposals = make_proposals(images)
    stream = view_batches(images, proposals, canvases=CANVASES, batch_size=2, loading=THREADS)
    batches = list(stream)
    assert len(batches) == len(stream) and stream.views_per_image == 4
    seen = []
    for start in range(0, len(batches), 4):
        group = batches[start : start + 4]
        seen += [int(i) for i in group[0].image_index if i >= 0]
        originals = []
        for batch in group:
            np.testing.assert_array_equal(batch.image_index, group[0].image_index)
            boxes = batch.proposals.copy()
            mirrored = batch.image_size[:, 1, None, None] - boxes[:, :, [2, 0]]
            boxes[:, :, [0, 2]] = np.where(
                batch.views.flipped[:, None, None], mirrored, boxes[:, :, [0, 2]]
            )
            originals.append(boxes / np.tile(batch.views.scale, 2)[:, None])
        real = group[0].proposals.any(axis=-1)  # [b, r], without padding
        for other in originals[1:]:
            np.testing.assert_allclose(other[real], originals[0][real], atol=1e-3)
    assert sorted(seen) == list(range(7))


def test_views_decode_each_image_once(images):
    watched_set, reads = watched(images)
    list(
        view_batches(
            watched_set,
            None,
            canvases=CANVASES,
            batch_size=2,
            loading=Loading(loader="threads", workers=3),
        )
    )
    assert sorted(reads) == sorted(images.image_ids)


def test_images_that_a_cache_has_are_not_decoded(images):
    class Cache:
        def has(self, index, view, row):
            assert (row.image_index, row.views.flipped) == (index, view.flipped)
            assert not row.image.any() and row.image_mask
            return index == 1 and view.flipped

        def __call__(self, batch):
            return batch

    loading = Loading(loader="threads", cache=Cache())
    for batch in view_batches(images, None, canvases=CANVASES, loading=loading):
        skipped = batch.image_index[0] == 1 and batch.views.flipped[0]
        assert batch.image.any() != skipped
        assert batch.image_mask.all()


def test_no_images():
    empty = ImageSet("none", ("cat",), ())
    assert list(view_batches(empty, None, canvases=CANVASES, loading=THREADS)) == []
    with pytest.raises(DataError, match="no images"):
        train(empty, None)


def test_modules_import_without_tensorflow():
    code = (
        "import sys\n"
        "import wsod_jax.data.input.pipeline, wsod_jax.data.readers.tfds, wsod_jax.data.input.stored_batches\n"
        "import wsod_jax.data.readers.folder, wsod_jax.data.readers.voc\n"
        "assert not {'tensorflow', 'tensorflow_datasets'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# Several processes


def box_set(images):
    def one(record, number):
        boxes = random_boxes(number, 1 + number % 3, record.height, record.width)
        return ImageBoxes(boxes, np.zeros(len(boxes), np.int32), np.zeros(len(boxes), bool))

    found = (one(record, number) for number, record in enumerate(images.records))
    return BoxSet(images, tuple(found), "annotations")


def joined(parts):
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


@pytest.mark.parametrize("loader", ["threads", "tf"])
@pytest.mark.parametrize("kind", ["proposals", "boxes", "windows"])
def test_rows_of_all_processes_are_those_of_one(images, kind, loader):
    if loader == "tf":
        pytest.importorskip("tensorflow")
    data, proposals = images, None
    if kind == "proposals":
        proposals = make_proposals(images, scores=True)
    else:
        data = box_set(images)
    truncate(images, 2)
    options = dict(batch_size=4, start_step=1, canvases=WARPED if kind == "windows" else CANVASES)
    whole = train(data, proposals, **options)
    expected, totals = take(whole, 5), whole.counts
    for count in (2, 4):
        streams = [
            train(
                data, proposals, process_index=index, process_count=count, loader=loader, **options
            )
            for index in range(count)
        ]
        updates = [take(stream, 5) for stream in streams]
        found = [
            [joined(parts) for parts in zip(*update, strict=True)]
            for update in zip(*updates, strict=True)
        ]
        assert_same(found, expected)
        assert {name: sum(stream.counts[name] for stream in streams) for name in totals} == totals


def test_rows_of_all_processes_in_evaluation(images):
    options = dict(canvases=CANVASES, batch_size=4)
    expected = list(view_batches(images, None, **options, loading=THREADS))
    parts = [
        view_batches(
            images,
            None,
            **options,
            loading=Loading(loader="threads", process_index=index, process_count=2),
        )
        for index in range(2)
    ]
    assert_same([joined(rows) for rows in zip(*parts, strict=True)], expected)


def test_a_process_decodes_its_own_rows_alone(images):
    watched_set, read = watched(images)
    options = dict(batch_size=4, accumulate=2, workers=1, prefetch=0)
    stream = train(watched_set, None, process_index=1, process_count=2, **options)
    update = next(stream)
    shown = {images.image_ids[i] for batch in update for i in batch.image_index if i >= 0}
    stream.close()
    assert shown <= set(read) and len(read) <= 2 * 3  # two rows each, one micro-batch ahead


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"process_index": 2, "process_count": 2}, "process_index=2.*process_count=2"),
        ({"process_index": -1}, "process_index=-1"),
        ({"process_count": 2}, r"batch_size=3.* 2 "),
        ({"workers": 0}, "workers=0"),
        ({"prefetch": -1}, "prefetch=-1"),
    ],
)
def test_impossible_loading(images, options, message):
    with pytest.raises(ConfigError, match=message):
        train(images, None, batch_size=3, **options)
    if options == {"process_count": 2}:
        with pytest.raises(ConfigError, match=message):
            loading = Loading(loader="threads", **options)
            view_batches(images, None, canvases=CANVASES, batch_size=3, loading=loading)


@pytest.mark.parametrize("crop_margin", [0, 12])
def test_both_loaders_give_the_same_targets(images, crop_margin):
    pytest.importorskip("tensorflow")
    canvases = dataclasses.replace(CANVASES, crop_margin=crop_margin)
    taken = [
        take(train(box_set(images), None, canvases=canvases, loader=name), 5)
        for name in ("threads", "tf")
    ]
    assert_same(*taken)
    assert taken[0][0][0].targets.mask.any()
