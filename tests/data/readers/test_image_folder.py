"""The ImageNet layout: class folders or a CSV, boxes from XML, sizes kept between starts."""

import json
import logging
import os
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.readers.voc_tree import OBJECT
from wsod_jax.data.readers import size_index
from wsod_jax.data.readers.image_folder import ImageFolder
from wsod_jax.data.training_labels import check_single_label
from wsod_jax.errors import ConfigError, DataError

TRAIN = {
    "n02/x_1.JPEG": (8, 6),
    "n02/x_2.JPEG": (5, 9),
    "n01/x_1.png": (4, 4),
    "n10/deep/er.jpg": (7, 3),
}


def save(path, size):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (9, 90, 200)).save(path)


@pytest.fixture
def root(tmp_path):
    """train: a folder per class; val: flat, with a CSV."""
    for name, size in TRAIN.items():
        save(tmp_path / "train" / name, size)
    (tmp_path / "train" / "n03").mkdir()  # a class without images
    (tmp_path / "train" / "n02" / "notes.txt").write_text("no image")
    for number, size in enumerate([(6, 4), (3, 5), (10, 10)]):
        save(tmp_path / "val" / f"v_{number}.JPEG", size)
    (tmp_path / "val.csv").write_text("image,label\nv_1.JPEG,n10\nv_0,n01\nv_2.JPEG,n02\n")
    return tmp_path


def as_dict(images):
    return {record.image_id: record.labels for record in images.records}


def test_a_class_is_a_folder(root):
    images = ImageFolder(root=root).images("train")
    assert images.class_names == ("n01", "n02", "n03", "n10")
    assert as_dict(images) == {
        "n01/x_1": (1, 0, 0, 0),
        "n02/x_1": (0, 1, 0, 0),
        "n02/x_2": (0, 1, 0, 0),
        "n10/deep/er": (0, 0, 0, 1),
    }
    assert list(as_dict(images)) == sorted(as_dict(images))
    assert images.counts == {"bad_image": 0, "unlabeled": 0, "other_file": 1}
    for record in images.records:
        width, height = TRAIN[record.path.relative_to(root / "train").as_posix()]
        assert (record.height, record.width) == (height, width) and record.load().any()
    first, second = (record.labels for record in images.records[1:3])
    assert first is second  # a million images share a thousand vectors
    check_single_label(images)


def test_flat_with_a_csv(root):
    images = ImageFolder(root=root, class_names=("n01", "n02", "n03", "n10")).images("val")
    assert as_dict(images) == {"v_0": (1, 0, 0, 0), "v_1": (0, 0, 0, 1), "v_2": (0, 1, 0, 0)}
    assert ImageFolder(root=root).images("val").class_names == ("n01", "n02", "n10")
    (root / "val.csv").write_text("image,labels\nv_1,n10;n01\nv_0,\n")
    images = ImageFolder(root=root).images("val")
    assert as_dict(images) == {"v_0": (0, 0), "v_1": (1, 1)} and images.counts["unlabeled"] == 1
    with pytest.raises(DataError, match=r"val\.csv:2: .*'n10'.*n01"):
        ImageFolder(root=root, class_names=("n01",)).images("val")


def test_readable_names_are_shared_by_all_splits(root):
    lines = "n10 crane\nn01 tench, Tinca tinca\n\nn02 crane\nn03\nn20 never seen\n"
    (root / "class_names.txt").write_text(lines)
    expected = ("tench, Tinca tinca", "crane (n02)", "n03", "crane (n10)", "never seen")
    for split in ("train", "val"):
        images = ImageFolder(root=root).images(split)
        assert images.class_names == expected and images.labels.shape[1] == 5
    assert as_dict(images)["v_1"] == (0, 0, 0, 1, 0)
    images = ImageFolder(root=root, class_names=("n10", "n03", "n02", "n01")).images("train")
    assert images.class_names == ("crane (n10)", "n03", "crane (n02)", "tench, Tinca tinca")
    (root / "class_names.txt").write_text("n10 a\nn10 b\n")
    with pytest.raises(DataError, match=r"class_names\.txt:2: .*'n10'.*twice"):
        ImageFolder(root=root).images("train")


