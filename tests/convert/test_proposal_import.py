"""Importers of published proposal files, and the unpickler that must not run them."""

import collections
import json
import os
import pickle
import pickletools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from wsod_jax.commands import make_proposals
from wsod_jax.convert.proposal_import import import_proposals
from wsod_jax.convert.restricted_pickle import load_arrays
from wsod_jax.data.proposals.proposal_set import ProposalSet
from wsod_jax.data.records import ImageRecord, ImageSet
from wsod_jax.data.synthetic.dataset import SyntheticSpec, write_synthetic
from wsod_jax.errors import DataError

IDS = ("000005", "000007", "2008_000002")
HEIGHT, WIDTH = 20, 30
# continuous xyxy: a one-pixel box in the corner, and the whole image
BOXES = np.array([[0, 0, 1, 1], [0, 0, WIDTH, HEIGHT], [4, 6, 9, 8]], np.float32)
MATLAB = np.array([[1, 1, 1, 1], [1, 1, HEIGHT, WIDTH], [7, 5, 8, 9]])  # y1 x1 y2 x2, from 1
DETECTRON = np.array([[0, 0, 0, 0], [0, 0, WIDTH - 1, HEIGHT - 1], [4, 6, 8, 7]])


def images(ids=IDS):
    records = tuple(ImageRecord(i, Path(f"{i}.jpg"), HEIGHT, WIDTH) for i in ids)
    return ImageSet("three images", (), records)


def cells(items, shape):
    array = np.empty(len(items), object)
    array[:] = [np.asarray(item) for item in items]
    return array.reshape(shape)


def write_mat(path, boxes, names=IDS):
    content = {"boxes": cells(boxes, (1, -1))}
    if names is not None:
        content["images"] = cells(names, (-1, 1))
    savemat(path, content)
    return path


def write_pickle(path, boxes, ids, key="indexes", protocol=2, **more):
    path.write_bytes(pickle.dumps({"boxes": boxes, key: ids, **more}, protocol=protocol))
    return path


def assert_imported(result, counts=(3, 1, 2)):
    proposals = result.proposals
    assert proposals.ids == IDS
    for image_id, count in zip(IDS, counts, strict=True):
        np.testing.assert_array_equal(proposals.get(image_id), BOXES[:count])
        assert proposals.size(image_id) == (HEIGHT, WIDTH)


@pytest.mark.parametrize("dtype", [np.float64, np.uint16])
def test_selective_search_mat(tmp_path, dtype):
    boxes = [MATLAB[:2].astype(dtype), MATLAB.astype(dtype), MATLAB[:1].astype(dtype)]
    path = write_mat(tmp_path / "ss.mat", boxes, (IDS[2], IDS[0], IDS[1]))  # joined by id
    result = import_proposals(path, images())
    assert_imported(result)
    assert result.unused == 0 and result.clipped == 0
    assert result.proposals.scores is None
    assert result.proposals.generator.endswith("ss.mat")


def test_mat_without_ids_goes_by_order_and_must_have_as_many_images(tmp_path):
    path = write_mat(tmp_path / "ss.mat", [MATLAB, MATLAB[:1], MATLAB[:2]], None)
    assert_imported(import_proposals(path, images()))
    with pytest.raises(DataError, match="3 .*2"):
        import_proposals(path, images(IDS[:2]))


