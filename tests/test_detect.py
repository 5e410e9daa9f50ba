"""`wsod_jax.load_run(workdir).detect(image)`: arrays, files, folders, and what cannot be read."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

import wsod_jax
from wsod_jax.data.images import read_image
from wsod_jax.data.proposals.proposal_set import ProposalSet
from wsod_jax.errors import DataError
from wsod_jax.runs.predictor import Predictor
from wsod_jax.runs.training_data import read_proposals


@pytest.fixture(scope="module")
def detector(trained_run) -> Predictor:
    loaded = wsod_jax.load_run(trained_run.workdir)
    return loaded.with_settings(flips=(False,), micro_batch=1)


@pytest.fixture
def files(trained_run):
    """The first two test images."""
    ids = (trained_run.data / "ImageSets" / "Main" / "test.txt").read_text().split()[:2]
    return [trained_run.data / "JPEGImages" / f"{name}.jpg" for name in ids]


def test_what_is_found_is_what_prediction_of_the_set_finds(detector, files):
    images = detector.config.data.images("test").select([0, 1])
    expected = detector.predict(images, read_proposals(detector.config))
    for kind in (str, read_image, lambda path: Image.open(path)):
        found = detector.detect([kind(path) for path in files])
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one.boxes, other.boxes)
            np.testing.assert_array_equal(one.scores, other.scores)
            assert one.size == other.size and one.boxes[:, 2].max() <= one.size[1]
            assert one.names == tuple(images.class_names[i] for i in other.classes)
            assert one.class_names == images.class_names
    assert [one.path for one in detector.detect(files)] == files
    assert found[1].path is None and found[1].image_index == 1


def test_one_image_gives_one_result_and_a_folder_a_list(detector, files, tmp_path):
    (tmp_path / "below").mkdir()
    for path, name in zip(files, ("b.jpg", "below/a.jpg"), strict=True):
        (tmp_path / name).write_bytes(path.read_bytes())
    one = detector.detect(files[0])
    compiled = detector.num_compilations()
    several = detector.detect(tmp_path)
    assert [found.path for found in several] == [tmp_path / "b.jpg", tmp_path / "below/a.jpg"]
    np.testing.assert_array_equal(one.boxes, several[0].boxes)
    assert detector.num_compilations() == compiled
    assert detector.detect([]) == []
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: no image"):
        detector.detect(tmp_path / "empty")
    best = one.above(np.zeros(len(one.class_names)), limit=1)
    assert best.names == one.names[:1]


def test_images_that_cannot_be_used_are_all_named(detector, files, tmp_path):
    cut, text = tmp_path / "cut.jpg", tmp_path / "text.jpg"
    cut.write_bytes(files[0].read_bytes()[:900])
    text.write_text("no image")
    with pytest.raises(DataError, match=r"^2 of 2 images.*cut\.jpg.*text\.jpg"):
        detector.detect(tmp_path)
    with pytest.raises(DataError, match=r"^2 of 3 images.*image 1: .*gone\.jpg.*image 2: .*int"):
        detector.detect([files[0], "gone.jpg", 7])
    for wrong in (
        np.zeros((8, 9), np.uint8),
        np.zeros((8, 9, 3)),
        np.zeros((2, 8, 9, 3), np.uint8),
    ):
        shape = ", ".join(map(str, wrong.shape))
        with pytest.raises(DataError, match=rf"uint8 RGB.*found \[{shape}\] {wrong.dtype}"):
            detector.detect(wrong)


def test_maps_of_any_image(spn_run, files):
    detector = wsod_jax.load_run(spn_run.workdir, changes=["eval.maps.predicted_thr=0.0"])
    found = detector.detect(read_image(files[0]))
    assert set(found.names) == set(detector.class_names) and found.maps.predicted.all()
    assert found.image_scores.shape == (len(detector.class_names),)


@pytest.mark.parametrize("kind", ["gone", "other"])
def test_it_is_told_when_proposals_are_not_those_of_training(detector, files, tmp_path, kind):
    path = tmp_path / "proposals.npz"
    if kind == "other":
        given = read_proposals(detector.config)
        dataclasses.replace(given, generator="edge boxes").save(path)
        assert ProposalSet.read_generator(path) == "edge boxes"
    proposals = dataclasses.replace(detector.config.proposals, path=str(path))
    config = dataclasses.replace(detector.config, proposals=proposals)
    with pytest.warns(UserWarning, match=r"min_side=8.*proposals\.npz"):
        dataclasses.replace(detector, config=config).detect(files[0])
