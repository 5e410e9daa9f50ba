"""Which files below a folder are images, for every reader alike."""

import logging

import pytest
from PIL import Image

from tests.data.readers.voc_tree import write_voc
from wsod_jax.data.readers.folder import Folder, list_images
from wsod_jax.data.readers.image_folder import ImageFolder
from wsod_jax.data.readers.voc import Voc
from wsod_jax.errors import DataError


def save(path, kind="JPEG"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4), (9, 90, 200)).save(path, kind)


def read_plain(folder):
    return list_images(folder)


def read_classes(folder):
    return ImageFolder(root=folder.parent, index_path=folder.parent / "index.npz").images(
        folder.name
    )


def read_voc(folder):
    root = folder.parent / "voc"
    write_voc(root, {"other": ((4, 4), [])})
    (root / "JPEGImages" / "other.jpg").unlink()
    (root / "JPEGImages").rmdir()
    (root / "JPEGImages").symlink_to(folder)
    (root / "Annotations" / "other.xml").unlink()
    (root / "ImageSets" / "Main" / "all.txt").write_text("cat/a\ndog/b\n")
    return Voc(root=root).images("all")


def read_csv(folder):
    labels = folder.parent / "labels.csv"
    labels.write_text("image,label\ncat/a,cat\ndog/b,dog\n")
    return Folder(folder=folder, labels_csv=labels).images("all")


READERS = [read_plain, read_classes, read_voc, read_csv]


@pytest.fixture
def folder(tmp_path):
    save(tmp_path / "set" / "cat" / "a.jpg")
    save(tmp_path / "set" / "dog" / "b.jpg")
    return tmp_path / "set"


@pytest.mark.parametrize("read", READERS)
def test_hidden_files_and_folders_are_no_images(folder, read):
    save(folder / "cat" / ".ipynb_checkpoints" / "a-checkpoint.jpg")
    save(folder / "cat" / "._a.jpg")
    save(folder / ".hidden" / "c.jpg")
    images = read(folder)
    assert images.image_ids == ("cat/a", "dog/b")
    assert not images.counts.get("unlabeled") and not images.counts.get("other_file")


@pytest.mark.parametrize("read", READERS)
def test_linked_folders_are_followed_but_not_in_circles(folder, read):
    (folder / "dog").rename(folder.parent / "elsewhere")
    (folder / "dog").symlink_to(folder.parent / "elsewhere")
    (folder.parent / "elsewhere" / "back").symlink_to(folder)  # a circle
    (folder / "cat" / "self").symlink_to(folder / "cat")
    images = read(folder)
    assert images.image_ids == ("cat/a", "dog/b")
    assert all(record.load().shape == (4, 6, 3) for record in images.records)


@pytest.mark.parametrize("read", READERS)
def test_files_that_are_no_images_are_counted_and_named(folder, read, caplog):
    (folder / "cat" / "notes.txt").write_text("no image")
    (folder / "dog" / "labels.xml").write_text("<a/>")
    (folder / "dog" / "b.heic").write_bytes(b"beside the JPEG of this name")
    with caplog.at_level(logging.WARNING):
        images = read(folder)
    assert images.image_ids == ("cat/a", "dog/b") and images.counts["other_file"] == 3
    assert all(text in caplog.text for text in ("1 .txt", "1 .xml", "1 .heic", "cat/notes.txt"))


@pytest.mark.parametrize("suffix", ["jfif", "jpe", "JPG", "Jpeg"])
@pytest.mark.parametrize("read", READERS)
def test_a_jpeg_by_any_suffix_is_an_image(folder, read, suffix):
    (folder / "cat" / "a.jpg").rename(folder / "cat" / f"a.{suffix}")
    assert read(folder).image_ids == ("cat/a", "dog/b")


@pytest.mark.parametrize("suffix", ["HEIC", "dng"])
@pytest.mark.parametrize("read", READERS)
def test_a_photograph_that_cannot_be_read_is_a_lost_image(folder, read, suffix, caplog):
    (folder / "cat" / "a.jpg").rename(folder / "cat" / f"a.{suffix}")
    (folder / "cat" / f"a.{suffix}").write_bytes(b"\0\0\0\x18ftypheic")
    if read is read_plain:
        with caplog.at_level(logging.WARNING):
            images = read(folder)
        assert images.image_ids == ("dog/b",) and images.missing == ("cat/a",)
        assert f"a.{suffix}: this format is not supported" in caplog.text
    else:
        with pytest.raises(
            DataError, match=rf"1 of 2 images .*cat/a.*a\.{suffix}.*convert it to JPEG"
        ):
            read(folder)


def test_files_of_one_name_carry_their_folders(tmp_path):
    for name in ("x/a/1.jpg", "x/b/1.jpg", "x/b/2.jpg"):
        save(tmp_path / name)
    a, b = tmp_path / "x" / "a", tmp_path / "x" / "b"
    assert list_images([a, b]).image_ids == ("2", "a/1", "b/1")
    files = list_images([a / "1.jpg", b / "1.jpg", b / "2.jpg"])
    assert files.image_ids == ("2", "a/1", "b/1")
    assert [record.path for record in files.records] == [b / "2.jpg", a / "1.jpg", b / "1.jpg"]
    save(a / "1.png", "PNG")
    with pytest.raises(DataError, match="differ only in the suffix"):
        list_images([a / "1.jpg", a / "1.png"])
