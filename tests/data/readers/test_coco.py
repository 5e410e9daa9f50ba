"""The COCO layout: categories with gaps, crowds, boxes clipped, and every fault named by its entry."""

import json
import logging

import numpy as np
import pytest
from PIL import Image

from tests.data.readers.voc_tree import pixels
from wsod_jax.data.readers.coco import Coco
from wsod_jax.data.training_labels import training_images
from wsod_jax.errors import ConfigError, DataError
from wsod_jax.evaluation.metrics.coco_metrics import coco_ap
from wsod_jax.evaluation.metrics.tables import DetectionTable, GroundTruth

CATEGORIES = [{"id": 18, "name": "dog"}, {"id": 1, "name": "person"}, {"id": 90, "name": "brush"}]
IMAGES = [
    {"id": 9, "file_name": "b.jpg", "height": 20, "width": 30},
    {"id": 4, "file_name": "sub/a.jpg", "height": 30, "width": 20},
    {"id": 7, "file_name": "c.jpg", "height": 16, "width": 16},
    {"id": 11, "file_name": "d.jpg", "height": 16, "width": 18},
]


def annotation(number, image, category, bbox, **more):
    return {"id": number, "image_id": image, "category_id": category, "bbox": bbox, **more}


ANNOTATIONS = [
    annotation(1, 4, 90, [2.5, 3, 10, 5.25], iscrowd=0, area=40.5),
    annotation(2, 9, 18, [-2, 5, 40, 8], iscrowd=0, area=100),  # reaches outside
    annotation(3, 9, 1, [0, 0, 30, 20], iscrowd=1, area=600),
    annotation(4, 4, 18, [1, 1, 4, 4]),  # no iscrowd, no area
    annotation(5, 4, 18, [0, 0, 20, 30], iscrowd=1, area=500),
    annotation(6, 9, 18, [40, 5, 3, 3], iscrowd=0, area=9),  # outside
    annotation(7, 9, 18, [4, 5, 0, 3], iscrowd=0, area=0),  # no width
    annotation(8, 11, 1, [1, 2, 3], iscrowd=0, area=3),  # three numbers
    annotation(9, 11, 90, [1, 2, float("nan"), 3], iscrowd=0, area=3),
]


