"""Prepared tensorflow-datasets in VOC's form, written here with the same features."""

import numpy as np
import pytest

from tests.data.readers.voc_tree import write_voc
from wsod_jax.data.readers.tfds import Tfds
from wsod_jax.data.readers.voc import Voc
from wsod_jax.errors import ConfigError, DataError

datasets = pytest.importorskip("tensorflow_datasets")

CLASSES = ("cat", "dog", "cow")
IMAGES = {
    "000003": ((20, 30), [("cat", (2, 3, 10, 12), False), ("dog", (1, 1, 30, 20), True)]),
    "000007": ((30, 20), [("cow", (2, 3, 10, 12), True), ("cow", (1, 1, 5, 7), False)]),
    "000009": ((16, 16), []),
}


def features():
    """Return the features of tensorflow-datasets' own VOC that matter here."""
    kinds = datasets.features
    return kinds.FeaturesDict(
        {
            "image": kinds.Image(),
            "image/filename": kinds.Text(),
            "objects": kinds.Sequence(
                {
                    "label": kinds.ClassLabel(names=CLASSES),
                    "bbox": kinds.BBoxFeature(),
                    "is_difficult": np.bool_,
                }
            ),
            "labels": kinds.Sequence(kinds.ClassLabel(names=CLASSES)),
            "labels_no_difficult": kinds.Sequence(kinds.ClassLabel(names=CLASSES)),
        }
    )


def example(tree, image_id):
    (height, width), objects = IMAGES[image_id]
    return {
        "image": str(tree / "JPEGImages" / f"{image_id}.jpg"),
        "image/filename": f"{image_id}.jpg",
        "objects": [
            {
                "label": name,
                "bbox": datasets.features.BBox(
                    box[1] / height, box[0] / width, box[3] / height, box[2] / width
                ),
                "is_difficult": hard,
            }
            for name, box, hard in objects
        ],
        "labels": sorted({name for name, _, _ in objects}),
        "labels_no_difficult": sorted({name for name, _, hard in objects if not hard}),
    }


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Return (VOC tree, data_dir) of the same images."""
    tmp_path = tmp_path_factory.mktemp("tfds")
    tree = write_voc(tmp_path / "VOC2007", IMAGES, classes=CLASSES)
    folder = tmp_path / "prepared" / "voc" / "2007" / "5.0.0"
    folder.mkdir(parents=True)
    identity = datasets.core.dataset_info.DatasetIdentity(
        name="voc",
        config_name="2007",
        version=datasets.core.Version("5.0.0"),
        data_dir=str(folder),
        module_name="tests",
    )
    info = datasets.core.DatasetInfo(builder=identity, features=features())
    writer = datasets.core.SequentialWriter(info, max_examples_per_shard=10)
    writer.initialize_splits(["train", "validation"])
    first, *rest = IMAGES
    writer.add_examples(
        {
            "train": [example(tree, first)],
            "validation": [example(tree, image_id) for image_id in rest],
        }
    )
    writer.close_all()
    return tree, tmp_path / "prepared"


@pytest.mark.parametrize("rule", ["drop", "ignore", "keep"])
def test_same_images_and_labels_as_the_voc_layout(data, rule):
    tree, data_dir = data
    found = Tfds(name="voc/2007", data_dir=data_dir, difficult=rule).images("trainval")
    expected = Voc(root=tree, difficult=rule).images("trainval")
    assert found.class_names == expected.class_names
    by_id = {record.image_id: record for record in found.records}
    assert set(by_id) == set(expected.image_ids)
    for record in expected.records:
        other = by_id[record.image_id]
        assert other.labels == record.labels and other.path is None
        np.testing.assert_array_equal(other.load(), record.load())


def test_same_boxes_as_the_voc_layout(data):
    tree, data_dir = data
    found = Tfds(name="voc/2007", data_dir=data_dir).ground_truth("trainval")
    expected = Voc(root=tree).ground_truth("trainval")
    assert set(found.boxes) == set(expected.boxes)
    for image_id, annotations in expected.boxes.items():
        np.testing.assert_array_equal(found.boxes[image_id].boxes, annotations.boxes)
        np.testing.assert_array_equal(found.boxes[image_id].classes, annotations.classes)
        np.testing.assert_array_equal(found.boxes[image_id].difficult, annotations.difficult)
    assert not found.counts["clipped"] and not found.counts["dropped"]


def test_splits(data):
    _, data_dir = data
    for split, expected in (("train", 1), ("val", 2), ("validation[:1]", 1), ("trainval", 3)):
        assert len(Tfds(name="voc/2007", data_dir=data_dir).images(split)) == expected
    with pytest.raises(DataError, match="it has train, validation"):
        Tfds(name="voc/2007", data_dir=data_dir).images("test")


def test_versions(data):
    _, data_dir = data
    assert len(Tfds(name="voc/2007:5.0.0", data_dir=data_dir).images("train")) == 1
    with pytest.raises(DataError, match=r"found 5\.0\.0"):
        Tfds(name="voc/2007:4.0.0", data_dir=data_dir).images("train")


def test_what_is_not_prepared_is_not_downloaded(tmp_path):
    with pytest.raises(DataError, match="tfds build voc/2012 --data_dir"):
        Tfds(name="voc/2012", data_dir=tmp_path).images("train")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ConfigError, match="drop, ignore, keep"):
        Tfds(name="voc/2012", data_dir=tmp_path, difficult="some").images("train")
