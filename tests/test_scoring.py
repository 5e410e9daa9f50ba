"""Splits whose objects cannot be read are measured by what does not need them, and refused where something does."""

import numpy as np
import pytest
from PIL import Image

from tests.data.readers.voc_tree import pixels, write_voc, write_xml
from wsod_jax.config.eval_options import EvalOptions
from wsod_jax.data.readers.image_folder import ImageFolder
from wsod_jax.data.readers.voc import Voc
from wsod_jax.errors import DataError
from wsod_jax.runs.annotated_images import AnnotatedImages, left_out_sentences
from wsod_jax.runs.evaluator_choice import all_evaluators, choose_evaluators
from wsod_jax.runs.scoring import score
from wsod_jax.types import ImageResult

XML = "<annotation><size><width>8</width><height>8</height></size></annotation>"


@pytest.fixture(params=["no annotations", "one without"])
def reader(request, tmp_path):
    """Two images of two classes in ImageNet's layout, whose boxes are not all known."""
    for number, name in enumerate(("cat", "dog")):
        folder = tmp_path / "val" / name
        folder.mkdir(parents=True)
        Image.fromarray(pixels(number, 8, 8)).save(folder / f"{number}.png")
    if request.param == "one without":
        folder = tmp_path / "annotations" / "val" / "cat"
        folder.mkdir(parents=True)
        (folder / "0.xml").write_text(XML)
    return ImageFolder(root=tmp_path)


def test_a_classifier_is_measured_without_boxes(reader, caplog):
    outputs = frozenset({"image_scores"})
    data = AnnotatedImages.read(reader, "val", outputs)
    assert not data.has_boxes and data.known() == {"labels"}
    assert "objects" in caplog.text
    settings = EvalOptions()
    chosen, _ = choose_evaluators(settings, all_evaluators(settings, 2), outputs, data)
    scores = np.float32([[0.9, 0.2], [0.1, 0.8]])
    results = [ImageResult(i, (8, 8), image_scores=scores[i]) for i in range(2)]
    found = score(results, data, chosen)
    assert found["classification"].summary == {"classification mAP": 1.0}


@pytest.mark.parametrize("output", ["boxes", "maps", "masks", None])
def test_boxes_that_are_needed_are_read_strictly(reader, output):
    given = () if output is None else (frozenset({output, "image_scores"}),)
    with pytest.raises(DataError, match="no boxes|no ground truth"):
        AnnotatedImages.read(reader, "val", *given)


def test_what_a_split_lost_is_told_before_the_numbers(tmp_path):
    cat = ("cat", (1, 1, 4, 4), False)
    root = write_voc(tmp_path, {f"i{n}": ((8, 8), [cat]) for n in range(40)})
    (root / "JPEGImages" / "i0.jpg").unlink()  # objects known
    (root / "Annotations" / "i1.xml").write_text("<annotation>")  # objects unknown
    write_xml(root, "i2", (8, 20), [cat])  # of another aspect, so unknown
    write_xml(root, "i3", (8, 8), [cat, ("cat", (7, 7, 2, 2), False)])  # one without area
    data = AnnotatedImages.read(Voc(root=root), "trainval")
    assert len(data.images) == 37 and data.images.missing == ("i0", "i1", "i2")
    assert data.image_ids[-1] == "i0" and len(data.objects) == 38
    known, unknown, boxes = left_out_sentences(data, unread=())
    assert "1 of 40 images" in known and "(i0)" in known and "count as missed" in known
    assert "2 of 40 images" in unknown and "(i1, i2)" in unknown and "no number" in unknown
    assert boxes.startswith("1 annotated boxes")
    for number in range(3, 7):
        write_xml(root, f"i{number}", (8, 20), [cat])
    with pytest.raises(DataError, match="6 of 40 images"):
        AnnotatedImages.read(Voc(root=root), "trainval")
