"""Splits whose objects cannot be read are measured by what does not need them, and refused where something does."""

import numpy as np
import pytest
from PIL import Image

from tests.data.readers.voc_tree import pixels
from wsod_jax.config import EvalOptions
from wsod_jax.data.readers.image_folder import ImageFolder
from wsod_jax.errors import DataError
from wsod_jax.scoring import AnnotatedImages, all_evaluators, choose_evaluators, score
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
    assert "the objects are not known" in caplog.text
    settings = EvalOptions()
    chosen, _ = choose_evaluators(settings, all_evaluators(settings, 2), outputs, data)
    scores = np.float32([[0.9, 0.2], [0.1, 0.8]])
    results = [ImageResult(i, (8, 8), image_scores=scores[i]) for i in range(2)]
    found = score(results, data, chosen)
    assert found["classification"].summary == {"image mAP": 1.0}


@pytest.mark.parametrize("output", ["boxes", "maps", "masks", None])
def test_boxes_that_are_needed_are_read_strictly(reader, output):
    given = () if output is None else (frozenset({output, "image_scores"}),)
    with pytest.raises(DataError, match="no boxes|no ground truth"):
        AnnotatedImages.read(reader, "val", *given)
