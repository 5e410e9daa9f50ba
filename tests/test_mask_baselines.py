"""Masks made of boxes: retrieval against a loop, and `wsod-jax evaluate --masks` of a file and of a run."""

import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from tests.ops.test_masks import fill_in_loops
from tests.test_end_to_end import read_report
from tests.test_evaluation_runs import as_results, measure
from wsod_jax.commands import evaluate, make_proposals, measuring
from wsod_jax.data.proposals.mask_set import MaskSet
from wsod_jax.data.proposals.proposal_set import ProposalSet
from wsod_jax.data.readers.voc import Voc
from wsod_jax.errors import ConfigError
from wsod_jax.ops.masks import mask_to_rle
from wsod_jax.runs.evaluator_choice import outputs_with
from wsod_jax.runs.mask_baselines import MaskBaseline, retrieve_masks
from wsod_jax.types import Mask

SIZE = (40, 70)
SCORES = ("mask AP25", "mask AP50", "mask AP75", "ABO", "COCO mask AP")


def iou(a, b):
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    both = max(width, 0) * max(height, 0)
    areas = [(c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)]
    return both / (sum(areas) - both)


def random_boxes(rng, count):
    corners = rng.integers(0, 30, (count, 2))
    return np.concatenate([corners, corners + rng.integers(1, 10, (count, 2))], axis=1)


def mask_set(boxes):
    """Return masks of one image "a", mask r being r + 1 pixels in a row."""
    proposals = ProposalSet.from_images({"a": SIZE}, {"a": boxes}, generator="by hand")
    masks = [Mask(0, 0, np.ones((1, row + 1), bool)) for row in range(len(boxes))]
    counts = [mask_to_rle(mask, SIZE)["counts"].encode() for mask in masks]
    return MaskSet.from_images(proposals, {"a": counts}, generator="by hand")


@pytest.mark.parametrize("seed", range(5))
def test_retrieval_is_that_of_a_loop(seed):
    """Boxes at whole pixels, so that overlaps are equal now and then; the lowest row is taken."""
    rng = np.random.default_rng(seed)
    proposals = random_boxes(rng, 30).astype(np.float32)
    proposals = np.concatenate([proposals, proposals[::-1]])
    boxes = random_boxes(rng, 40).astype(np.float32)
    boxes[:3] = proposals[[4, 40, 17]]
    found = retrieve_masks(boxes, mask_set(proposals), "a")
    for box, mask in zip(boxes.tolist(), found, strict=True):
        best, best_row = 0, None
        for row, proposal in enumerate(proposals.tolist()):
            if iou(box, proposal) > best:
                best, best_row = iou(box, proposal), row
        assert mask.pixels.sum() == (0 if best_row is None else best_row + 1)


def test_without_proposals_or_boxes():
    boxes = np.float32([[0, 0, 4, 4]])
    [mask] = retrieve_masks(boxes, mask_set(np.zeros((0, 4))), "a")
    assert mask.pixels.size == 0
    [mask] = retrieve_masks(boxes, mask_set(boxes + 10), "a")
    assert mask.pixels.size == 0
    assert retrieve_masks(boxes[:0], mask_set(boxes), "a") == ()


# -- a file of predictions