def test_mcg_folder_with_scores(tmp_path):
    for image_id, count, name in zip(IDS, (3, 1, 2), ("bboxes", "boxes", "bboxes"), strict=True):
        content = {name: MATLAB[:count], "scores": np.linspace(1, 0, count).reshape(-1, 1)}
        savemat(tmp_path / f"{image_id}.mat", content)
    result = import_proposals(tmp_path, images())
    assert_imported(result)
    np.testing.assert_array_equal(result.proposals.get_scores(IDS[0]), np.float32([1, 0.5, 0]))
    assert import_proposals(tmp_path, images(IDS[:2])).unused == 1
    (tmp_path / f"{IDS[1]}.mat").unlink()
    with pytest.raises(DataError, match="1 of the 3 .*000007"):
        import_proposals(tmp_path, images())


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("dtype", [np.uint16, np.float32, np.dtype(">f8")])
def test_detectron_pickle(tmp_path, protocol, dtype):
    boxes = [DETECTRON[:1].astype(dtype), np.asfortranarray(DETECTRON.astype(dtype))]
    boxes.append(DETECTRON[:2].astype(dtype))
    scores = [np.float32([7]), np.float32([3, 2, 1]), np.float32([5, 4])]
    indexes = [7, np.int64(5), 2008000002]
    path = tmp_path / "p.pkl"
    write_pickle(path, boxes, indexes, scores=scores, protocol=protocol)
    result = import_proposals(path, images())
    assert_imported(result)
    np.testing.assert_array_equal(result.proposals.get_scores(IDS[0]), np.float32([3, 2, 1]))


def test_detectron_pickle_of_python_2_and_older_numpy(tmp_path):
    array = DETECTRON[:1].astype(np.float32)
    text = pickle.dumps({"boxes": [array], "ids": np.array([5])}, protocol=2)
    text = text.replace(b"numpy._core", b"numpy.core")
    assert b"numpy.core.multiarray" in text
    (tmp_path / "p.pkl").write_bytes(text)
    result = import_proposals(tmp_path / "p.pkl", images(IDS[:1]))
    np.testing.assert_array_equal(result.proposals.get(IDS[0]), BOXES[:1])
    # Python 2 stores an array's bytes as a string
    data = array.tobytes()
    python2 = (
        b"\x80\x02}q\x00(U\x05boxes]q\x01cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n"
        b"K\x00\x85U\x01btR(K\x01K\x01K\x04\x86cnumpy\ndtype\n(U\x02f4K\x00K\x01tR(K\x03U\x01<NNN"
        b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U"
        + bytes([len(data)])
        + data
        + b"tbaU\x03ids]K\x05au."
    )
    pickletools.dis(python2, open(os.devnull, "w"))
    (tmp_path / "p.pkl").write_bytes(python2)
    result = import_proposals(tmp_path / "p.pkl", images(IDS[:1]))
    np.testing.assert_array_equal(result.proposals.get(IDS[0]), BOXES[:1])


def test_arrays_of_objects_become_lists(tmp_path):
    boxes = np.empty(1, object)
    boxes[0] = DETECTRON
    path = write_pickle(tmp_path / "p.pkl", boxes, [5], key="ids")
    assert len(import_proposals(path, images(IDS[:1])).proposals.get(IDS[0])) == 3


def test_images_of_the_file_that_were_not_asked_for_are_counted(tmp_path):
    path = write_pickle(tmp_path / "p.pkl", [DETECTRON] * 3, [5, 6, 7])
    result = import_proposals(path, images(IDS[:2]))
    assert result.unused == 1 and result.proposals.ids == IDS[:2]
    assert "1 further" in result.summary


def test_counts_and_ids_are_checked(tmp_path):
    path = tmp_path / "p.pkl"
    with pytest.raises(DataError, match="2 of the 3 .*'000007'"):
        import_proposals(write_pickle(path, [DETECTRON], [5]), images())
    with pytest.raises(DataError, match="2 .* 1 "):
        import_proposals(write_pickle(path, [DETECTRON], [5, 7]), images())
    with pytest.raises(DataError, match="twice"):
        import_proposals(write_pickle(path, [DETECTRON] * 2, [5, 5]), images(IDS[:1]))
    with pytest.raises(DataError, match="distinct"):
        import_proposals(write_pickle(path, [DETECTRON], [5]), images(("a5", "b5")))
    with pytest.raises(DataError, match=r"`boxes`.*`indexes`.*`ids`.*'names'"):
        import_proposals(write_pickle(path, [DETECTRON], [5], key="names"), images())
    with pytest.raises(DataError, match="3 boxes.* 1 scores"):
        scores = [np.ones(1)]
        import_proposals(write_pickle(path, [DETECTRON], [5], scores=scores), images(IDS[:1]))
    mat = write_mat(tmp_path / "ss.mat", [MATLAB] * 2, ("x", "y"))
    with pytest.raises(DataError, match="3 of the 3 .*'x'"):
        import_proposals(mat, images())


