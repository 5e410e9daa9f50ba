"""The VOC layout: labels with each rule for difficult objects, boxes, and every kind of fault."""

import logging
import shutil

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.data.readers.voc_tree import write_voc, write_xml
from wsod_jax.data.readers.reader import frame_scale
from wsod_jax.data.readers.voc import Voc
from wsod_jax.data.training_labels import training_images
from wsod_jax.errors import ConfigError, DataError

BOX = (2, 3, 10, 12)
IMAGES = {
    "a": ((20, 30), [("cat", BOX, False), ("dog", (1, 1, 30, 20), True)]),
    "b": ((30, 20), [("dog", BOX, True), ("dog", (1, 1, 5, 5), False)]),
    "c": ((16, 16), []),
}


@pytest.fixture
def root(tmp_path):
    return write_voc(tmp_path / "VOCdevkit" / "VOC2007", IMAGES)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("drop", [(1, 0), (0, 1), (0, 0)]),
        ("ignore", [(1, -1), (0, 1), (0, 0)]),
        ("keep", [(1, 1), (0, 1), (0, 0)]),
    ],
)
def test_labels_by_rule_for_difficult_objects(root, rule, expected):
    images = Voc(root=root, difficult=rule).images("trainval")
    assert [record.labels for record in images.records] == expected
    assert images.class_names == ("cat", "dog")
    assert images.counts["no_object"] == 1


def test_order_of_objects_does_not_decide_the_label(root):
    write_xml(root, "b", (30, 20), list(reversed(IMAGES["b"][1])))
    for rule in ("drop", "ignore", "keep"):
        assert Voc(root=root, difficult=rule).images("trainval").records[1].labels == (0, 1)


def test_unknown_rule_is_refused(root):
    with pytest.raises(ConfigError, match="drop, ignore, keep"):
        Voc(root=root, difficult="maybe").images("trainval")


def test_records(root):
    a, b, c = Voc(root=root).images("trainval").records
    assert (a.image_id, a.height, a.width) == ("a", 20, 30)
    assert (b.height, b.width) == (30, 20)
    assert a.path == root / "JPEGImages" / "a.jpg"
    assert c.load().shape == (16, 16, 3)


def test_boxes_become_continuous(root):
    truth = Voc(root=root).annotated_boxes("trainval")
    np.testing.assert_array_equal(truth.boxes["a"].boxes, [[1, 2, 10, 12], [0, 0, 30, 20]])
    np.testing.assert_array_equal(truth.boxes["a"].classes, [0, 1])
    np.testing.assert_array_equal(truth.boxes["a"].difficult, [False, True])
    assert truth.boxes["a"].boxes.dtype == np.float32
    assert truth.boxes["c"].boxes.shape == (0, 4)
    assert not truth.counts["clipped"] and not truth.counts["dropped"]


def test_box_values_never_reach_the_image_set(root):
    expected = Voc(root=root).images("trainval")
    for path in (root / "Annotations").iterdir():
        text = path.read_text()
        path.write_text(text.replace("bndbox", "x").replace("<xmin>", "<xmin>garbage"))
    assert Voc(root=root).images("trainval") == expected


def test_every_way_to_name_the_root(root):
    devkit = root.parent
    for folder, year in (
        (root, None),
        (root, 2007),
        (root, "07"),
        (devkit, None),
        (devkit, "2007"),
    ):
        assert len(Voc(root=folder, year=year).images("trainval")) == 3
    assert len(Voc(root=devkit.parent, year="07").images("trainval")) == 3


