"""Results come back bit for bit, with the data set's own ids; other tools read them, and theirs are read."""

import dataclasses
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from wsod_jax.data.readers.coco import Coco
from wsod_jax.data.records import ImageRecord, ImageSet
from wsod_jax.errors import DataError
from wsod_jax.evaluation.formats import (
    index_path,
    read_index,
    write_coco_set,
    write_results,
    write_voc_server,
)
from wsod_jax.evaluation.results_reading import read_results
from wsod_jax.types import ImageResult, Mask

SIZE = (30, 40)


def image_set(ids, numbers=None, class_names=("cat", "dog"), category_ids=None):
    records = tuple(
        ImageRecord(
            image_id,
            Path(f"{image_id}.jpg"),
            *SIZE,
            (0,) * len(class_names),
            None if numbers is None else numbers[i],
        )
        for i, image_id in enumerate(ids)
    )
    return ImageSet("set", class_names, records, category_ids=category_ids)


def random_results(num_images=3, num_classes=2, masks=True, views=True):
    rng = np.random.default_rng(0)
    results = []
    for index in range(num_images):
        n = [5, 0, 40][index % 3]
        corner = rng.uniform(0, 20, (n, 2)).astype(np.float32)
        side = rng.exponential(8, (n, 2)).astype(np.float32)
        found = tuple(
            Mask(3, 4, np.pad(rng.random((5, 7)) < 0.5, 1, constant_values=True)) for _ in range(n)
        )
        results.append(
            ImageResult(
                index,
                SIZE,
                np.concatenate([corner, corner + side], axis=1),
                np.sort(rng.uniform(0, 3, n).astype(np.float32) ** 9)[::-1],
                rng.integers(0, num_classes, n, np.int32),
                rows=rng.integers(0, 2000, n, np.int32) if views else None,
                views=rng.integers(-1, 8, n, np.int32) if views else None,
                masks=found if masks else None,
            )
        )
    return results


def assert_same(found, expected):
    assert [result.image_index for result in found] == [result.image_index for result in expected]
    for a, b in zip(found, expected, strict=True):
        assert a.size == b.size
        for name in ("boxes", "scores", "classes", "rows", "views"):
            x, y = getattr(a, name), getattr(b, name)
            assert (x is None) == (y is None), name
            if x is not None:
                np.testing.assert_array_equal(x, y)
                assert x.dtype == y.dtype
        assert (a.masks is None) == (b.masks is None)
        for x, y in zip(a.masks or (), b.masks or (), strict=True):
            assert (x.top, x.left) == (y.top, y.left)
            np.testing.assert_array_equal(x.pixels, y.pixels)


@pytest.mark.parametrize(
    ("ids", "numbers", "written"),
    [
        (("000012", "a b", "7"), None, ["000012", "a b", "7"]),
        (("12", "139", "7"), None, [12, 139, 7]),
        (("1", "2", "3"), (0, 1, 2), [0, 1, 2]),
        (("n01/x", "n02/x", "n02/y"), None, ["n01/x", "n02/x", "n02/y"]),
    ],
)
@pytest.mark.parametrize("category_ids", [None, (18, 0)])
@pytest.mark.parametrize("more", [True, False])
def test_round_trip_is_exact(tmp_path, ids, numbers, written, category_ids, more):
    images = image_set(ids, numbers, category_ids=category_ids)
    expected = random_results(masks=more, views=more)
    path = write_results(tmp_path / "deep" / "predictions.json", iter(expected), images)
    assert_same(read_results(path, images), expected)
    entries = json.loads(path.read_text())
    assert len(entries) == 45
    assert list(dict.fromkeys(entry["image_id"] for entry in entries)) == [written[0], written[2]]
    assert {entry["category_id"] for entry in entries} == set(category_ids or (1, 2))
    extra = ["segmentation", "row", "view"] if more else []
    assert list(entries[0]) == ["image_id", "category_id", "bbox", "score", *extra]
    index = read_index(path)
    assert index.images == dict(zip(written, ids, strict=True))
    assert index.class_names == ("cat", "dog") and index.category_ids == (category_ids or (1, 2))
    assert {p.name for p in path.parent.iterdir()} == {"predictions.json", "predictions.index.json"}
    index_path(path).unlink()  # as a file from elsewhere
    assert_same(read_results(path, images), expected)