def write(root, *, content=None, folder="val2014"):
    """Write a tree; `content` replaces parts of the JSON."""
    for number, image in enumerate(IMAGES):
        path = root / folder / image["file_name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(number, image["height"], image["width"])).save(path)
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    parts = {"images": IMAGES, "annotations": ANNOTATIONS, "categories": CATEGORIES}
    text = json.dumps({"info": {}, **parts, **(content or {})})
    (root / "annotations" / "instances_val2014.json").write_text(text)
    return root


def as_dict(images):
    return {record.image_id: record.labels for record in images.records}


@pytest.mark.parametrize("folder", ["val2014", "images/val2014"])
def test_images_and_labels(tmp_path, folder):
    images = Coco(root=write(tmp_path, folder=folder)).images("val2014")
    assert images.class_names == ("person", "dog", "brush")  # by id: 1, 18, 90
    assert as_dict(images) == {
        "b": (0, 1, 0),  # of persons there is a crowd only
        "sub/a": (0, 1, 1),
        "c": (0, 0, 0),
        "d": (1, 0, 1),  # present, though their boxes are unreadable
    }
    assert list(as_dict(images)) == ["b", "sub/a", "c", "d"]
    assert [record.number for record in images.records] == [9, 4, 7, 11]
    assert images.category_ids == (1, 18, 90) and images.missing == ()
    assert images.counts == {
        "bad_image": 0,
        "no_object": 1,
        "crowd_only": 1,
        "no_annotation": 0,
    }
    for record in images.records:
        assert record.path.is_file() and record.load().shape == (record.height, record.width, 3)
    assert len(training_images(images)) == 3


@pytest.mark.parametrize(("rule", "label"), [("drop", 0), ("ignore", -1), ("keep", 1)])
def test_a_class_with_crowds_only(tmp_path, rule, label):
    images = Coco(root=write(tmp_path), crowd=rule).images("val2014")
    assert as_dict(images)["b"] == (label, 1, 0)
    assert as_dict(images)["sub/a"] == (0, 1, 1)  # a crowd, and one dog by itself, listed before it
    reverse = {"annotations": ANNOTATIONS[::-1]}
    images = Coco(root=write(tmp_path, content=reverse), crowd=rule).images("val2014")
    assert as_dict(images)["b"] == (label, 1, 0) and as_dict(images)["sub/a"] == (0, 1, 1)


def test_a_test_split_without_annotations_has_unknown_labels(tmp_path):
    content = {"info": {}, "images": IMAGES, "categories": CATEGORIES}
    path = write(tmp_path) / "annotations" / "image_info_val2014.json"
    path.write_text(json.dumps(content))
    reader = Coco(root=tmp_path, annotations="annotations/image_info_{split}.json")
    images = reader.images("val2014")
    assert set(as_dict(images).values()) == {(-1, -1, -1)} and len(images) == 4
    assert images.counts["no_annotation"] == 4 and images.counts["no_object"] == 0
    assert images.class_names == ("person", "dog", "brush") and images.category_ids == (1, 18, 90)
    assert reader.instances("val2014") == {}
    with pytest.raises(DataError, match="image_info_val2014.*no 'annotations'"):
        reader.annotated_boxes("val2014")


def test_labels_do_not_look_at_boxes(tmp_path):
    expected = Coco(root=write(tmp_path)).images("val2014")
    bare = [{k: v for k, v in item.items() if k not in ("bbox", "area")} for item in ANNOTATIONS]
    found = Coco(root=write(tmp_path, content={"annotations": bare})).images("val2014")
    assert found == expected
    assert Coco(root=tmp_path).annotated_boxes("val2014").counts["dropped"] == 9


def test_boxes(tmp_path):
    truth = Coco(root=write(tmp_path)).annotated_boxes("val2014")
    assert truth.class_names == ("person", "dog", "brush") and list(truth.boxes) == [
        "b",
        "sub/a",
        "c",
        "d",
    ]
    a, b = truth.boxes["sub/a"], truth.boxes["b"]
    np.testing.assert_array_equal(
        a.boxes, np.float32([[2.5, 3, 12.5, 8.25], [1, 1, 5, 5], [0, 0, 20, 30]])
    )
    np.testing.assert_array_equal(a.classes, [2, 1, 1])
    np.testing.assert_array_equal(a.areas, np.float32([40.5, 16, 500]))
    for crowd in (a.crowd, a.difficult):
        np.testing.assert_array_equal(crowd, [False, False, True])
    np.testing.assert_array_equal(b.boxes, [[0, 5, 30, 13], [0, 0, 30, 20]])
    np.testing.assert_array_equal(b.classes, [1, 0])
    for empty in (truth.boxes["c"], truth.boxes["d"]):
        assert empty.boxes.shape == (0, 4) and len(empty.areas) == len(empty.crowd) == 0
    assert truth.counts == {"bad_image": 0, "clipped": 1, "dropped": 4, "scaled": 0}
    table = GroundTruth.from_annotations(truth.boxes.values(), num_classes=3)
    np.testing.assert_array_equal(table.image_index, [0, 0, 1, 1, 1])
    np.testing.assert_array_equal(table.areas, np.float32([100, 600, 40.5, 16, 500]))
    np.testing.assert_array_equal(table.crowd, [False, True, False, False, True])


def test_boxes_to_train_on_ignore_crowds(tmp_path):
    made = Coco(root=write(tmp_path)).boxes("val2014")
    assert made.images.image_ids == ("b", "sub/a", "c", "d") and made.max_targets == 3
    assert [boxes.ignore.tolist() for boxes in made.boxes] == [
        [False, True],
        [False, False, True],
        [],
        [],
    ]


def test_scores_are_those_of_the_file_itself(tmp_path):
    """COCO's own evaluation of the file, and ours of what is read from it, are the same numbers."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    rng = np.random.default_rng(0)
    items, found = [], []
    sizes = {image["id"]: (image["width"], image["height"]) for image in IMAGES}
    for number in range(60):
        image = int(rng.choice(list(sizes)))
        low = rng.uniform(0, 10, 2)
        side = rng.uniform(1, np.array(sizes[image]) - low)
        box = np.float32([*low, *side]).tolist()
        category = int(rng.choice([1, 18, 90]))
        crowd = int(rng.random() < 0.2)
        items.append(annotation(number + 1, image, category, box, iscrowd=crowd, area=side[0] * 30))
        near = np.float32(box) + np.float32(rng.uniform(-0.5, 0.5, 4))
        found.append((image, category, float(np.float32(rng.random())), near))
    root = write(tmp_path, content={"annotations": items})
    truth = Coco(root=root).annotated_boxes("val2014")
    numbers, categories = [image["id"] for image in IMAGES], [1, 18, 90]
    corners = np.stack([box for *_, box in found])
    corners[:, 2:] += corners[:, :2]
    detections = DetectionTable(
        [numbers.index(image) for image, *_ in found],
        [categories.index(category) for _, category, *_ in found],
        [score for _, _, score, _ in found],
        corners,
        len(IMAGES),
        3,
    )
    ours = coco_ap(detections, GroundTruth.from_annotations(truth.boxes.values(), num_classes=3))
    theirs = COCO(str(root / "annotations" / "instances_val2014.json"))
    results = [
        {"image_id": i, "category_id": c, "score": s, "bbox": box.tolist()}
        for i, c, s, box in found
    ]
    evaluation = COCOeval(theirs, theirs.loadRes(results), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    expected = np.where(evaluation.stats < 0, np.nan, evaluation.stats)
    np.testing.assert_allclose(list(ours.summary.values()), expected, atol=1e-9)
    assert 0 < ours.summary["AP50"] < 1


def test_missing_image_is_skipped_or_named(tmp_path, caplog):
    root = write(tmp_path)
    (root / "val2014" / "sub" / "a.jpg").unlink()
    with caplog.at_level(logging.WARNING):
        images = Coco(root=root, on_bad="skip_all").images("val2014")
    assert list(as_dict(images)) == ["b", "c", "d"] and images.counts["bad_image"] == 1
    assert images.missing == ("sub/a",) and [r.number for r in images.records] == [9, 7, 11]
    with pytest.raises(DataError, match=r"coco val2014: 1 of 4 images .*\(sub/a\)"):
        Coco(root=root).images("val2014")
    assert "a.jpg" in caplog.text
    assert len(Coco(root=root).annotated_boxes("val2014")) == 4
    with pytest.raises(DataError, match=r"a\.jpg"):
        Coco(root=root, on_bad="error").images("val2014")
    with pytest.raises(ConfigError, match="on_bad='warn'"):
        Coco(root=root, on_bad="warn").images("val2014")
    for image in ("b", "c", "d"):
        (root / "val2014" / f"{image}.jpg").unlink()
    with pytest.raises(DataError, match="val2014.* 4"):
        Coco(root=root, on_bad="skip_all").images("val2014")


def test_boxes_of_resized_images_are_scaled(tmp_path):
    root = write(tmp_path)
    Image.fromarray(pixels(0, 15, 10)).save(root / "val2014" / "sub" / "a.jpg")  # was 30 x 20
    Image.fromarray(pixels(0, 16, 20)).save(root / "val2014" / "c.jpg")  # was 16 x 16
    images = Coco(root=root).images("val2014")
    assert [(r.height, r.width) for r in images.records] == [(20, 30), (15, 10), (16, 20), (16, 18)]
    truth = Coco(root=root, on_bad="skip_all").annotated_boxes("val2014")
    expected = np.float32([[1.25, 1.5, 6.25, 4.125], [0.5, 0.5, 2.5, 2.5], [0, 0, 10, 15]])
    np.testing.assert_array_equal(truth.boxes["sub/a"].boxes, expected)
    np.testing.assert_array_equal(truth.boxes["sub/a"].areas, np.float32([40.5 / 4, 4, 125]))
    assert list(truth.boxes) == ["b", "sub/a", "d"]
    assert truth.counts["scaled"] == 1 and truth.counts["bad_image"] == 1
    with pytest.raises(DataError, match=r"image c\.jpg: .*\(16, 16\).*\(16, 20\)"):
        Coco(root=root).annotated_boxes("val2014")


def other_types(value):
    """Return the same content as other tools write it."""
    if isinstance(value, list):
        return [other_types(item) for item in value]
    item = dict(value)
    for name in ("id", "image_id", "category_id"):
        if name in item:
            item[name] = str(item[name])
    for name in ("height", "width"):
        if name in item:
            item[name] = float(item[name])
    if "bbox" in item:
        item["iscrowd"] = [None, True][item.get("iscrowd", 0)]
    return item


def test_json_as_other_tools_write_it(tmp_path):
    root = write(tmp_path)
    data = Coco(root=root)
    images, truth = data.images("val2014"), data.annotated_boxes("val2014")
    names = ["val2014/b.jpg", "val2014\\sub\\a.jpg", "c.jpg", "d.jpg"]
    bare = [{"id": f"{i['id']}", "file_name": n} for i, n in zip(IMAGES, names, strict=True)]
    content = {
        "images": other_types(IMAGES),
        "annotations": other_types(ANNOTATIONS),
        "categories": other_types(CATEGORIES),
    }
    for written in (content, {**content, "images": bare}):
        text = json.dumps(written)
        for encoding in ("utf-8-sig", "utf-16"):
            path = root / "annotations" / "instances_val2014.json"
            path.write_bytes(text.encode(encoding))
            assert data.images("val2014") == images
            found = data.annotated_boxes("val2014")
            assert found.counts == truth.counts and list(found.boxes) == list(truth.boxes)
            for image_id, boxes in truth.boxes.items():
                np.testing.assert_array_equal(found.boxes[image_id].boxes, boxes.boxes)
                np.testing.assert_array_equal(found.boxes[image_id].crowd, boxes.crowd)


def test_a_folder_named_as_the_one_of_the_images_is_itself(tmp_path):
    """Names are shortened only where the file would be missing otherwise."""
    items = [{"id": 1, "file_name": "val2014/b.jpg"}, {"id": 2, "file_name": "b.jpg"}]
    root = write(tmp_path, content={"images": items, "annotations": []})
    (root / "val2014" / "val2014").mkdir()
    Image.fromarray(pixels(0, 4, 4)).save(root / "val2014" / "val2014" / "b.jpg")
    images = Coco(root=root).images("val2014")
    assert images.image_ids == ("val2014/b", "b")
    assert [record.height for record in images.records] == [4, 20]


def replaced(items, position, **changes):
    items = [dict(item) for item in items]
    items[position].update(changes)
    return items


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"annotations": replaced(ANNOTATIONS, 2, category_id=2)}, r"annotation 3.*category_id.* 2\b.*1, 18, 90"),
        ({"annotations": replaced(ANNOTATIONS, 2, category_id=None)}, "annotation 3.*category_id.*None"),
        ({"annotations": replaced(ANNOTATIONS, 2, category_id=[1])}, r"annotation 3.*category_id.*\[1\]"),
        ({"annotations": replaced(ANNOTATIONS, 2, image_id=5)}, "annotation 3.*image_id.* 5"),
        ({"annotations": replaced(ANNOTATIONS, 2, iscrowd=2)}, "annotation 3.*iscrowd.* 2"),
        ({"annotations": replaced(ANNOTATIONS, 2, iscrowd=[])}, "annotation 3: iscrowd"),
        ({"annotations": None}, "'annotations'"),
        ({"annotations": [1]}, "'annotations'"),
        ({"images": {}}, "'images'"),
        ({"images": replaced(IMAGES, 1, id=9)}, r"image 9.*'sub/a.jpg'.* id"),
        ({"images": replaced(IMAGES, 1, id="9")}, "image 9 .* id"),
        ({"images": replaced(IMAGES, 1, id="x")}, "image 'x'.* id"),
        ({"images": replaced(IMAGES, 1, file_name=None)}, "image 4.*file_name"),
        ({"images": replaced(IMAGES, 1, file_name="../a.jpg")}, "image 4.*a.jpg"),
        ({"images": replaced(IMAGES, 1, file_name="/a.jpg")}, "image 4.*a.jpg"),
        ({"images": replaced(IMAGES, 1, file_name="b.png")}, "'b.png'.*twice"),
        ({"images": replaced(IMAGES, 1, height=0)}, r"image 4.*\(0, 20\)"),
        ({"images": replaced(IMAGES, 1, height=30.5)}, r"image 4.*\(30.5, 20\)"),
        ({"images": replaced(IMAGES, 1, file_name="C:\\a.jpg")}, "image 4.*a.jpg"),
        ({"images": replaced(IMAGES, 1, width=None)}, "image 4: "),
        ({"categories": []}, "categories"),
        ({"categories": replaced(CATEGORIES, 1, id=18)}, "category .* id "),
        ({"categories": replaced(CATEGORIES, 1, name="dog")}, "category 1 .*name"),
        ({"categories": replaced(CATEGORIES, 1, name=None)}, "category 1 .*name"),
    ],
)  # fmt: skip
def test_faults_of_the_file_are_named(tmp_path, content, message):
    root = write(tmp_path, content=content)
    for read in (Coco(root=root).images, Coco(root=root).annotated_boxes):
        with pytest.raises(DataError, match=rf"instances_val2014\.json: .*{message}"):
            read("val2014")


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff\xfe{}", b"[" * 100_000])
def test_a_file_that_is_no_json_of_coco(tmp_path, text):
    root = write(tmp_path)
    (root / "annotations" / "instances_val2014.json").write_bytes(text)
    with pytest.raises(DataError, match=r"instances_val2014\.json"):
        Coco(root=root).images("val2014")


def test_missing_files(tmp_path):
    with pytest.raises(DataError, match="found.* none"):
        Coco(root=tmp_path).images("val2014")
    root = write(tmp_path, folder="test2014")
    with pytest.raises(DataError, match="train2014.*found.*val2014"):
        Coco(root=root).images("train2014")
    with pytest.raises(DataError, match=r"images.*val2014 "):
        Coco(root=root).images("val2014")