def test_union_of_years(root):
    write_voc(root.parent / "VOC2012", {"2012_x": ((8, 8), [("cat", (1, 1, 4, 4), False)])})
    images = Voc(root=root.parent, year="07+12").images("trainval")
    assert images.image_ids == ("a", "b", "c", "2012_x")
    assert images.name == "voc 2007 2012 trainval"
    assert set(Voc(root=root.parent, year="07+12").annotated_boxes("trainval").boxes) == {
        *"abc",
        "2012_x",
    }
    with pytest.raises(DataError, match="year="):
        Voc(root=root.parent).images("trainval")
    for wrong in ("07+07", "7", "07+", "soon"):
        with pytest.raises(DataError, match="07\\+12"):
            Voc(root=root.parent, year=wrong).images("trainval")
    with pytest.raises(DataError, match="VOC2009"):
        Voc(root=root.parent, year="09").images("trainval")
    with pytest.raises(DataError, match="parent"):
        Voc(root=root, year="12").images("trainval")


def test_only_the_test_split_is_of_the_year_of_the_test(root):
    cat = [("cat", (1, 1, 4, 4), False)]
    write_voc(root.parent / "VOC2012", {"x": ((8, 8), cat)}, split="test")
    write_voc(root.parent / "VOC2012", {"y": ((8, 8), cat)}, split="trainval")
    data = Voc(root=root.parent, year="2007", test_year="2012")
    assert data.images("trainval").image_ids == ("a", "b", "c")
    assert data.images("test").image_ids == ("x",) == tuple(data.annotated_boxes("test").boxes)
    assert data.boxes("test").images.image_ids == ("x",)
    with pytest.raises(ConfigError, match="test_year='2012'"):
        Voc(root=root.parent, year="2007", test_year="2012", test_split="trainval")


def test_boxes_to_train_on(root):
    data = Voc(root=root)
    made, truth = data.boxes("trainval"), data.annotated_boxes("trainval")
    assert made.images.records == data.images("trainval").records
    assert made.source == "annotations" and made.max_targets == 2
    for image_id, boxes in zip("abc", made.boxes, strict=True):
        np.testing.assert_array_equal(boxes.boxes, truth.boxes[image_id].boxes)
        np.testing.assert_array_equal(boxes.ignore, truth.boxes[image_id].difficult)
    assert data.has_boxes and hash(data) == hash(Voc(root=root))


def test_class_names(tmp_path, root):
    assert Voc(root=root, class_names=("dog", "cat")).images("trainval").records[0].labels == (
        0,
        1,
    )
    (root / "classes.txt").rename(tmp_path / "classes.txt")  # beside VOCdevkit
    assert Voc(root=root).images("trainval").class_names == ("cat", "dog")
    (tmp_path / "classes.txt").unlink()
    images = Voc(root=root).images("trainval")
    assert len(images.class_names) == 20 and images.class_names == tuple(sorted(images.class_names))
    with pytest.raises(DataError, match="distinct"):
        Voc(root=root, class_names=("cat", "cat")).images("trainval")


def test_missing_root_and_split(root):
    with pytest.raises(DataError, match="nowhere"):
        Voc(root=root / "nowhere").images("trainval")
    with pytest.raises(DataError, match="test.*trainval"):
        Voc(root=root).images("test")
    with pytest.raises(DataError, match="year="):
        Voc(root=root / "JPEGImages").images("test")


def test_unknown_class_lists_the_allowed_ones(root):
    write_xml(root, "b", (30, 20), [("zebra", BOX, False)])
    for read in (Voc(root=root).images, Voc(root=root).annotated_boxes):
        with pytest.raises(DataError, match=r"b\.xml: .*'zebra'.*cat, dog"):
            read("trainval")


def test_boxes_outside_and_without_area(root):
    objects = [
        ("cat", (-4, 1, 10, 10), False),  # clipped left
        ("cat", (5, 5, 40, 30), False),  # clipped right and below
        ("dog", (31, 3, 40, 8), False),  # outside
        ("dog", (9, 3, 8, 8), False),  # no width: x1 = 8, x2 = 8
        ("dog", (9, 3, 9, 8), False),  # one pixel wide
        ("dog", ("nan", 3, 9, 8), False),
        ("dog", ("", "x", 9, 8), False),
    ]
    write_xml(root, "a", (20, 30), objects)
    truth = Voc(root=root).annotated_boxes("trainval")
    np.testing.assert_array_equal(
        truth.boxes["a"].boxes, [[0, 0, 10, 10], [4, 4, 30, 20], [8, 2, 9, 8]]
    )
    assert truth.counts["clipped"] == 2
    assert truth.counts["dropped"] == 4
    assert Voc(root=root).images("trainval").records[0].labels == (1, 1)