def test_an_index_joins_by_name_whatever_the_order_and_the_numbers(tmp_path):
    images = image_set(("a", "b", "c"), (5, 6, 7), category_ids=(1, 2))
    expected = random_results(masks=False, views=False)
    path = write_results(tmp_path / "p.json", expected, images)
    other = image_set(("c", "b", "a"), (5, 6, 7), ("dog", "cat"), category_ids=(1, 2))
    for found, made in zip(read_results(path, other), expected[::-1], strict=True):
        np.testing.assert_array_equal(found.boxes, made.boxes)
        np.testing.assert_array_equal(found.classes, 1 - made.classes)
    unlabeled = image_set(("c", "a", "b"), class_names=())
    np.testing.assert_array_equal(read_results(path, unlabeled)[1].classes, expected[0].classes)
    with pytest.raises(DataError, match="'bird'"):
        read_results(path, image_set(("a", "b", "c"), class_names=("cat", "bird")))
    path.write_text(json.dumps([{**GOOD, "image_id": 9}]))
    with pytest.raises(DataError, match="entry 0.* 9 "):
        read_results(path, images)
    index_path(path).write_text("[]")
    with pytest.raises(DataError, match="categories"):
        read_results(path, images)


def test_writing_that_fails_leaves_the_results_of_before(tmp_path):
    images = image_set(("a", "b", "c"))
    path = write_results(tmp_path / "p.json", random_results(), images)
    before = {p: p.read_bytes() for p in tmp_path.iterdir()}

    def broken():
        yield from random_results()[:2]
        raise KeyboardInterrupt

    for write in (write_results, lambda *args: write_coco_set(*args, source="x")):
        with pytest.raises(KeyboardInterrupt):
            write(path, broken(), images)
        assert {p: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_results_are_written_as_they_come(tmp_path):
    alive = []

    class Watched(ImageResult):
        def __del__(self):
            alive.remove(self.image_index)

    def stream():
        for result in random_results(9):
            fields = {f.name: getattr(result, f.name) for f in dataclasses.fields(result)}
            watched = Watched(**fields)
            alive.append(watched.image_index)
            yield watched
            del watched
            assert len(alive) <= 1

    images = image_set(tuple("abcdefghi"))
    write_results(tmp_path / "p.json", stream(), images)
    assert len(read_results(tmp_path / "p.json", images)[8].boxes) == 40


def test_no_images_and_no_boxes(tmp_path):
    empty = image_set(())
    assert read_results(write_results(tmp_path / "p.json", [], empty), empty) == []
    images = image_set(("a", "b"))
    path = write_results(tmp_path / "p.json", [ImageResult(1, SIZE)], images)
    assert json.loads(path.read_text()) == []
    for result in read_results(path, images):
        assert result.boxes.shape == (0, 4) and result.scores.dtype == np.float32
        assert result.masks is None and result.rows is None


GOOD = {"image_id": "a", "category_id": 1, "bbox": [0, 0, 1, 1], "score": 0.5}


def read(tmp_path, entries, images=None):
    path = tmp_path / "p.json"
    path.write_text(entries if isinstance(entries, str) else json.dumps(entries))
    return read_results(path, images or image_set(("a", "b")))


def positions(tmp_path, values, images):
    """Return the positions of the images that ids of a file stand for."""
    entries = [{**GOOD, "image_id": value, "score": i} for i, value in enumerate(values)]
    found = {
        int(score): result.image_index
        for result in read(tmp_path, entries, images)
        for score in result.scores
    }
    return [found[i] for i in range(len(values))]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_json_types_and_encodings_of_other_tools(tmp_path, encoding):
    entry = {**GOOD, "category_id": "1", "image_id": "b"}
    (tmp_path / "p.json").write_bytes(json.dumps([entry]).encode(encoding))
    images = image_set(("a", "b"))
    assert read_results(tmp_path / "p.json", images)[1].classes.tolist() == [0]


def test_ids_of_other_tools(tmp_path):
    shifted = image_set(("1", "2", "3", "4"), (0, 1, 2, 3))  # file names are not the numbers
    assert positions(tmp_path, [0, 1, 2, 3], shifted) == [0, 1, 2, 3]
    assert positions(tmp_path, [1, 2, 3.0], shifted) == [1, 2, 3]
    assert positions(tmp_path, ["0", "4", "4.jpg"], shifted) == [0, 3, 3]
    coco = image_set(("000000000139", "000000000285"), (139, 285))
    assert positions(tmp_path, [285, "139", "000000000285"], coco) == [1, 0, 1]
    assert positions(tmp_path, ["val2017/000000000285.jpg"], coco) == [1]
    voc = image_set(("000012", "2007_000032", "000007"))
    assert positions(tmp_path, ["000012", 7, "2007_000032", 12], voc) == [0, 2, 1, 0]
    folders = image_set(("n01/x", "n02/x", "n02/y.z"))
    assert positions(tmp_path, ["n02/x", "y.z", "y.z.png", "n01/x"], folders) == [1, 2, 2, 0]


@pytest.mark.parametrize(
    ("images", "value", "words"),
    [
        (image_set(("1", "2"), (0, 1)), 2, "entry 0.* 2 .*0, 1"),
        (image_set(("1", "2"), (0, 1)), "1", "entry 0.*'1'.*'1'.*'2'"),
        (image_set(("1", "2")), 3, "entry 0.* 3 "),
        (image_set(("n01/x", "n02/x")), "x", "'n01/x'.*'n02/x'"),
        (image_set(("n01/7", "n02/007")), 7, "'n01/7'.*'n02/007'"),
        (image_set(("a", "b")), "zz", "'zz'.*'a'"),
        (image_set(("a", "b")), True, "image_id.*True"),
        (image_set(("a", "b")), None, "image_id.*None"),
        (image_set(("a", "b")), 1.5, r"image_id.*1\.5"),
        (image_set(("a", "b")), ["a"], r"image_id.*\['a'\]"),
    ],
)
def test_images_that_are_none_or_several_are_named(tmp_path, images, value, words):
    with pytest.raises(DataError, match=words):
        positions(tmp_path, [value], images)


RLE = {"size": [30, 40], "counts": [30 * 4 + 3, 5, 30 * 35 + 22]}  # rows 3 to 7 of column 4


def test_masks_without_boxes_and_boxes_outside(tmp_path):
    mask = {key: value for key, value in GOOD.items() if key != "bbox"} | {"segmentation": RLE}
    first, second = read(tmp_path, [mask, {**mask, "bbox": [-5, 1, 100, 2], "score": 0.7}])
    assert first.boxes.tolist() == [
        [-5, 1, 95, 3],
        [4, 3, 5, 8],
    ]  # best first; boxes are not clipped
    assert first.masks[1][:2] == (3, 4) and first.masks[1].pixels.shape == (5, 1)
    assert len(second.masks) == 0 and second.boxes.shape == (0, 4)
    empty = read(tmp_path, [{**mask, "segmentation": {"size": [30, 40], "counts": [1200]}}])[0]
    assert empty.masks[0].pixels.size == 0 and empty.boxes.tolist() == [[0, 0, 0, 0]]


def test_equal_scores_keep_their_order_and_foreign_keys_are_left(tmp_path):
    entries = [{**GOOD, "bbox": [i, 0, 1, 1], "row": "top", "id": 7} for i in range(4)]
    result = read(tmp_path, [*entries, {**GOOD, "bbox": [9, 0, 1, 1], "score": 1}])[0]
    assert result.boxes[:, 0].tolist() == [9, 0, 1, 2, 3] and result.rows is None


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[", "JSON"),
        ("{}", "dict"),
        ([3], "entry 0.*object"),
        ([GOOD, {**GOOD, "image_id": "zz"}], "entry 1 .*'zz'"),
        ([{**GOOD, "category_id": 9}], r"category_id.* 9.*\[1, 2\]"),
        ([{**GOOD, "category_id": 0}], r"category_id.* 0.*\[1, 2\]"),
        ([{**GOOD, "category_id": [1]}], "entry 0.*category_id"),
        ([{**GOOD, "category_id": 1.5}], "entry 0.*category_id"),
        ([{**GOOD, "bbox": [0, 0, 1]}], "bbox"),
        ([{**GOOD, "bbox": [0, 0, -1, 1]}], "width >= 0"),
        ([{**GOOD, "bbox": [0, 0, 1e39, 1]}], "bbox"),
        ([{**GOOD, "bbox": ["a", 0, 1, 1]}], "bbox"),
        ([{**GOOD, "bbox": None}], "bbox.*None"),
        ([{**GOOD, "score": "high"}], "score.*'high'"),
        ([{**GOOD, "score": True}], "score.*True"),
        (json.dumps([GOOD]).replace("0.5", "NaN"), "entry 0.*score.*nan"),
        (json.dumps([GOOD]).replace("0.5", "-Infinity"), "finite"),
        ([{"image_id": "a"}], "entry 0"),
        ([GOOD, {**GOOD, "segmentation": RLE}], "1 of 2 .*segmentation"),
        ([{**GOOD, "segmentation": {**RLE, "size": [40, 30]}}], r"entry 0.*\(40, 30\).*\(30, 40\)"),
        ([{**GOOD, "segmentation": [[0, 0, 3, 0, 3, 3]]}], "entry 0.*RLE"),
        ([{**GOOD, "segmentation": []}], "entry 0.*RLE"),
    ],
)
def test_malformed_files_name_the_entry(tmp_path, content, words):
    with pytest.raises(DataError, match=words):
        read(tmp_path, content)


