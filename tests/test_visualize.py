"""scripts/visualize.py on a small VOC tree and a plain folder, and its messages."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsod_jax.data.proposals import ProposalSet
from wsod_jax.evals.predictions import write_predictions
from wsod_jax.evals.tables import DetectionTable

SCRIPT = Path(__file__).parents[1] / "scripts" / "visualize.py"
OBJECT = (
    "<object><name>{}</name><difficult>0</difficult><bndbox><xmin>11</xmin><ymin>11</ymin>"
    "<xmax>60</xmax><ymax>50</ymax></bndbox></object>"
)


@pytest.fixture(scope="module")
def visualize():
    spec = importlib.util.spec_from_file_location("visualize", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.fixture
def tree(tmp_path):
    root = tmp_path / "voc"
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    (root / "classes.txt").write_text("cat\ndog\n")
    (root / "ImageSets" / "Main" / "test.txt").write_text("a\nb\n")
    for image_id, name in (("a", "cat"), ("b", "dog")):
        pixels = np.full((80, 100, 3), 90, np.uint8)
        Image.fromarray(pixels).save(root / "JPEGImages" / f"{image_id}.jpg")
        (root / "Annotations" / f"{image_id}.xml").write_text(
            "<annotation><size><width>100</width><height>80</height><depth>3</depth></size>"
            f"{OBJECT.format(name)}</annotation>"
        )
    return root


@pytest.fixture
def predictions(tmp_path):
    table = DetectionTable(
        image_index=[0, 1],
        classes=[0, 0],
        scores=[0.9, 0.8],
        boxes=[[10, 10, 60, 50], [10, 10, 60, 50]],
        num_images=2,
        num_classes=2,
    )
    path = tmp_path / "predictions.json"
    return write_predictions(path, table, image_ids=("a", "b"), class_names=("cat", "dog"))


def test_detections_with_truth(visualize, tree, predictions, tmp_path):
    out = tmp_path / "out"
    arguments = ["detections", "--data", str(tree), "--split", "test", "--out", str(out)]
    assert visualize([*arguments, "--predictions", str(predictions)]) == 0
    names = {path.name for path in out.iterdir()}
    assert names == {"a.png", "b.png", "sheet.png", "precision_recall.png"}
    a, b = (np.asarray(Image.open(out / f"{name}.png")).astype(int) for name in "ab")
    red = (230, 30, 40)
    assert (np.abs(a - red).max(axis=-1) < 12).any()  # a hit
    assert not (np.abs(b - red).max(axis=-1) < 12).any()  # a cat where the dog is


def test_detections_in_a_plain_folder(visualize, tree, predictions, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["detections", "--predictions", str(predictions), "--out", str(out)]
    assert visualize([*arguments, "--data", str(tree / "JPEGImages"), "--images", "b"]) == 0
    assert {path.name for path in out.iterdir()} == {"b.png", "sheet.png"}
    assert visualize([*arguments, "--data", str(tree / "JPEGImages"), "--images", "zz"]) == 2
    assert "'zz'" in capsys.readouterr().err


def test_proposals(visualize, tree, tmp_path):
    path = tmp_path / "p.npz"
    proposals = ProposalSet(
        ids=("a", "b"),
        sizes=np.array([[80, 100]] * 2, np.int32),
        offsets=np.array([0, 2, 2]),
        boxes=np.array([[10, 10, 60, 52], [0, 0, 30, 30]], np.float32),
    )
    proposals.save(path)
    out = tmp_path / "out"
    arguments = ["proposals", "--data", str(tree), "--split", "test", "--out", str(out)]
    assert visualize([*arguments, "--proposals", str(path)]) == 0
    assert {path.name for path in out.iterdir()} == {"a.png", "b.png", "sheet.png"}


def test_curves_and_instances(visualize, tree, tmp_path, capsys):
    for run, rate in (("one", 1.0), ("two", 2.0)):
        (tmp_path / run).mkdir()
        lines = [json.dumps({"step": s, "loss": rate / (1 + s), "lr": 0.1}) for s in range(5)]
        (tmp_path / run / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 5, "lo')
    out = tmp_path / "curves.png"
    runs = [str(tmp_path / run) for run in ("one", "two")]
    assert visualize(["curves", *runs, "--names", "loss", "lr", "--out", str(out)]) == 0
    assert out.exists()
    assert visualize(["curves", str(tree), "--out", str(out)]) == 2
    assert "train.py" in capsys.readouterr().err
    out = tmp_path / "instances.png"
    assert visualize(["instances", "--data", str(tree), "--split", "test", "--out", str(out)]) == 0
    assert out.exists()


def test_missing_split_is_named(visualize, tree, predictions, tmp_path, capsys):
    arguments = ["detections", "--predictions", str(predictions), "--out", str(tmp_path / "o")]
    assert visualize([*arguments, "--data", str(tree)]) == 2
    assert "test" in capsys.readouterr().err
    assert visualize([*arguments, "--data", str(tree / "JPEGImages"), "--split", "test"]) == 2


def test_help_shows_examples(visualize, capsys):
    with pytest.raises(SystemExit) as stop:
        visualize(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for name in ("proposals", "detections", "curves", "instances"):
        assert f"visualize.py {name}" in text