def test_ground_truth_without_images_uses_the_annotated_size(root):
    write_xml(root, "a", (20, 30), [("cat", (5, 5, 40, 30), False)])
    (root / "JPEGImages" / "a.jpg").unlink()
    truth = Voc(root=root, on_bad="skip_all").annotated_boxes("trainval")
    np.testing.assert_array_equal(truth.boxes["a"].boxes, [[4, 4, 30, 20]])


@pytest.mark.parametrize(
    ("annotated", "box"), [((40, 60), (9, 5, 40, 30)), ((10, 15), (2.5, 1, 10, 7.5))]
)
def test_boxes_of_a_resized_image_are_scaled(root, annotated, box, caplog):
    write_xml(root, "a", annotated, [("cat", box, False)])
    with caplog.at_level(logging.WARNING):
        truth = Voc(root=root).annotated_boxes("trainval")
    expected = {40: [4, 2, 20, 15], 10: [3, 0, 20, 15]}[annotated[0]]
    np.testing.assert_array_equal(truth.boxes["a"].boxes, [expected])
    assert truth.counts["scaled"] == 1 and "1 scaled" in caplog.text


@pytest.mark.parametrize("annotated", [(30, 20), (99, 99), (20, 33)])
def test_an_annotation_of_another_aspect_is_left_out(root, annotated):
    write_xml(root, "a", annotated, [("cat", (5, 5, 10, 10), False)])
    truth = Voc(root=root, on_bad="skip_all").annotated_boxes("trainval")
    assert set(truth.boxes) == {"b", "c"} and truth.counts["bad_image"] == 1
    with pytest.raises(DataError) as refusal:
        Voc(root=root).annotated_boxes("trainval")
    assert all(text in str(refusal.value) for text in ("a.xml", str(annotated), "(20, 30)"))


@pytest.mark.parametrize(
    ("annotated", "size", "agree"),
    [
        ((333, 500), (2000, 3000), True),  # 333.3 rounded
        ((500, 375), (67, 50), True),  # 66.7 rounded
        ((480, 640), (480, 640), True),
        ((480, 640), (480, 660), False),
        ((480, 640), (640, 480), False),
    ],
)
def test_aspects_agree_up_to_rounding(annotated, size, agree):
    if agree:
        x, y = frame_scale(annotated, size, "a.xml")
        assert (annotated[0] * y, annotated[1] * x) == pytest.approx(size)
    else:
        with pytest.raises(DataError, match="aspect"):
            frame_scale(annotated, size, "a.xml")


def break_image(root):
    (root / "JPEGImages" / "b.jpg").unlink()


def break_header(root):
    (root / "JPEGImages" / "b.jpg").write_bytes(b"no image")


def break_xml(root):
    (root / "Annotations" / "b.xml").write_text("<annotation><object>")


def remove_xml(root):
    (root / "Annotations" / "b.xml").unlink()


@pytest.mark.parametrize("fault", [break_image, break_header, break_xml, remove_xml])
def test_one_bad_image_is_skipped_and_counted_or_named(root, fault, caplog):
    fault(root)
    with caplog.at_level(logging.WARNING):
        images = Voc(root=root, on_bad="skip_all").images("trainval")
    assert images.image_ids == ("a", "c") and images.missing == ("b",)
    assert images.counts["bad_image"] == 1
    assert "b." in caplog.text and "1 bad_image" in caplog.text
    with pytest.raises(DataError, match=r"b\."):
        Voc(root=root, on_bad="error").images("trainval")