def test_images_whose_file_is_missing_are_told_apart_from_unknown_ones(tmp_path):
    images = dataclasses.replace(image_set(("000012",)), missing=("000007", "sub/x"))
    for value in ("000007", 7, "sub/x.jpg", "x"):
        with pytest.raises(DataError, match="missing"):
            positions(tmp_path, [value], images)
    with pytest.raises(DataError, match="entry 0.* 8 "):
        positions(tmp_path, [8], images)
    numbered = dataclasses.replace(image_set(("000012",), (12,)), missing=("000007",))
    with pytest.raises(DataError, match="missing"):
        positions(tmp_path, [7], numbered)


def data_set(*annotations, **changes):
    return {
        "images": [{"id": 5, "file_name": "n02/x.jpg"}, {"id": 6, "file_name": "y.z"}],
        "categories": [{"id": 3, "name": "dog"}, {"id": 4, "name": "cat"}],
        "annotations": list(annotations),
    } | changes


IN_SET = {"image_id": 5, "category_id": 4, "bbox": [1, 2, 3, 4]}


@pytest.mark.parametrize("numbers", [None, (6, 5, 7)])  # numbers of other images do not count
def test_a_data_set_is_read_by_the_names_in_it(tmp_path, numbers):
    images = image_set(("n01/x", "n02/x", "y.z"), numbers)
    crowd = {**IN_SET, "iscrowd": 1}
    scored = {**IN_SET, "image_id": 6, "category_id": 3, "score": 0.25, "iscrowd": "0"}
    none, first, second = read(tmp_path, data_set(crowd, IN_SET, scored), images)
    assert len(none.boxes) == 0
    assert first.boxes.tolist() == [[1, 2, 4, 6]] and first.scores.tolist() == [1]
    assert first.classes.tolist() == [0]
    assert second.classes.tolist() == [1] and second.scores.tolist() == [0.25]
    assert first.masks is None