@pytest.fixture(scope="module")
def files(trained_run, tmp_path_factory):
    """A file of the true boxes of the test split, and the true masks as proposals of it, with some more."""
    folder = tmp_path_factory.mktemp("files")
    reader = Voc(root=trained_run.data)
    boxes = as_results(reader.annotated_boxes("test").boxes)
    (folder / "boxes.json").write_text(json.dumps(boxes))
    images, segmentations = reader.images("test"), []
    for record in images.records:
        size = (record.height, record.width)
        more = Mask(0, 0, np.ones((record.height // 2, record.width // 2), bool))
        masks = [more, *reader.instances("test")[record.image_id]().masks]
        segmentations += [
            {"image_id": record.image_id, "segmentation": mask_to_rle(mask, size)} for mask in masks
        ]
    (folder / "sam.json").write_text(json.dumps(segmentations))
    arguments = ["--data", trained_run.data, "--split", "test", "--import", folder / "sam.json"]
    arguments += ["--out", folder / "p.npz"]
    assert make_proposals.main([*map(str, arguments)]) == 0
    return folder


def rescore(run, path, out, *arguments, status=0):
    given = ["--workdir", run.workdir, "--predictions", path, "--out", out, "--coco"]
    given += ["--figures", "0", *arguments]
    assert evaluate.main([str(argument) for argument in given]) == status
    return read_report(out) if status == 0 else None


def with_masks(run, entries, shape):
    """Return entries with the masks that loops make of their boxes."""
    records = {r.image_id: (r.height, r.width) for r in Voc(root=run.data).images("test").records}
    found = []
    for entry in entries:
        x, y, width, height = entry["bbox"]
        pixels = fill_in_loops(shape, (x, y, x + width, y + height), records[entry["image_id"]])
        rle = coco_mask.encode(np.asfortranarray(pixels.astype(np.uint8)))
        found.append(entry | {"segmentation": rle | {"counts": rle["counts"].decode()}})
    return found


@pytest.mark.parametrize("shape", ["box", "ellipse"])
def test_a_file_scores_as_one_with_these_masks(trained_run, files, tmp_path, monkeypatch, shape):
    monkeypatch.setattr(measuring, "load_run", None)  # no model
    entries = json.loads((files / "boxes.json").read_text())
    (tmp_path / "m.json").write_text(json.dumps(with_masks(trained_run, entries, shape)))
    expected = rescore(trained_run, tmp_path / "m.json", tmp_path / "expected")
    found = rescore(trained_run, files / "boxes.json", tmp_path / "found", "--masks", shape)
    assert set(SCORES) < set(found["summary"]) and found["summary"] == expected["summary"]
    assert 0.3 < found["summary"]["ABO"] < 1 and found["summary"]["mAP50"] == 1
    assert shape in found["settings"]["masks"] and "masks" not in expected["settings"]
    assert any(f"{shape}" in note and "in place" not in note for note in found["notes"])

    other = "ellipse" if shape == "box" else "box"
    report = rescore(trained_run, tmp_path / "m.json", tmp_path / "both", "--masks", other)
    assert report["summary"]["ABO"] != found["summary"]["ABO"]
    assert any(
        other in note and "in place of those of the file" in note for note in report["notes"]
    )
    assert other in (tmp_path / "both" / "report.md").read_text()


def test_proposals_with_the_true_masks_are_perfect(trained_run, files, tmp_path):
    masks = files / "p.masks.npz"
    report = rescore(trained_run, files / "boxes.json", tmp_path / "found", "--masks", masks)
    assert {name: report["summary"][name] for name in SCORES} == pytest.approx(
        dict.fromkeys(SCORES, 1.0)
    )
    assert "p.masks.npz (imported COCO results file sam.json)" in report["settings"]["masks"]


def test_masks_that_do_not_fit_are_refused(trained_run, files, tmp_path, capsys):
    boxes, masks = files / "boxes.json", files / "p.masks.npz"

    def refused(path, *arguments):
        rescore(trained_run, boxes, tmp_path / "out", "--masks", path, *arguments, status=1)
        assert not (tmp_path / "out").exists()
        return capsys.readouterr().err

    proposals = ProposalSet.load(files / "p.npz")
    moved = dict(zip(proposals.ids, map(proposals.get, proposals.ids), strict=True))
    sizes = {image_id: proposals.size(image_id) for image_id in proposals.ids}
    moved[proposals.ids[0]] = moved[proposals.ids[0]] / 2
    (tmp_path / "p.masks.npz").write_bytes(masks.read_bytes())
    ProposalSet.from_images(sizes, moved, generator="x").save(tmp_path / "p.npz")
    assert "masks of other proposals" in (error := refused(tmp_path / "p.masks.npz"))
    assert "checksum" in error and "--import" in error

    assert "ends in .masks.npz" in refused(files / "p.npz")
    assert "ends in .masks.npz" in refused("boxes")
    one = mask_set(np.ones((1, 4)) * [0, 0, 5, 5])
    one.proposals.save(tmp_path / "one.npz")
    one.save(tmp_path / "one.masks.npz")
    assert "no proposals for 4 of the 4 images" in refused(tmp_path / "one.masks.npz")

    larger = {image_id: (2 * h, 2 * w) for image_id, (h, w) in sizes.items()}
    empty = {image_id: [] for image_id in sizes}
    of_larger = ProposalSet.from_images(larger, empty, generator="x")
    of_larger.save(tmp_path / "large.npz")
    MaskSet.from_images(of_larger, empty, generator="x").save(tmp_path / "large.masks.npz")
    assert "but the image of" in refused(tmp_path / "large.masks.npz")


def test_pseudo_boxes_have_no_masks(trained_run, files, capsys):
    arguments = ["--workdir", str(trained_run.workdir), "--pseudo", str(files / "boxes.json")]
    with pytest.raises(SystemExit):
        evaluate.main([*arguments, "--masks", "box"])
    assert "--pseudo measures boxes alone" in capsys.readouterr().err


# -- a run


def test_masks_of_a_run_of_boxes(trained_run, files, tmp_path):
    folder = measure(trained_run, tmp_path / "run", "--masks", "ellipse", "--coco")
    report = read_report(folder)
    entries = json.loads((folder / "predictions.json").read_text())
    assert len(entries) > 10 and "ellipse" in report["settings"]["masks"]
    records = {
        r.image_id: (r.height, r.width) for r in Voc(root=trained_run.data).images("test").records
    }
    index = json.loads((folder / "predictions.index.json").read_text())
    names = {item["id"]: item["name"] for item in index["images"]}
    for entry in entries[::17]:
        x, y, width, height = entry["bbox"]
        size = records[names[entry["image_id"]]]
        expected = fill_in_loops("ellipse", (x, y, x + width, y + height), size)
        np.testing.assert_array_equal(coco_mask.decode(entry["segmentation"]), expected)
    again = rescore(trained_run, folder / "predictions.json", tmp_path / "again")
    for name in (*SCORES, "mAP50"):
        assert again["summary"][name] == pytest.approx(report["summary"][name])
    retrieved = rescore(
        trained_run, folder / "predictions.json", tmp_path / "mcg", "--masks", files / "p.masks.npz"
    )
    assert retrieved["summary"]["mAP50"] == again["summary"]["mAP50"]
    assert any("in place of those of the file" in note for note in retrieved["notes"])


def test_masks_of_a_run_of_maps(spn_run, tmp_path):
    """Its boxes come of maps; masks of boxes are boxes."""
    folder = measure(spn_run, tmp_path / "run", "--masks", "box", "--coco")
    summary = read_report(folder)["summary"]
    entries = json.loads((folder / "predictions.json").read_text())
    assert entries and {*SCORES, "mAP50", "pointing"} < set(summary)
    for entry in entries:
        assert coco_mask.toBbox(entry["segmentation"]).tolist() == entry["bbox"]


def test_image_scores_have_no_boxes():
    outputs = frozenset({"image_scores"})
    with pytest.raises(ConfigError, match="--masks .*image_scores; leave it out"):
        outputs_with(outputs, MaskBaseline("box"))
    assert outputs_with(outputs, None) == outputs