def numbered(ids, numbers):
    records = images(ids).records
    records = tuple(
        ImageRecord(r.image_id, r.path, r.height, r.width, number=n)
        for r, n in zip(records, numbers, strict=True)
    )
    return ImageSet("numbered", (), records)


@pytest.mark.parametrize(
    ("ids", "names"),
    [
        (("cat", "dog"), ["dog", "cat"]),
        (("cam1_05", "cam10_5"), ["cam10_5", "cam1_05"]),  # equal as numbers
        (("a/1", "b/1"), ["b/1.jpg", "a/1.PNG"]),
        (("7", "07"), [b"07", "7"]),
    ],
)
def test_ids_that_are_texts_are_compared_as_texts(tmp_path, ids, names):
    boxes = [DETECTRON[:2], DETECTRON[:1]]
    result = import_proposals(write_pickle(tmp_path / "p.pkl", boxes, names), images(ids))
    assert [len(result.proposals.get(i)) for i in ids] == [1, 2]


def test_digits_within_a_text_are_no_number(tmp_path):
    path = write_pickle(tmp_path / "p.pkl", [DETECTRON] * 2, ["c1", "d2"])
    with pytest.raises(DataError, match="no boxes for 2 of the 2 images.*'a1'"):
        import_proposals(path, images(("a1", "b2")))


def test_the_numbers_of_the_set_are_known(tmp_path):
    """Files of COCO's proposals name images by COCO's numbers, which the names of files need not show."""
    ids = ("COCO_val2014_000000000042", "x")
    boxes = [DETECTRON[:2], DETECTRON[:1]]
    path = write_pickle(tmp_path / "p.pkl", boxes, [7, 42])
    result = import_proposals(path, numbered(ids, (42, 7)))
    assert [len(result.proposals.get(i)) for i in ids] == [1, 2]
    with pytest.raises(DataError, match="no boxes for 1 of the 2 images"):
        import_proposals(path, numbered(ids, (42, 8)))


def test_ids_that_fit_twice_are_refused(tmp_path):
    ids, boxes = ("1", "2"), [DETECTRON[:1], DETECTRON[:2]]
    path = write_pickle(tmp_path / "p.pkl", boxes, [1, 2])
    assert import_proposals(path, numbered(ids, (1, 2))).proposals.ids == ids
    with pytest.raises(DataError, match="ambiguous"):
        import_proposals(path, numbered(ids, (2, 1)))
    path = write_pickle(tmp_path / "p.pkl", boxes, ["1.jpg", "2.jpg"])
    result = import_proposals(path, numbered(ids, (2, 1)))
    assert [len(result.proposals.get(i)) for i in ids] == [1, 2]


@pytest.mark.parametrize("name", ["scores", "boxScores", "objectness"])
@pytest.mark.parametrize("kind", ["pkl", "mat"])
def test_scores_by_their_usual_names_and_what_is_not_read(tmp_path, name, kind):
    scores, path = [np.float32([3, 2, 1])], tmp_path / f"p.{kind}"
    if kind == "pkl":
        write_pickle(path, [DETECTRON], [5], **{name: scores, "overlaps": [1]})
    else:
        content = {"boxes": cells([MATLAB], (1, 1)), "images": cells(IDS[:1], (1, 1))}
        savemat(path, content | {name: cells(scores, (1, 1)), "overlaps": 1})
    result = import_proposals(path, images(IDS[:1]))
    np.testing.assert_array_equal(result.proposals.get_scores(IDS[0]), scores[0])
    assert "with scores" in result.summary and "Not read: overlaps" in result.summary