def test_bad_xml_in_ground_truth(root):
    break_xml(root)
    truth = Voc(root=root, on_bad="skip_all").annotated_boxes("trainval")
    assert set(truth.boxes) == {"a", "c"} and truth.counts["bad_image"] == 1
    with pytest.raises(DataError, match=r"trainval.* 1 of 3 .*\(b\)"):
        Voc(root=root).annotated_boxes("trainval")
    with pytest.raises(DataError, match=r"b\.xml"):
        Voc(root=root, on_bad="error").annotated_boxes("trainval")


def test_nothing_left_is_an_error(root):
    for path in (root / "JPEGImages").iterdir():
        path.unlink()
    with pytest.raises(DataError, match="trainval"):
        Voc(root=root, on_bad="skip_all").images("trainval")


@pytest.mark.parametrize(
    ("count", "lost", "refused"), [(20, 2, False), (20, 3, True), (9, 1, True)]
)
def test_a_split_that_lost_more_than_a_tenth_is_refused(tmp_path, count, lost, refused):
    root = write_voc(
        tmp_path, {f"i{n}": ((8, 8), [("cat", (1, 1, 4, 4), False)]) for n in range(count)}
    )
    for number in range(lost):
        (root / "JPEGImages" / f"i{number}.jpg").unlink()
    every = Voc(root=root, on_bad="skip_all").images("trainval")
    assert every.missing == tuple(f"i{n}" for n in range(lost)) and len(every) == count - lost
    assert len(Voc(root=root).annotated_boxes("trainval")) == count  # to be counted as missed
    if refused:
        with pytest.raises(
            DataError, match=rf"{lost} of {count} images .*\(i0.*i0\.jpg"
        ) as refusal:
            Voc(root=root).images("trainval")
        assert 'on_bad="skip_all"' in str(refusal.value)
    else:
        assert Voc(root=root).images("trainval") == every


def test_split_without_any_annotation_has_no_labels(root, caplog):
    shutil.rmtree(root / "Annotations")
    with caplog.at_level(logging.WARNING):
        images = Voc(root=root, on_bad="error").images("trainval")
    assert images.image_ids == ("a", "b", "c")
    assert (images.labels == -1).all()
    assert images.counts["no_annotation"] == 3 and images.counts["no_object"] == 0
    assert caplog.text.count("without labels") == 1
    with pytest.raises(DataError, match="3 images.*label"):
        training_images(images)
    with pytest.raises(DataError, match="3 of 3 images .*xml"):
        Voc(root=root).annotated_boxes("trainval")


def test_entity_bomb_is_refused_even_when_skipping(root):
    bomb = '<!DOCTYPE a [<!ENTITY x "ha"><!ENTITY y "&x;&x;">]><annotation>&y;</annotation>'
    (root / "Annotations" / "b.xml").write_text(bomb)
    for read in (Voc(root=root).images, Voc(root=root).annotated_boxes):
        with pytest.raises(DataError, match=r"b\.xml: refused"):
            read("trainval")


@pytest.mark.parametrize("line", ["../../secret", "/etc/passwd", "x/../../y"])
def test_ids_stay_in_the_folder(root, line):
    (root / "ImageSets" / "Main" / "trainval.txt").write_text(f"a\n{line}\n")
    with pytest.raises(DataError, match=rf"trainval\.txt:2.*{line}"):
        Voc(root=root).images("trainval")


def test_lines_that_are_file_names(root):
    """A line names an image as a whole, with or without suffix, before its first word does."""
    for name in ("my cat", "my dog", "x 1"):
        write_xml(root, name, (20, 30), [("cat", BOX, False)])
        shutil.copy(root / "JPEGImages" / "a.jpg", root / "JPEGImages" / f"{name}.jpg")
    split = root / "ImageSets" / "Main" / "trainval.txt"
    split.write_text("my cat\nmy dog.jpg\nx 1\nb.jpg\nc 1\na.jpg -1\n")
    data, ids = Voc(root=root), ("my cat", "my dog", "x 1", "b", "c", "a")
    assert data.images("trainval").image_ids == ids
    assert tuple(data.annotated_boxes("trainval").boxes) == ids
    (root / "JPEGImages" / "my cat.jpg").unlink()  # what is missing bears its own name, too
    images = Voc(root=root, on_bad="skip_all").images("trainval")
    assert images.missing == ("my cat",) and images.image_ids == ids[1:]
    assert "my cat" in data.annotated_boxes("trainval").boxes


