"""Masks and label maps of VOC and SBD: real formats, faults named, literal loops."""

import logging

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from tests.data.readers.voc_tree import pixels, write_voc
from wsod_jax.data.readers.sbd import Sbd
from wsod_jax.data.readers.voc import CLASS_NAMES, Voc
from wsod_jax.data.records import ImageInstances
from wsod_jax.errors import ConfigError, DataError

# Two objects that touch, the second in two parts, a void rim, and a stray pixel of another class in each map.
OBJECTS = np.array(
    [
        [0, 255, 255, 255, 0, 0],
        [0, 1, 1, 2, 2, 0],
        [0, 1, 1, 2, 2, 0],
        [0, 0, 255, 0, 0, 2],
    ],
    np.uint8,
)
CLASSES = np.array(
    [
        [0, 255, 255, 255, 0, 0],
        [0, 12, 12, 8, 12, 0],
        [0, 12, 8, 8, 12, 0],
        [0, 0, 255, 0, 0, 255],
    ],
    np.uint8,
)
DOG, CAT = CLASS_NAMES.index("dog"), CLASS_NAMES.index("cat")  # 12 and 8 in files


def save_palette(path, indices):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(indices, "L").convert("P")
    image.putdata(indices.ravel().tolist())
    image.putpalette(list(np.random.default_rng(0).integers(0, 256, 768)))
    image.save(path)


@pytest.fixture
def voc(tmp_path):
    root = write_voc(tmp_path, {"a": ((4, 6), []), "b": ((5, 3), [])}, split="val", classes=None)
    for image_id, objects, classes in (
        ("a", OBJECTS, CLASSES),
        ("b", np.zeros((5, 3), np.uint8), np.zeros((5, 3), np.uint8)),
    ):
        save_palette(root / "SegmentationObject" / f"{image_id}.png", objects)
        save_palette(root / "SegmentationClass" / f"{image_id}.png", classes)
    return root


def full(mask, shape):
    found = np.zeros(shape, bool)
    h, w = mask.pixels.shape
    found[mask.top : mask.top + h, mask.left : mask.left + w] = mask.pixels
    return found


def test_masks_and_label_maps_of_voc(voc):
    data = Voc(root=voc)
    assert data.has_instances and data.has_label_maps
    instances, maps = data.instances("val"), data.label_maps("val")
    assert tuple(instances) == tuple(maps) == data.images("val").image_ids == ("a", "b")
    found = instances["a"]()
    for number, mask in enumerate(found.masks, 1):
        np.testing.assert_array_equal(full(mask, (4, 6)), OBJECTS == number)
    # Object 1: dog 3 pixels, cat 1. Object 2: two each, a tie, and one void: the lower class.
    assert found.classes.tolist() == [DOG, CAT] and found.classes.dtype == np.int32
    assert found.areas.tolist() == [4, 5] and not found.ignore.any() and not found.crowd.any()
    assert found.masks[1].pixels.shape == (3, 3)
    np.testing.assert_array_equal(maps["a"](), CLASSES)
    assert maps["a"]().dtype == np.uint8
    assert instances["b"]().masks == () and not maps["b"]().any()


def test_numbers_follow_the_names(voc):
    """A file's numbers are those of VOC or of classes.txt, whatever the order of class_names."""
    data = Voc(root=voc, class_names=("cat", "dog"))
    assert data.instances("val")["a"]().classes.tolist() == [1, 0]
    expected = np.where(CLASSES == 12, 2, np.where(CLASSES == 8, 1, CLASSES))
    np.testing.assert_array_equal(data.label_maps("val")["a"](), expected)
    with pytest.raises(DataError, match=r"a\.png: .* 8\b.* 0, 12, 255"):
        Voc(root=voc, class_names=("dog",)).label_maps("val")["a"]()
    (voc / "classes.txt").write_text("\n".join(["dog", "cat"]))
    save_palette(voc / "SegmentationClass" / "a.png", expected.astype(np.uint8))
    data = Voc(root=voc, class_names=("dog", "cat"))  # 1 is the dog of classes.txt
    np.testing.assert_array_equal(data.label_maps("val")["a"](), expected)
    (voc / "classes.txt").unlink()
    own = Voc(root=voc, class_names=("ace", "king"))
    np.testing.assert_array_equal(own.label_maps("val")["a"](), expected)


