"""analysis/edges.py: where the weights of SPN's graph lie."""

import numpy as np

from tests.oracles.soft_proposal import weight_matrix
from wsod_jax.analysis.edges import EdgeShares, cells_on_objects, edge_shares, edge_table
from wsod_jax.runs.annotated_images import AnnotatedImages
from wsod_jax.runs.predictor import load_run


def test_cells_on_objects_are_those_whose_centers_are():
    boxes = np.array([[0, 0, 1, 1], [4, 2, 9, 8]])
    on = cells_on_objects(boxes, (9, 10), (3, 4))
    expected = np.zeros((3, 4), bool)  # centers y 0.5, 4.5, 8.5; x 0.5, 3.5, 6.5, 9.5
    expected[0, 0] = expected[1, 2] = True
    np.testing.assert_array_equal(on, expected)
    assert cells_on_objects(boxes[:1], (1, 1), (1, 1)).all()
    assert not cells_on_objects(np.zeros((0, 4)), (9, 10), (3, 4)).any()


def test_shares_are_those_of_the_literal_matrix(spn_run):
    predictor = load_run(spn_run.workdir)
    split = AnnotatedImages.read(predictor.config.data, "test")
    positions = [2, 0]
    found = list(edge_shares(predictor, split, positions))
    views = predictor.views(split.images.select(positions), None)
    rows = {
        positions[int(batch.image_index[row])]: (batch, row)
        for batch in views
        for row in np.flatnonzero(batch.image_mask)
    }
    expected = {}
    for image, (batch, row) in rows.items():
        maps = predictor.method.coupled_features(predictor.params, batch)
        height, width = np.asarray(maps.size[row])
        features = np.asarray(maps.features[row, :height, :width])
        matrix = weight_matrix(features, 0.15 * np.sqrt(height * width))
        on = cells_on_objects(
            split.truth.of_image(image).boxes, split.sizes[image], (height, width)
        ).reshape(-1)
        stationary = matrix.sum(axis=1) / matrix.sum()
        expected[image] = (matrix[on][:, on].sum() / matrix.sum(), stationary[on].sum())
    got = sorted((shares.inside, shares.energy) for shares in found)
    np.testing.assert_allclose(got, sorted(expected.values()), rtol=1e-4)
    for shares in found:
        assert abs(shares.inside + shares.across + shares.outside - 1) < 1e-9


def test_table_by_hand():
    shares = [EdgeShares(0.5, 0.25, 0.25), EdgeShares(0.25, 0.25, 0.5)]
    table = edge_table({"a": shares, "b": shares[:1], "none": []}).splitlines()
    assert len({line.count("|") for line in table}) == 1
    assert table[2:] == [
        "| a | 2 | 37.5 % | 25.0 % | 37.5 % | 50.0 % |",
        "| b | 1 | 50.0 % | 25.0 % | 25.0 % | 62.5 % |",
        "| none | 0 |  |  |  |  |",
    ]