def test_polygons_of_a_data_set(tmp_path):
    square = [[2, 3, 6, 3, 6, 8, 2, 8]]
    images = image_set(("n02/x", "y.z"))
    [first, _] = read(tmp_path, data_set({**IN_SET, "segmentation": square}), images)
    expected = np.zeros(SIZE, bool)
    expected[3:8, 2:6] = True
    [mask] = first.masks
    found = np.zeros(SIZE, bool)
    found[mask.top :, mask.left :][: len(mask.pixels), : mask.pixels.shape[1]] = mask.pixels
    np.testing.assert_array_equal(found, expected)
    [first, _] = read(tmp_path, data_set({**IN_SET, "segmentation": []}), images)
    assert first.masks is None and len(first.boxes) == 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (data_set(annotations=None), "dict"),
        (data_set(images=[{"id": 5}]), "file_name"),
        (data_set(categories=[{"id": 4, "name": "cat"}]), "'dog'"),
        (data_set({**IN_SET, "image_id": 7}), "entry 0.* 7 "),
        (data_set({**IN_SET, "category_id": 5}), "category_id.* 5"),
        (data_set({**IN_SET, "score": None}), "score.*None"),
        (data_set({**IN_SET, "segmentation": [["a"] * 6]}), "entry 0.*polygon"),
        (data_set(images=[{"id": 5, "file_name": "zz.jpg"}], annotations=[IN_SET]), "'zz.jpg'"),
    ],
)
def test_malformed_data_sets_are_named(tmp_path, content, words):
    with pytest.raises(DataError, match=words):
        read(tmp_path, content, image_set(("n02/x", "y.z")))