def test_splits_of_the_segmentation(voc):
    folder = voc / "ImageSets" / "Segmentation"
    folder.mkdir()
    (folder / "val.txt").write_text("b\n")
    (folder / "train.txt").write_text("a\n")
    data = Voc(root=voc)
    assert data.images("val").image_ids == ("a", "b")  # Main goes first
    assert data.images("train").image_ids == ("a",) == tuple(data.instances("train"))
    assert tuple(data.label_maps("Segmentation/val")) == ("b",)
    with pytest.raises(DataError, match=r"test\.txt: .*found.*Segmentation/train"):
        data.instances("test")


def test_masks_count_without_their_image(voc):
    (voc / "JPEGImages" / "a.jpg").unlink()
    (voc / "JPEGImages" / "b.jpg").write_bytes(b"no image")
    assert len(Voc(root=voc).instances("val")["a"]().masks) == 2
    assert len(Voc(root=voc).instances("val")["b"]().masks) == 0


def test_faults_of_label_images(voc):
    data, objects = Voc(root=voc), voc / "SegmentationObject" / "a.png"
    classes = voc / "SegmentationClass" / "a.png"
    save_palette(objects, OBJECTS[:3])
    with pytest.raises(DataError, match=r"a\.png: .*\(3, 6\).*a\.jpg.*\(4, 6\)"):
        data.instances("val")["a"]()
    save_palette(objects, np.where(OBJECTS == 0, 7, OBJECTS).astype(np.uint8))
    with pytest.raises(DataError, match=r"a\.png: .*object 7\b"):
        data.instances("val")["a"]()
    Image.new("RGB", (6, 4)).save(classes)
    with pytest.raises(DataError, match=r"a\.png: .*RGB"):
        data.label_maps("val")["a"]()
    classes.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"a\.png: .*readable"):
        data.label_maps("val")["a"]()
    classes.unlink()
    save_palette(objects, OBJECTS)
    with pytest.raises(DataError, match=r"SegmentationClass/a\.png"):
        data.instances("val")["a"]()
    assert "a" not in data.label_maps("val")  # its pixels are not annotated
    (voc / "JPEGImages" / "a.jpg").unlink()  # then the two are compared with each other
    save_palette(classes, CLASSES[:, :5])
    with pytest.raises(DataError, match=r"\(4, 6\).*\(4, 5\)"):
        data.instances("val")["a"]()


@pytest.mark.parametrize("seed", range(3))
def test_instances_of_any_map(seed):
    rng = np.random.default_rng(seed)
    indices = rng.choice([0, 1, 3, 200, 255], (9, 7)).astype(np.uint8)
    classes = {1: 4, 2: 0, 3: 4, 200: 1}  # number 2 has no pixel
    found = ImageInstances.from_indices(indices, classes)
    expected = [number for number in (1, 3, 200) if (indices == number).any()]
    assert found.classes.tolist() == [classes[number] for number in expected]
    for mask, area, number in zip(found.masks, found.areas, expected, strict=True):
        np.testing.assert_array_equal(full(mask, (9, 7)), indices == number)
        assert mask.pixels.any(axis=0)[[0, -1]].all() and mask.pixels.any(axis=1)[[0, -1]].all()
        assert area == (indices == number).sum()


# SBD


def save_sbd(root, image_id, objects, categories, classes, size=None):
    """Write an image as SBD does: structures with further fields, Categories a column."""
    for folder in ("img", "inst", "cls"):
        (root / "dataset" / folder).mkdir(parents=True, exist_ok=True)
    image = pixels(0, *(size or objects.shape))
    Image.fromarray(image).save(root / "dataset" / "img" / f"{image_id}.jpg")
    column = np.array(categories, np.uint8).reshape(-1, 1)
    cells = np.empty((len(categories), 1), object)
    cells[:, 0] = [np.zeros(objects.shape)] * len(categories)
    instances = {"Segmentation": objects, "Boundaries": cells, "Categories": column}
    savemat(root / "dataset" / "inst" / f"{image_id}.mat", {"GTinst": instances})
    content = {"Segmentation": classes, "CategoriesPresent": column}
    savemat(root / "dataset" / "cls" / f"{image_id}.mat", {"GTcls": content})


