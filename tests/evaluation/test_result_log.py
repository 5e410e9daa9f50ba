"""A log gives back what was put in, keeps what was finished, and drops what was not."""

import dataclasses
import os

import numpy as np
import pytest

from wsod_jax.evaluation.maps import ImageMaps, MapReading, ViewMaps
from wsod_jax.evaluation.result_log import ResultLog
from wsod_jax.types import ImageResult, Mask

READING = MapReading(threshold=0.7)
IDENTITY = {"step": 4, "set": "test", "views": [[480, False]]}


def open_log(path, identity=IDENTITY):
    return ResultLog(path, identity, READING)


def masks(rng):
    """Windows of sizes that do and do not fill bytes, one of no pixel."""
    return tuple(
        Mask(top, 2 * top, rng.random(shape) < 0.5)
        for top, shape in enumerate([(3, 5), (8, 2), (0, 0), (1, 1)])
    )


def full_result(index, seed=0):
    """Fill every field."""
    rng = np.random.default_rng(seed)
    views = (
        ViewMaps(rng.normal(size=(3, 4, 2)).astype(np.float32), rng.random((2, 3)), (48, 64), True),
        ViewMaps(np.zeros((0, 4, 2), np.float32), np.zeros((0, 0)), (9, 7), False),
    )
    maps = ImageMaps(views, np.array([1, 4]), rng.random(6) < 0.5, (20, 30), READING)
    return ImageResult(
        index,
        (20, 30),
        boxes=rng.random((4, 4)).astype(np.float32),
        scores=rng.random(4).astype(np.float32),
        classes=rng.integers(0, 6, 4).astype(np.int32),
        rows=np.arange(4, dtype=np.int32),
        views=np.full(4, -1, np.int32),
        masks=masks(rng),
        image_scores=rng.random(6).astype(np.float32),
        maps=maps,
        semantic=rng.integers(0, 7, (20, 30)).astype(np.uint8),
        candidate_scores=np.where(rng.random((6, 5)) < 0.5, rng.random((6, 5)), -np.inf),
    )


def boxes_result(index, score=0.5):
    return ImageResult(
        index,
        (5, 6),
        boxes=np.full((1, 4), index, np.float32),
        scores=np.array([score], np.float32),
        classes=np.zeros(1, np.int32),
    )


def expect_same(found, expected):
    """Compare two values of a result, arrays bit by bit and with their types."""
    assert type(found) is type(expected)
    if dataclasses.is_dataclass(expected):
        for field in dataclasses.fields(expected):
            if not field.name.startswith("_"):
                expect_same(getattr(found, field.name), getattr(expected, field.name))
    elif isinstance(expected, np.ndarray):
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)
    elif isinstance(expected, tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            expect_same(one, other)
    else:
        assert found == expected


@pytest.mark.parametrize(
    "result",
    [
        full_result(3),
        boxes_result(0),
        ImageResult(7, (1, 1)),
        dataclasses.replace(boxes_result(1), masks=()),
        dataclasses.replace(full_result(2), masks=None, maps=None),
    ],
    ids=["everything", "boxes", "nothing", "no masks", "no maps"],
)
def test_every_field_comes_back(tmp_path, result):
    path = tmp_path / "below" / "log"
    log = open_log(path)
    log.add(result, {"images": 1})
    expect_same(log[result.image_index], result)
    log = open_log(path)
    expect_same(log[result.image_index], result)
    assert log.counts == {"images": 1}


def test_results_come_in_the_order_of_their_images(tmp_path):
    log = open_log(tmp_path / "log")
    assert len(log) == 0 and 4 not in log and list(log) == []
    for index in (4, 0, 11):
        log.add(boxes_result(index), {})
    for _ in range(2):
        assert [result.image_index for result in log] == [0, 4, 11]
    assert len(log) == 3 and 4 in log and 5 not in log
    log.add(boxes_result(2), {})  # after reading
    assert [int(result.boxes[0, 0]) for result in log] == [0, 2, 4, 11]
    with pytest.raises(KeyError):
        log[5]


def test_a_log_goes_on_where_it_was_cut_off(tmp_path):
    """Wherever the last record ends, the whole ones stay, and later ones follow."""
    path = tmp_path / "log"
    log = open_log(path)
    log.add(full_result(5), {"images": 1})
    log.add(boxes_result(1), {"images": 2})
    whole = os.path.getsize(path)
    log.add(full_result(2, seed=1), {"images": 3})
    content = path.read_bytes()
    line = content.index(b"\n", whole)
    for size in (whole, whole + 1, line, line + 1, line + 9, len(content) - 1):
        path.write_bytes(content[:size])
        log = open_log(path)
        assert len(log) == 2 and 2 not in log and log.counts == {"images": 2}
        assert os.path.getsize(path) == whole
        log.add(boxes_result(3), {"images": 3})
        assert [result.image_index for result in log] == [1, 3, 5]
        log = open_log(path)
        assert [result.image_index for result in log] == [1, 3, 5]
        expect_same(log[5], full_result(5))


@pytest.mark.parametrize("identity", [{**IDENTITY, "step": 5}, {}])
def test_a_log_of_something_else_starts_anew(tmp_path, identity):
    path = tmp_path / "log"
    log = open_log(path)
    log.add(boxes_result(0), {"images": 1})
    log = open_log(path, identity)
    assert len(log) == 0 and log.counts == {}
    log.add(boxes_result(1), {"images": 9})
    log = open_log(path, identity)
    assert [result.image_index for result in log] == [1]
    log = open_log(path)
    assert len(log) == 0


def test_the_order_of_an_identity_and_a_foreign_file_do_not_matter(tmp_path):
    path = tmp_path / "log"
    path.write_bytes(b"\x00\xff no log\n" * 50)
    log = open_log(path)
    log.add(boxes_result(0), {})
    log = open_log(path, dict(reversed(IDENTITY.items())))
    assert len(log) == 1


def test_the_latest_result_of_an_image_counts(tmp_path):
    log = open_log(tmp_path / "log")
    log.add(boxes_result(0, 0.25), {})
    log.add(boxes_result(0, 0.75), {})
    assert log[0].scores.tolist() == [0.75] and len(log) == 1
    log = open_log(tmp_path / "log")
    assert log[0].scores.tolist() == [0.75]


def test_a_log_can_be_removed_twice(tmp_path):
    log = open_log(tmp_path / "log")
    log.add(boxes_result(0), {})
    log.remove()
    assert not (tmp_path / "log").exists()
    log.remove()