def test_unknown_class_folder(root):
    (root / "class_names.txt").write_text("n01 a\nn02 b\n")
    with pytest.raises(DataError, match=r"2 classes.*'n03'"):
        ImageFolder(root=root).images("train")
    with pytest.raises(DataError, match="'n01'"):
        ImageFolder(root=root, class_names=("n02", "n03", "n10")).images("train")
    with pytest.raises(DataError, match="distinct"):
        ImageFolder(root=root, class_names=("n01", "n01")).images("train")


def test_strays_are_left_out(root):
    save(root / "train" / "stray.jpg", (5, 5))
    save(root / "train" / ".cache" / "thumb.jpg", (5, 5))
    images = ImageFolder(root=root).images("train")
    assert len(images) == 4 and images.counts["unlabeled"] == 1
    assert images.class_names == ("n01", "n02", "n03", "n10")


def test_a_class_may_be_a_link(root, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    save(elsewhere / "z.jpg", (5, 4))
    (root / "train" / "n05").symlink_to(elsewhere)
    assert as_dict(ImageFolder(root=root).images("train"))["n05/z"] == (0, 0, 0, 1, 0)


def test_same_name_but_for_the_suffix(root):
    save(root / "train" / "n02" / "x_1.png", (5, 5))
    with pytest.raises(DataError, match=r"x_1\.(png|jpg|JPEG).*x_1\.(png|jpg|JPEG)"):
        ImageFolder(root=root).images("train")


def test_nothing_there(root):
    with pytest.raises(DataError, match="test"):
        ImageFolder(root=root).images("test")
    (root / "test" / "n01").mkdir(parents=True)
    with pytest.raises(DataError, match="no image"):
        ImageFolder(root=root).images("test")
    save(root / "flat" / "a.jpg", (4, 4))
    with pytest.raises(DataError, match=r"flat\.csv"):
        ImageFolder(root=root).images("flat")


# The index of sizes


@pytest.fixture
def opened(monkeypatch):
    """Return the list of the images whose headers were read."""
    names = []

    def watched(path):
        names.append(path.name)
        return image_size(path)

    image_size = size_index.image_size
    monkeypatch.setattr(size_index, "image_size", watched)
    return names


def test_headers_are_read_once(root, opened):
    first = ImageFolder(root=root).images("train")
    assert len(opened) == 4 and (root / "train.sizes.npz").is_file()
    opened.clear()
    assert ImageFolder(root=root).images("train") == first and not opened
    ImageFolder(root=root).images("val"), opened.clear()
    assert len(ImageFolder(root=root).images("val")) == 3 and not opened


def test_only_new_headers_are_read(root, opened):
    ImageFolder(root=root).images("train")
    opened.clear()
    (root / "train" / "n02" / "x_1.JPEG").unlink()
    save(root / "train" / "n03" / "new.jpg", (11, 12))
    images = ImageFolder(root=root).images("train")
    assert opened == ["new.jpg"] and list(as_dict(images))[2:] == ["n03/new", "n10/deep/er"]
    assert (images.records[2].height, images.records[2].width) == (12, 11)
    save(root / "train" / "n02" / "x_1.JPEG", (2, 3))  # back, but of another size
    images = ImageFolder(root=root).images("train")
    assert opened == ["new.jpg", "x_1.JPEG"]
    assert (images.records[1].height, images.records[1].width) == (3, 2)


def test_index_elsewhere(root, tmp_path, opened):
    index = tmp_path / "cache.npz"
    first = ImageFolder(root=root, index_path=index).images("train")
    assert index.is_file() and not list(root.glob("*.sizes.npz")) and len(opened) == 4
    assert (
        ImageFolder(root=root, index_path=str(index)).images("train") == first and len(opened) == 4
    )


@pytest.mark.parametrize("damage", ["text", "cut", "other", "sizes"])
def test_damaged_index_is_made_anew(root, opened, damage, caplog):
    first = ImageFolder(root=root).images("train")
    index = root / "train.sizes.npz"
    if damage == "text":
        index.write_bytes(b"hello")
    elif damage == "cut":
        index.write_bytes(index.read_bytes()[:100])
    elif damage == "other":
        np.savez(index, weights=np.ones(3))
    else:
        np.savez(
            index, paths=np.frombuffer(b"n01/x_1.png\0", np.uint8), sizes=np.ones((2, 2), "i4")
        )
    opened.clear()
    assert ImageFolder(root=root).images("train") == first and len(opened) == 4
    assert "damaged" in caplog.text
    assert ImageFolder(root=root).images("train") == first and len(opened) == 4


def test_index_that_cannot_be_written(root, caplog):
    (root / "file").touch()
    images = ImageFolder(root=root, index_path=root / "file" / "i.npz").images("train")
    assert len(images) == 4 and "index_path" in caplog.text


def test_bad_images_are_skipped_and_tried_again(root, caplog):
    bad = root / "train" / "n02" / "x_2.JPEG"
    good = bad.read_bytes()
    bad.write_bytes(b"no image")
    for _ in range(2):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            images = ImageFolder(root=root, on_bad="skip_all").images("train")
        assert len(images) == 3 and images.counts["bad_image"] == 1 and "x_2.JPEG" in caplog.text
        assert images.missing == ("n02/x_2",)
    with pytest.raises(DataError, match=r"images train: 1 of 4 images .*\(n02/x_2\)"):
        ImageFolder(root=root).images("train")
    with pytest.raises(DataError, match="x_2"):
        ImageFolder(root=root, on_bad="error").images("train")
    with pytest.raises(ConfigError, match="on_bad='warn'"):
        ImageFolder(root=root, on_bad="warn").images("train")
    bad.write_bytes(good)
    assert len(ImageFolder(root=root).images("train")) == 4


def test_what_was_read_before_an_error_is_kept(root, opened, monkeypatch):
    monkeypatch.setattr(size_index, "_CHUNK", 1)
    (root / "train" / "n10" / "deep" / "er.jpg").write_bytes(b"no image")  # the last one
    with pytest.raises(DataError, match="er.jpg"):
        ImageFolder(root=root, on_bad="error").images("train")
    opened.clear()
    images = ImageFolder(root=root, on_bad="skip_all").images("train")
    assert len(images) == 3 and opened == ["er.jpg"]


def test_odd_file_names_come_back(root, opened):
    for name in ("two words.jpg", "line\nbreak.jpg", "ä.jpg"):
        save(root / "train" / "n03" / name, (5, 6))
    first = ImageFolder(root=root).images("train")
    opened.clear()
    assert ImageFolder(root=root).images("train") == first and not opened and len(first) == 7


def test_names_that_are_no_utf8(root, opened):
    folder = os.path.join(os.fsencode(root), b"train", b"n\xf6")
    os.makedirs(folder)
    with open(os.path.join(folder, b"\xe9.png"), "wb") as file:
        Image.new("RGB", (3, 2)).save(file, "PNG")
    first = ImageFolder(root=root).images("train")
    assert first.class_names[-1] == "n\\udcf6" and as_dict(first)["n\\udcf6/\\udce9"][-1] == 1
    assert {record.load().shape for record in first.records} >= {(2, 3, 3)}
    json.dumps([first.image_ids, first.class_names], ensure_ascii=False).encode("utf-8")
    opened.clear()
    assert ImageFolder(root=root).images("train") == first and not opened
    xml = os.path.join(os.fsencode(root), b"annotations", b"train", b"\xe9.xml")
    write_xml(Path(os.fsdecode(xml)), (3, 2), [("n01", (1, 1, 2, 2))])
    assert list(ImageFolder(root=root).annotated_boxes("train").boxes) == ["n\\udcf6/\\udce9"]


def test_sizes_do_not_depend_on_the_order_of_threads(root, monkeypatch):
    read = size_index.image_size

    def slow_first(path):
        time.sleep(0.05 if path.name == "x_1.png" else 0)
        return read(path)

    monkeypatch.setattr(size_index, "_CHUNK", 1)
    monkeypatch.setattr(size_index, "image_size", slow_first)
    sizes = {
        r.image_id: (r.width, r.height) for r in ImageFolder(root=root).images("train").records
    }
    assert sizes == {name.rpartition(".")[0]: size for name, size in TRAIN.items()}


# Boxes


def write_xml(path, size, objects):
    path.parent.mkdir(parents=True, exist_ok=True)
    body = "".join(OBJECT.format(name=n, box=box, difficult=0, part="") for n, box in objects)
    width, height = size
    path.write_text(
        f"<annotation><size><width>{width}</width><height>{height}</height></size>{body}</annotation>"
    )


@pytest.mark.parametrize("flat", [False, True])
def test_boxes(root, flat):
    folder = root / "annotations" / "train"
    names = {
        "n01/x_1": [("n01", (1, 1, 4, 4))],
        "n02/x_2": [("n02", (0, 2, 7, 90))],
        "n10/deep/er": [],
    }
    annotated = {"n01/x_1": (8, 8), "n02/x_2": (5, 9), "n10/deep/er": (7, 3)}
    for image_id, objects in names.items():
        name = image_id.rpartition("/")[2] if flat else image_id
        write_xml(folder / f"{name}.xml", annotated[image_id], objects)
    if not flat:
        write_xml(folder / "n02/x_1.xml", (8, 6), [("n10", (2, 2, 3, 3)), ("n02", (5, 5, 5, 5))])
    truth = ImageFolder(root=root).annotated_boxes("train")
    assert truth.class_names == ImageFolder(root=root).images("train").class_names
    np.testing.assert_array_equal(truth.boxes["n02/x_2"].boxes, [[0, 1, 5, 9]])  # clipped
    assert truth.boxes["n10/deep/er"].boxes.shape == (0, 4)
    if flat:  # two images are named x_1, so the XML of that name is nobody's
        assert list(truth.boxes) == ["n02/x_2", "n10/deep/er"]
    else:
        np.testing.assert_array_equal(truth.boxes["n01/x_1"].boxes, [[0, 0, 2, 2]])  # halved
        np.testing.assert_array_equal(truth.boxes["n02/x_1"].boxes, [[1, 1, 3, 3], [4, 4, 5, 5]])
        np.testing.assert_array_equal(truth.boxes["n02/x_1"].classes, [3, 1])
    assert truth.counts["clipped"] == 1 and truth.counts["scaled"] == (0 if flat else 1)
    assert truth.counts["no_annotation"] == (2 if flat else 0) and truth.counts["bad_image"] == 0


def test_boxes_of_a_flat_split_elsewhere(root, tmp_path):
    (root / "class_names.txt").write_text("n01 tench\nn02 crane\nn10 crane\n")
    write_xml(tmp_path / "xml" / "val" / "v_1.xml", (3, 5), [("n10", (1, 1, 2, 2))])
    truth = ImageFolder(root=root, annotations=tmp_path / "xml").annotated_boxes("val")
    assert truth.class_names == ("tench", "crane (n02)", "crane (n10)")
    assert list(truth.boxes) == ["v_1"] and truth.boxes["v_1"].classes.tolist() == [2]
    assert truth.counts["no_annotation"] == 2 and truth.counts["bad_image"] == 0
    broken = tmp_path / "xml" / "val" / "v_0.xml"
    broken.write_text("<annotation>")
    with pytest.raises(DataError, match=r"v_0\.xml"):
        ImageFolder(root=root, annotations=tmp_path / "xml", on_bad="error").annotated_boxes("val")
    with pytest.raises(DataError, match=r"1 of 2 images .*\(v_0\)"):
        ImageFolder(root=root, annotations=tmp_path / "xml").annotated_boxes("val")
    broken.unlink()
    (root / "val" / "v_1.JPEG").write_bytes(b"no image")  # its boxes count as missed
    truth = ImageFolder(root=root, annotations=tmp_path / "xml").annotated_boxes("val")
    assert list(truth.boxes) == ["v_1"] and truth.counts["bad_image"] == 0
    with pytest.raises(DataError, match="annotations"):
        ImageFolder(root=root).annotated_boxes("val")


def test_faulty_annotations(root):
    path = root / "annotations" / "val" / "v_1.xml"
    write_xml(path, (3, 5), [("Scottish_deerhound", (1, 1, 2, 2))])
    with pytest.raises(DataError, match=r"v_1\.xml: .*'Scottish_deerhound'"):
        ImageFolder(root=root).annotated_boxes("val")
    path.write_text("<annotation><object>")
    with pytest.raises(DataError, match="v_1"):
        ImageFolder(root=root).annotated_boxes("val")
    path.write_text('<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>')
    with pytest.raises(DataError, match="refused"):
        ImageFolder(root=root).annotated_boxes("val")


def test_labels_do_not_look_at_boxes(root):
    expected = ImageFolder(root=root).images("train")
    write_xml(root / "annotations" / "train" / "n01" / "x_1.xml", (4, 4), [("zebra", (1, 1, 2, 2))])
    assert ImageFolder(root=root).images("train") == expected
    assert ImageFolder.images.__annotations__["return"] == "ImageSet"