@pytest.fixture
def sbd(tmp_path):
    objects = np.where(OBJECTS == 255, 0, OBJECTS).astype(np.uint8)
    save_sbd(tmp_path, "2008_000002", objects, [12, 8], np.where(objects == 2, 8, objects * 12))
    save_sbd(tmp_path, "2008_000003", np.zeros((5, 3), np.uint8), [], np.zeros((5, 3), np.uint8))
    (tmp_path / "dataset" / "val.txt").write_text("2008_000002\n2008_000003\n")
    return tmp_path


@pytest.mark.parametrize("inner", ["", "dataset"])
def test_sbd(sbd, inner):
    data = Sbd(root=sbd / inner)
    images = data.images("val")
    assert images.image_ids == ("2008_000002", "2008_000003") and images.class_names == CLASS_NAMES
    assert np.flatnonzero(images.labels[0]).tolist() == [CAT, DOG] and not images.labels[1].any()
    assert images.counts == {"bad_image": 0, "no_object": 1}
    assert [(r.height, r.width) for r in images.records] == [(4, 6), (5, 3)]
    found = data.instances("val")["2008_000002"]()
    assert found.classes.tolist() == [DOG, CAT] and found.areas.tolist() == [4, 5]
    np.testing.assert_array_equal(full(found.masks[1], (4, 6)), OBJECTS == 2)
    labels = data.label_maps("val")["2008_000002"]()
    np.testing.assert_array_equal(labels, np.where(OBJECTS == 2, 8, (OBJECTS == 1) * 12))
    assert labels.dtype == np.uint8
    truth = data.annotated_boxes("val")
    boxes = truth.boxes["2008_000002"]
    np.testing.assert_array_equal(boxes.boxes, [[1, 1, 3, 3], [3, 1, 6, 4]])
    assert boxes.classes.tolist() == [DOG, CAT] and not boxes.difficult.any()
    assert boxes.areas.tolist() == [4, 5]
    assert truth.boxes["2008_000003"].boxes.shape == (0, 4)
    assert data.boxes("val").max_targets == 2


def test_faults_of_sbd(sbd, caplog):
    folder = sbd / "dataset" / "inst"
    data, lenient = Sbd(root=sbd), Sbd(root=sbd, on_bad="skip_all")
    with pytest.raises(DataError, match="found val"):
        data.images("train")
    with pytest.raises(ConfigError, match="on_bad='warn'"):
        Sbd(root=sbd, on_bad="warn")

    def refused(message):
        with caplog.at_level(logging.WARNING):
            assert lenient.images("val").missing == ("2008_000002",)
            assert list(lenient.annotated_boxes("val").boxes) == ["2008_000003"]
        with pytest.raises(DataError, match=message):
            Sbd(root=sbd, on_bad="error").images("val")
        with pytest.raises(DataError, match=r"1 of 2 images .*\(2008_000002\)"):
            data.images("val")
        with pytest.raises(DataError, match=message):
            data.instances("val")["2008_000002"]()

    path = folder / "2008_000002.mat"
    savemat(path, {"GTinst": {"Segmentation": OBJECTS, "Categories": [[12]]}})
    refused(r"object 2.* 1 to 20.*GTinst.Categories.*\[12\]")
    savemat(path, {"GTinst": {"Segmentation": OBJECTS, "Categories": [[12, 21]]}})
    refused("object 2")
    savemat(path, {"GTinst": {"Categories": [[12, 8]]}})
    refused("GTinst.Segmentation")
    savemat(path, {"GTcls": {"Segmentation": OBJECTS}})
    refused(r"GTinst.Segmentation.*\['GTcls'\]")
    savemat(path, {"GTinst": {"Segmentation": OBJECTS * -1.0, "Categories": [[1]]}})
    refused("0 to 255")
    path.write_bytes(b"no file of MATLAB")
    refused(r"2008_000002\.mat")
    path.unlink()
    refused(r"2008_000002\.mat")


def test_a_mask_of_sbd_of_another_size(sbd):
    save_sbd(sbd, "2008_000003", OBJECTS, [12, 8], OBJECTS, size=(8, 12))
    for read in (Sbd(root=sbd).instances, Sbd(root=sbd).label_maps):
        with pytest.raises(DataError, match=r"\(4, 6\).*\(8, 12\)"):
            read("val")["2008_000003"]()