def test_split_lines(root):
    split = root / "ImageSets" / "Main" / "trainval.txt"
    split.write_text("a  1\n\nb -1\n")
    assert Voc(root=root).images("trainval").image_ids == ("a", "b")
    split.write_text("a\nb\na\n")
    with pytest.raises(DataError, match=r"trainval\.txt:3: .*'a'.*twice"):
        Voc(root=root).images("trainval")


@pytest.mark.parametrize("encoding", ["gb2312", "big5", "shift_jis", "utf-16", "utf-8", "cp1252"])
def test_annotations_in_the_encoding_that_they_declare(root, encoding):
    name = {"gb2312": "猫", "big5": "貓", "shift_jis": "ねこ"}.get(encoding, "Bär")
    path = root / "Annotations" / "a.xml"
    text = path.read_text().replace("<name>cat<", f"<name>{name}<")
    path.write_bytes(f'<?xml version="1.0" encoding="{encoding}"?>\n{text}'.encode(encoding))
    images = Voc(root=root, class_names=(name, "cat", "dog")).images("trainval")
    assert images.missing == () and images.records[0].labels == (1, 0, 0)


@pytest.mark.parametrize("encoding", ["klingon", "hex"])
def test_an_unknown_encoding_is_named(root, encoding):
    text = f'<?xml version="1.0" encoding="{encoding}"?><annotation/>'
    (root / "Annotations" / "a.xml").write_text(text)
    with pytest.raises(DataError, match=rf"a\.xml.*{encoding}.*UTF-8"):
        Voc(root=root, on_bad="error").images("trainval")


@pytest.mark.parametrize(
    ("text", "label"), [("true", 0), ("Yes", 0), ("1.0", 0), ("", 1), ("False", 1), ("no", 1)]
)
def test_spellings_of_difficult(root, text, label):
    path = root / "Annotations" / "a.xml"
    path.write_text(path.read_text().replace("<difficult>0<", f"<difficult>{text}<"))
    assert Voc(root=root).images("trainval").records[0].labels[0] == label
    assert bool(Voc(root=root).annotated_boxes("trainval").boxes["a"].difficult[0]) == (not label)


def test_difficult_that_is_neither(root):
    path = root / "Annotations" / "a.xml"
    path.write_text(path.read_text().replace("<difficult>0<", "<difficult>maybe<"))
    for read in (Voc(root=root, on_bad="error").images, Voc(root=root).annotated_boxes):
        with pytest.raises(DataError, match=r"a\.xml: difficult is 'maybe'"):
            read("trainval")


def test_nearly_equal_class_names_are_named(root, caplog):
    names = ("cat", "dog", "Dog", "traffic light", "traffic_light", "dot")
    with caplog.at_level(logging.WARNING):
        images = Voc(root=root, class_names=names).images("trainval")
    assert images.class_names == names
    assert "'dog' and 'Dog'; 'traffic light' and 'traffic_light'" in caplog.text
    assert "'dot'" not in caplog.text


def test_not_utf8(root):
    (root / "ImageSets" / "Main" / "trainval.txt").write_bytes(b"a\n\xff\xfe\n")
    with pytest.raises(DataError, match=r"trainval\.txt"):
        Voc(root=root).images("trainval")


def test_unknown_on_bad(root):
    with pytest.raises(ConfigError, match="on_bad='warn'"):
        Voc(root=root, on_bad="warn")


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(content=st.binary(max_size=80) | st.text(max_size=80).map(str.encode))
def test_any_annotation_is_read_or_counted_or_refused(root, content):
    (root / "Annotations" / "b.xml").write_bytes(content)
    try:
        truth = Voc(root=root, on_bad="skip_all").annotated_boxes("trainval")
    except DataError:
        return
    assert truth.counts["bad_image"] + ("b" in truth.boxes) == 1
