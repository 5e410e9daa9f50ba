"""tensorflow-datasets' own VOC, prepared by its builder from a small tree, read one image at a time."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from tests.data.readers.voc_tree import write_voc
from tests.test_packaging import run_python
from wsod_jax import build
from wsod_jax.data.readers.tfds import Tfds
from wsod_jax.data.readers.voc import Voc
from wsod_jax.errors import ConfigError, DataError

datasets = pytest.importorskip("tensorflow_datasets")

CONFIG = Path(__file__).resolve().parents[3] / "configs" / "wsddn_vgg16_voc07_tfds.py"
IMAGES = {
    "000003": ((20, 30), [("cat", (2, 3, 10, 12), False), ("dog", (1, 1, 30, 20), True)]),
    "000007": ((30, 20), [("cow", (2, 3, 10, 12), True), ("cow", (1, 1, 5, 7), False)]),
    "000009": ((16, 16), []),
}


def prepare(tree, data_dir, **options):
    """Run the builder on a tree in the place of what it would download."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            datasets.download.DownloadManager,
            "download_and_extract",
            lambda self, urls: dict.fromkeys(urls, str(tree.parents[1])),
        )
        datasets.builder("voc/2007", data_dir=data_dir, **options).download_and_prepare()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Return (VOC tree, data_dir) of the same images."""
    tmp_path = tmp_path_factory.mktemp("tfds")
    tree = tmp_path / "VOCdevkit" / "VOC2007"
    first, *rest = IMAGES
    for split, ids in (("train", [first]), ("val", rest), ("test", rest), ("trainval", IMAGES)):
        write_voc(tree, {i: IMAGES[i] for i in ids}, split=split, classes=())
    prepare(tree, tmp_path / "prepared", file_format="array_record")
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
        assert (other.height, other.width) == (record.height, record.width)
        np.testing.assert_array_equal(other.load(), record.load())


def test_same_boxes_as_the_voc_layout(data):
    tree, data_dir = data
    found = Tfds(name="voc/2007", data_dir=data_dir).annotated_boxes("trainval")
    expected = Voc(root=tree).annotated_boxes("trainval")
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
    with pytest.raises(DataError, match="'tests'.*test, train, validation"):
        Tfds(name="voc/2007", data_dir=data_dir).images("tests")


def test_versions(data):
    _, data_dir = data
    assert len(Tfds(name="voc/2007:5.0.0", data_dir=data_dir).images("train")) == 1
    with pytest.raises(DataError, match=r"found 5\.0\.0"):
        Tfds(name="voc/2007:4.0.0", data_dir=data_dir).images("train")


def test_what_is_not_prepared_is_not_downloaded(tmp_path):
    with pytest.raises(
        DataError, match="not prepared.*nothing(.|\n)*voc/2012.*download_and_prepare"
    ):
        Tfds(name="voc/2012", data_dir=tmp_path).images("train")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ConfigError, match="drop, ignore, keep"):
        Tfds(name="voc/2012", data_dir=tmp_path, difficult="some").images("train")


def test_format_without_random_access_is_refused(data, tmp_path):
    tree, _ = data
    prepare(tree, tmp_path)  # as tensorflow-datasets does unless told
    with pytest.raises(DataError, match="tfrecord(.|\n)*file_format='array_record'"):
        Tfds(name="voc/2007", data_dir=tmp_path).images("train")


def test_committed_configuration_reads_it_without_tensorflow(data):
    _, data_dir = data
    spec = importlib.util.spec_from_file_location("config", CONFIG)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    config.data.data_dir = str(data_dir)
    reader = build.read_config(config).data
    assert isinstance(reader, Tfds)
    code = f"""
import sys
from wsod_jax.data.readers.tfds import Tfds
reader = Tfds(name={reader.name!r}, data_dir={reader.data_dir!r}, difficult={reader.difficult!r})
images = reader.images({reader.train_split!r})
print(len(images), *sorted(record.load().shape for record in images.records))
print(sum(len(found.boxes) for found in reader.annotated_boxes({reader.test_split!r}).boxes.values()))
print("tensorflow" in sys.modules)
"""
    lines = run_python(code).splitlines()
    assert lines[-3:] == ["3 (16, 16, 3) (20, 30, 3) (30, 20, 3)", "2", "False"]
