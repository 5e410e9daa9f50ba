"""Joining boxes of several models: against the literal greedy walk, and by hand at the thresholds."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.evaluation.test_average_precision import detections_of, random_tables
from tests.oracles import evals as oracle
from wsod_jax.errors import DataError
from wsod_jax.evaluation.combining import combine_boxes


def listed(table):
    columns = (table.image_index, table.classes, table.scores, table.boxes)
    return list(zip(*(column.tolist() for column in columns), strict=True))


@given(
    st.integers(0, 10**6),
    st.lists(st.integers(0, 30), min_size=1, max_size=3),
    st.sampled_from([0.0, 0.5, 0.7]),
    st.sampled_from([0.0, 3.0]),
    st.sampled_from([-math.inf, 0.25]),
)
def test_agrees_with_the_greedy_walk(seed, counts, nms_thr, min_side_px, min_score):
    rng = np.random.default_rng(seed)
    tables = [random_tables(rng, num_detections=count)[0] for count in counts]
    found = combine_boxes(tables, nms_thr=nms_thr, min_side_px=min_side_px, min_score=min_score)
    rows = [row for table in tables for row in listed(table)]
    expected = []
    for image in range(4):
        for c in range(3):
            group = [
                (image, c, score, box)
                for i, k, score, box in rows
                if (i, k) == (image, c)
                and score > min_score
                and min(box[2] - box[0], box[3] - box[1]) >= min_side_px
            ]
            kept = oracle.greedy_nms([row[3] for row in group], [row[2] for row in group], nms_thr)
            expected += [group[i] for i in kept]
    assert listed(found) == expected
    assert (found.num_images, found.num_classes) == (4, 3)


def test_thresholds_at_the_boundary():
    rows = [
        (0, 0, 0.9, [0, 0, 50, 100]),
        (0, 0, 0.8, [0, 0, 50, 70]),  # IoU of exactly 0.7 survives
        (0, 0, 0.7, [0, 0, 50, 99]),
        (0, 0, 0.6, [200, 0, 249, 100]),  # a side of 49
        (0, 0, 0.5, [200, 0, 250, 50]),  # overlaps only the one dropped
        (0, 0, 0.0, [400, 0, 500, 100]),
        (0, 0, -0.1, [600, 0, 700, 100]),
    ]
    found = combine_boxes([detections_of(rows)])
    assert found.scores.tolist() == pytest.approx([0.9, 0.8, 0.5])
    everything = combine_boxes(
        [detections_of(rows)], nms_thr=1.0, min_side_px=0, min_score=-math.inf
    )
    assert len(everything) == len(rows)


def test_equal_scores_rank_by_table_then_row():
    first = detections_of([(0, 0, 0.5, [1, 0, 100, 100]), (0, 0, 0.5, [2, 0, 100, 100])])
    second = detections_of([(0, 0, 0.5, [0, 0, 100, 100])])
    assert combine_boxes([first, second]).boxes.tolist() == [[1, 0, 100, 100]]
    assert combine_boxes([second, first]).boxes.tolist() == [[0, 0, 100, 100]]


def test_nothing_to_combine():
    empty = detections_of([], num_images=2, num_classes=3)
    found = combine_boxes([empty, empty])
    assert len(found) == 0 and (found.num_images, found.num_classes) == (2, 3)
    with pytest.raises(DataError, match="at least one"):
        combine_boxes([])
    with pytest.raises(DataError, match="different sets"):
        combine_boxes([empty, detections_of([])])