def test_masks_are_decoded_when_asked_for(tmp_path):
    [first, _] = read(tmp_path, [{**GOOD, "segmentation": RLE}])
    assert first.masks.rles == (RLE,)
    mask = pickle.loads(pickle.dumps(first)).masks[0]
    assert mask[:2] == (3, 4) and mask.pixels.tolist() == [[True]] * 5
    with pytest.raises(IndexError):
        first.masks[1]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"p\.json"):
        read_results(tmp_path / "p.json", image_set(("a",)))
    with pytest.raises(DataError, match="JSON"):
        read_results(tmp_path, image_set(("a",)))  # a folder


def write_tree(root):
    """Write a COCO data set whose numbers are neither the files' names nor dense, with masks."""
    counts = [30 * 5 + 5] + [20, 10] * 19 + [20, 30 * 15 + 5]
    rle = {"size": [30, 40], "counts": counts}  # rows 5 to 24 of columns 5 to 24
    images = [(40, "1.jpg"), (10, "2.jpg"), (20, "3.jpg"), (2, "sub/4.jpg")]
    content = {
        "images": [
            {"id": number, "file_name": name, "height": 30, "width": 40} for number, name in images
        ],
        "categories": [{"id": 90, "name": "dog"}, {"id": 18, "name": "cat"}],
        "annotations": [
            {"id": i + 1, "image_id": number, "category_id": [90, 18][i % 2], "iscrowd": 0,
             "bbox": [5, 5, 20, 20], "area": 400, "segmentation": rle}
            for i, (number, _) in enumerate(images)
        ],
    }  # fmt: skip
    (root / "annotations").mkdir(parents=True)
    path = root / "annotations" / "instances_test.json"
    path.write_text(json.dumps(content))
    numbers = [number for number, _ in images]
    ids = ("1", "2", "3", "sub/4")
    return path, image_set(ids, numbers, ("cat", "dog"), category_ids=(18, 90))


def exact_results():
    mask = Mask(5, 5, np.ones((20, 20), bool))
    return [
        ImageResult(
            i,
            SIZE,
            np.array([[5, 5, 25, 25]], np.float32),
            np.array([0.5], np.float32),
            np.array([1 - i % 2], np.int32),
            masks=(mask,),
        )
        for i in range(4)
    ]


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_an_exact_detector_has_ap_1_in_pycocotools(tmp_path, kind):
    truth_path, images = write_tree(tmp_path)
    path = write_results(tmp_path / "results.json", exact_results(), images)
    truth = COCO(str(truth_path))
    evaluation = COCOeval(truth, truth.loadRes(str(path)), kind)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1)
    assert_same(read_results(path, images), exact_results())
    path = write_coco_set(tmp_path / "set.json", exact_results(), images, source="s")
    assert_same(read_results(path, images), exact_results())


