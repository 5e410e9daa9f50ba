"""A folder of images with a labels CSV in either form; each fault names its line."""

import logging
import os

import pytest
from PIL import Image

from wsod_jax.data.readers.folder import Folder, list_images
from wsod_jax.errors import DataError


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "figures"
    (root / "sub").mkdir(parents=True)
    for name, size in (("a.jpg", (8, 6)), ("b.png", (5, 9)), ("sub/c.jpg", (4, 4))):
        Image.new("RGB", size).save(root / name)
    (root / "notes.txt").write_text("no image")
    return root


def read(folder, text, **options):
    path = folder.parent / "labels.csv"
    path.write_text(text, encoding=options.pop("encoding", "utf-8"))
    return Folder(folder=folder, labels_csv=path, **options).images("all")


def as_dict(images):
    return {record.image_id: record.labels for record in images.records}


def test_one_row_per_image(folder):
    images = read(folder, "image,labels\nsub/c.jpg,dog\na.jpg,cat; dog\nb.png,\n")
    assert images.class_names == ("cat", "dog")
    assert as_dict(images) == {"a": (1, 1), "b": (0, 0), "sub/c": (0, 1)}
    a, b, _ = images.records
    assert (a.height, a.width) == (6, 8) and (b.height, b.width) == (9, 5)
    assert a.path == folder / "a.jpg"


def test_one_row_per_label(folder):
    images = read(folder, "image,label,source\na.jpg,dog,x\na.jpg,cat,y\nsub/c,cat,z\n")
    assert as_dict(images) == {"a": (1, 1), "sub/c": (1, 0)}
    assert images.counts["unlabeled"] == 1


def test_given_class_names_fix_the_order(folder):
    images = read(folder, "image,labels\na.jpg,cat\n", class_names=("dog", "cat", "cow"))
    assert as_dict(images) == {"a": (0, 1, 0)}


def test_there_are_no_splits_and_no_boxes(folder):
    (folder.parent / "labels.csv").write_text("image,labels\na.jpg,cat\n")
    data = Folder(folder=folder, labels_csv=folder.parent / "labels.csv")
    assert data.images(data.train_split) == data.images("any")
    assert (
        not data.has_boxes and not hasattr(data, "annotated_boxes") and not hasattr(data, "boxes")
    )


def test_byte_order_mark_and_crlf(folder):
    images = read(folder, "image,labels\r\na.jpg,cat\r\n", encoding="utf-8-sig")
    assert as_dict(images) == {"a": (1,)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,labels\na.jpg,cat\nnone.jpg,cat\n", r"labels\.csv:3: .*'none\.jpg'"),
        ("image,labels\n../labels.csv,cat\n", r":2: .*labels\.csv"),
        ("image,labels\na.jpg,cat\nb.png,dog\na.jpg,dog\n", r":4: .*'a\.jpg'"),
        ("image,labels\na.jpg,cat\na,dog\n", r":3: .*'a'"),
        ("image,labels\na.jpg,cat;cat\n", r":2: .*'a\.jpg'"),
        ("image,label\na.jpg,cat\na.jpg,cat\n", r":3: .*'a\.jpg'"),
        ("image,labels\na.jpg,cat;;dog\n", r":2: .*empty"),
        ("image,labels\na.jpg,cat;\n", r":2: .*empty"),
        ("image,label\na.jpg,\n", r":2: .*empty"),
        ("image,label\na.jpg\n", r":2: .*empty"),
        ("file,labels\na.jpg,cat\n", r"header.*\['file', 'labels'\]"),
        ("image,label,labels\na.jpg,cat,cat\n", r"header.*\['image', 'label', 'labels'\]"),
        ("", "header"),
        ("image,labels\na.jpg,\n", "class"),
        ('image,labels\n"a.jpg,cat\n', r"labels\.csv:\d.*a\.jpg,cat"),
    ],
)
def test_faults_name_their_line(folder, text, message):
    with pytest.raises(DataError, match=message):
        read(folder, text)


def test_unknown_class(folder):
    with pytest.raises(DataError, match=r":2: .*'cow'.*cat, dog"):
        read(folder, "image,labels\na.jpg,cow\n", class_names=("cat", "dog"))


def test_not_utf8(folder):
    with pytest.raises(DataError, match="UTF-8"):
        read(folder, "image,labels\na.jpg,\xe9\n", encoding="latin-1")


def test_missing_files(folder, tmp_path):
    with pytest.raises(DataError, match=r"none\.csv"):
        Folder(folder=folder, labels_csv=tmp_path / "none.csv").images("all")
    with pytest.raises(DataError, match="none"):
        Folder(folder=tmp_path / "none", labels_csv="none.csv").images("all")


def test_bad_image_is_skipped_and_counted_or_named(folder, caplog):
    (folder / "b.png").write_bytes(b"no image")
    text = "image,labels\na.jpg,cat\nb.png,cat\n"
    with caplog.at_level(logging.WARNING):
        images = read(folder, text, on_bad="skip_all")
    assert as_dict(images) == {"a": (1,)} and images.counts["bad_image"] == 1
    assert images.missing == ("b",)
    with pytest.raises(DataError, match=r"labels\.csv: 1 of 2 images .*\(b\)"):
        read(folder, text)
    assert "b.png" in caplog.text
    with pytest.raises(DataError, match=r"b\.png"):
        read(folder, text, on_bad="error")
    with pytest.raises(DataError, match=r"no image.* 1\b"):
        read(folder, "image,labels\nb.png,cat\n", on_bad="skip_all")
    assert list_images(folder).missing == ("b",)
    with pytest.raises(DataError, match=r"1 of 3 .*\(b\)"):
        list_images(folder, on_bad="skip")
    with pytest.raises(DataError, match=r"b\.png"):
        list_images(folder, on_bad="error")


def test_names_that_are_no_utf8(folder):
    """Every id can be written, and every file is found."""
    for name in (b"caf\xe9.png", b"caf\xc3\xa9.png"):
        with open(os.path.join(os.fsencode(folder), name), "wb") as file:
            Image.new("RGB", (3, 2)).save(file, "PNG")
    images = list_images(folder)
    assert images.image_ids == ("a", "b", "caf\\udce9", "café", "sub/c")
    assert all(record.load().size for record in images.records)
    given = list_images([os.fsdecode(os.path.join(os.fsencode(folder), b"caf\xe9.png"))])
    assert given.image_ids == ("caf\\udce9",) and given.name.encode("utf-8")
    labeled = read(folder, "image,labels\ncaf\\udce9.png,cat\ncafé,\n")
    assert as_dict(labeled) == {"caf\\udce9": (1,), "café": (0,)}
    Image.new("RGB", (3, 2)).save(folder / "caf\\udce9.jpg")
    with pytest.raises(DataError, match="udce9"):
        list_images(folder)


def test_same_stem_twice(folder):
    Image.new("RGB", (2, 2)).save(folder / "a.png")
    with pytest.raises(DataError, match=r"a\.(png|jpg).*a\.(png|jpg)"):
        list_images(folder)


def test_list_images(folder, tmp_path):
    images = list_images(folder)
    assert images.image_ids == ("a", "b", "sub/c")
    assert images.class_names == () and images.labels.shape == (3, 0)
    assert list_images(folder / "sub" / "c.jpg").image_ids == ("c",)
    assert list_images([folder / "b.png", str(folder / "a.jpg")]).image_ids == ("a", "b")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no image"):
        list_images(tmp_path / "empty")
    with pytest.raises(DataError, match=r"no image.* 1\b"):
        list_images(tmp_path / "none.jpg")