def test_names_of_a_mat_under_another_key(tmp_path):
    path = tmp_path / "ss.mat"
    boxes = cells([MATLAB[:2], MATLAB], (1, -1))
    names = cells([IDS[1], IDS[0]], (-1, 1))
    for key in ("ids", "anything"):
        savemat(path, {"boxes": boxes, key: names})
        result = import_proposals(path, images(IDS[:2]))
        assert [len(result.proposals.get(i)) for i in IDS[:2]] == [3, 2] and not result.by_order
    savemat(path, {"boxes": boxes, "anything": names, "other": names})
    with pytest.raises(DataError, match="anything and other"):
        import_proposals(path, images(IDS[:2]))
    savemat(path, {"boxes": boxes})
    assert "order of the split" in import_proposals(path, images(IDS[:2])).summary


def test_boxes_of_other_images_are_refused_and_a_pixel_is_clipped(tmp_path):
    one = images(IDS[:1])
    path = tmp_path / "p.pkl"
    result = import_proposals(write_pickle(path, [np.array([[0, 0, WIDTH, HEIGHT]])], [5]), one)
    assert result.clipped == 1
    assert result.proposals.get(IDS[0]).tolist() == [[0, 0, WIDTH, HEIGHT]]
    with pytest.raises(DataError, match=r"'000005'.*30×20"):
        import_proposals(write_pickle(path, [np.array([[0, 0, HEIGHT, WIDTH]])], [5]), one)
    with pytest.raises(DataError, match="'000005'.*30×20"):
        import_proposals(write_pickle(path, [np.array([[0, 0, np.nan, 4]])], [5]), one)
    with pytest.raises(DataError, match="area"):
        import_proposals(write_pickle(path, [np.array([[5, 5, 2, 9]])], [5]), one)
    with pytest.raises(DataError, match=r"\[k, 4\].*\[2, 5\]"):
        import_proposals(write_pickle(path, [np.ones((2, 5))], [5]), one)


@pytest.mark.parametrize("content", [b"", b"no matlab", b"MATLAB 5.0 MAT-file" + bytes(200)])
def test_broken_mat_files(tmp_path, content):
    path = tmp_path / "ss.mat"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"ss\.mat"):
        import_proposals(path, images())


def test_truncated_and_foreign_mat_files(tmp_path):
    path = write_mat(tmp_path / "ss.mat", [MATLAB] * 3)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"ss\.mat.*readable"):
        import_proposals(path, images())
    savemat(path, {"other": 1})
    with pytest.raises(DataError, match=r"`boxes`.*\['other'\]"):
        import_proposals(path, images())
    with pytest.raises(DataError, match=r"p\.txt"):
        import_proposals(tmp_path / "p.txt", images())


class Payload:
    """Pickles as a call of any function."""

    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("where", ["alone", "boxes", "key of a dict"])
def test_a_malicious_pickle_does_not_run(tmp_path, protocol, where):
    victim = tmp_path / "ran"
    payload = Payload(os.system, f"touch {victim}")
    content = {
        "alone": payload,
        "boxes": {"boxes": [DETECTRON, payload], "indexes": [5]},
        "key of a dict": {"boxes": [DETECTRON], "indexes": [5], "extra": {"x": payload}},
    }[where]
    path = tmp_path / "p.pkl"
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    with pytest.raises(DataError, match=r"(posix|nt|os)\.system"):
        import_proposals(path, images(IDS[:1]))
    assert not victim.exists()
    pickle.loads(path.read_bytes())  # the payload is live: without the restriction it runs
    assert victim.exists()