@pytest.mark.parametrize("masks", [True, False])
def test_a_data_set_is_read_by_pycocotools_and_by_our_reader(tmp_path, masks):
    _, images = write_tree(tmp_path)
    results = exact_results()[:3]
    if not masks:
        results = [dataclasses.replace(result, masks=None) for result in results]
    path = tmp_path / "out" / "annotations" / "instances_pseudo.json"
    write_coco_set(path, iter(results), images, source="OIM, step 7")
    content = json.loads(path.read_text())
    assert content["info"] == {"source": "OIM, step 7"}
    expected = {"id": 2, "image_id": 10, "category_id": 18, "bbox": [5, 5, 20, 20], "score": 0.5}
    first = dict(content["annotations"][1])
    assert ("segmentation" in first) == masks
    first.pop("segmentation", None)
    assert first == {**expected, "area": 400, "iscrowd": 0}
    assert content["images"][3] == {
        "id": 2, "file_name": "sub/4.jpg", "height": 30, "width": 40
    }  # fmt: skip
    coco = COCO(str(path))
    assert coco.getImgIds() == [40, 10, 20, 2] and len(coco.getAnnIds()) == 3
    if masks:
        assert coco.annToMask(coco.anns[1]).sum() == 400
    truth = Coco(root=tmp_path / "out").annotated_boxes("pseudo")
    assert truth.class_names == ("cat", "dog") and tuple(truth.boxes) == images.image_ids
    for result, found in zip(results, truth.boxes.values(), strict=False):
        np.testing.assert_array_equal(found.boxes, result.boxes)
        np.testing.assert_array_equal(found.classes, result.classes)
    assert len(truth.boxes["sub/4"].boxes) == 0


def test_images_without_numbers_of_their_own_are_counted_in_a_data_set(tmp_path):
    images = image_set(("000012", "x"))
    path = write_coco_set(tmp_path / "set.json", exact_results()[:2], images, source="s")
    content = json.loads(path.read_text())
    assert [(i["id"], i["file_name"]) for i in content["images"]] == [
        (1, "000012.jpg"),
        (2, "x.jpg"),
    ]
    assert [a["image_id"] for a in content["annotations"]] == [1, 2]
    assert content["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    nothing = write_coco_set(tmp_path / "set.json", [], image_set(()), source="s")
    assert json.loads(nothing.read_text())["images"] == []


def test_files_of_the_voc_server_count_pixels_from_one_and_lie_in_one_folder(tmp_path):
    names = ("cup/mug", "../x", "naïve 100%", "c")
    images = image_set(("000012", "x"), class_names=names)
    results = [
        ImageResult(
            1,
            SIZE,
            np.array([[0, 0, 10, 20], [1, 2, 3, 4]], np.float32),
            np.array([0.25, 0.1], np.float32),
            np.array([0, 0], np.int32),
        ),
        ImageResult(
            0,
            SIZE,
            np.array([[4.5, 5, 30.25, 40]], np.float32),
            np.array([1e-8], np.float32),
            np.array([3], np.int32),
        ),
    ]
    folder = write_voc_server(tmp_path / "server", results, images)
    assert {path.name: path.read_text() for path in folder.iterdir()} == {
        "comp4_det_test_cup%2Fmug.txt": (
            "x 0.25 1.000 1.000 10.000 20.000\nx 0.100000001 2.000 3.000 3.000 4.000\n"
        ),
        "comp4_det_test_..%2Fx.txt": "",
        "comp4_det_test_naïve 100%25.txt": "",
        "comp4_det_test_c.txt": "000012 9.99999994e-09 5.500 6.000 30.250 40.000\n",
    }
    assert [path.name for path in tmp_path.iterdir()] == ["server"]