@pytest.mark.parametrize(
    "payload",
    [
        Payload(eval, "1"),
        Payload(getattr, "text", "upper"),
        Payload(__import__, "os"),
        Payload(np.load, "file", None, True),
        Payload(np.frombuffer, b"12345678", "O"),
        Payload(collections.Counter, "text"),
    ],
)
def test_other_functions_are_refused_by_name(tmp_path, payload):
    path = tmp_path / "p.pkl"
    path.write_bytes(pickle.dumps({"boxes": payload}))
    with pytest.raises(DataError, match=rf"p\.pkl.*{payload.reduced[0].__name__}"):
        load_arrays(path)


@pytest.mark.parametrize(
    "text",
    [
        b"cnumpy\ndtype\n(Vos.system\ntR.",  # a type code that is none
        b"cnumpy\ndtype\n(VO8\nI0\nI1\ntR.",  # alone, no dict
        b"cnumpy\nndarray\n(I9\ntR.",  # calling the array class
        b"c_codecs\nencode\n(Vabc\nVzip\ntR.",
        b"(dVboxes\nPsomewhere\ns.",  # a persistent reference
        b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(VO8\ntRV12345678\ntR.",
        b"cnumpy.core.multiarray\n_reconstruct\n(N(N(dVx\nVy\nstb.",  # setting attributes
        b"(lp0\ng0\na.",  # a list, not a dict
        b"I1\n",  # no end
        b"",
        b"\x80\x09.",
    ],
)
def test_crooked_pickles_raise_data_errors(tmp_path, text):
    path = tmp_path / "p.pkl"
    path.write_bytes(text)
    with pytest.raises(DataError):
        load_arrays(path)


def test_a_list_within_itself_is_refused(tmp_path):
    endless = []
    endless.append(endless)
    path = tmp_path / "p.pkl"
    path.write_bytes(pickle.dumps({"boxes": endless}))
    with pytest.raises(DataError, match="nested"):
        load_arrays(path)


def test_missing_pickle(tmp_path):
    with pytest.raises(DataError, match=r"none\.pkl"):
        load_arrays(tmp_path / "none.pkl")


def test_script_imports_for_a_set_in_coco_layout(tmp_path, capsys):
    (tmp_path / "annotations").mkdir()
    (tmp_path / "val2014").mkdir()
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "val2014" / "COCO_val2014_000000000042.jpg")
    item = {"id": 42, "file_name": "COCO_val2014_000000000042.jpg"}
    cat = {"id": 1, "image_id": 42, "category_id": 3, "bbox": [4, 6, 5, 2]}
    content = {"images": [item], "annotations": [cat], "categories": [{"id": 3, "name": "cat"}]}
    (tmp_path / "annotations" / "instances_val2014.json").write_text(json.dumps(content))
    path = write_pickle(tmp_path / "p.pkl", [DETECTRON], [42])
    arguments = ["--data", str(tmp_path), "--import", str(path), "--out", str(tmp_path / "p.npz")]
    assert make_proposals.main(arguments) == 1
    assert "choose --split out of val2014" in capsys.readouterr().err
    assert make_proposals.main([*arguments, "--split", "val2014", "--report"]) == 0
    assert ProposalSet.load(tmp_path / "p.npz").ids == ("COCO_val2014_000000000042",)
    assert "cat" in capsys.readouterr().out


def test_script_imports(tmp_path, capsys):
    write_synthetic(tmp_path / "set", SyntheticSpec(num_trainval=2, num_test=0, size=64))
    path = write_mat(tmp_path / "ss.mat", [MATLAB, MATLAB], ("000001", "000002"))
    arguments = ["--data", str(tmp_path / "set"), "--split", "trainval", "--import", str(path)]
    assert make_proposals.main([*arguments, "--out", str(tmp_path / "p.npz"), "--report"]) == 0
    assert ProposalSet.load(tmp_path / "p.npz").counts.tolist() == [3, 3]
    printed = capsys.readouterr().out
    assert "Converted" in printed and "3 proposals per image" in printed
