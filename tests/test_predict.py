"""`wsod-jax predict` on a tiny trained run: files written, bad images, messages."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.commands import refused, train
from tests.data.readers.voc_tree import write_voc
from wsod_jax.commands import evaluate, predict, predicting
from wsod_jax.data.proposals.proposal_set import ProposalSet
from wsod_jax.evaluation.formats import index_path, read_index
from wsod_jax.evaluation.result_log import ResultLog
from wsod_jax.runs.predictor import load_run
from wsod_jax.train.checkpoint import load_checkpoint

FAST = ["--set", "flips=(False,)", "--set", "micro_batch=1"]


@pytest.fixture
def images(trained_run, tmp_path):
    """Two readable images, a truncated one, a text file of that suffix, and one in a folder below."""
    folder = tmp_path / "images"
    (folder / "below").mkdir(parents=True)
    source = trained_run.data / "JPEGImages"
    for target in ("000001.jpg", "below/000002.jpg"):
        (folder / target).write_bytes((source / Path(target).name).read_bytes())
    Image.fromarray(np.full((1, 1, 3), 200, np.uint8)).save(folder / "dot.png")
    (folder / "cut.jpg").write_bytes((source / "000003.jpg").read_bytes()[:900])
    (folder / "text.jpg").write_text("no image")
    return folder


def call(trained_run, images, out, *more):
    checkpoint = ["--workdir", str(trained_run.workdir), "--out", str(out)]
    given = [*checkpoint, "--images", *map(str, images), *FAST, *map(str, more)]
    assert predict.main(given) == 0


def refused_call(run, images, out, *more, message, capsys):
    given = ["--workdir", run.workdir, "--out", out, "--images", *images, *FAST, *more]
    refused(predict.main, given, message, capsys)


def test_a_folder_with_bad_images(trained_run, images, tmp_path, capsys):
    out = tmp_path / "out"
    call(trained_run, [images], out)
    printed = capsys.readouterr()
    assert "cut.jpg" in printed.err and "2 images" in printed.err
    assert "min_side=6" in printed.out and "as for the training set" in printed.out
    assert ProposalSet.load(out / "proposals.npz").ids == ("000001", "below/000002", "dot")

    classes = tuple(load_checkpoint(trained_run.workdir).metadata["class_names"])
    index = read_index(out / "predictions.json")
    assert index.class_names == classes
    assert tuple(index.images.values()) == ("000001", "below/000002", "dot")
    sizes = {
        name: Image.open(images / f"{name}.jpg").size for name in ("000001", "below/000002")
    } | {"dot": (1, 1)}
    records = json.loads((out / "predictions.json").read_text())
    assert {record["image_id"] for record in records} == set(sizes)
    for record in records:
        x, y, width, height = record["bbox"]
        limit = sizes[record["image_id"]]
        assert x >= 0 and y >= 0 and width > 0 and height > 0
        assert x + width <= limit[0] + 1e-3 and y + height <= limit[1] + 1e-3
        assert record["category_id"] in index.category_ids and 0 <= record["score"] <= 1

    for path in [out / "sheet.jpg"] + [out / "figures" / f"{name}.jpg" for name in sizes]:
        assert np.asarray(Image.open(path)).std() > 0
    with open(out / "image_scores.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["image", *classes] and [row[0] for row in rows[1:]] == list(sizes)
    assert all(0 < float(score) < 1 for row in rows[1:] for score in row[1:])


@pytest.fixture
def spn_images(images):
    """With one more: a single row of pixels."""
    thin = np.random.default_rng(0).integers(0, 256, (1, 90, 3), np.uint8)
    Image.fromarray(thin).save(images / "thin.png")
    return images


def read_rows(path) -> list[dict]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_maps_of_a_folder_with_bad_images(spn_run, spn_images, tmp_path, capsys):
    out = tmp_path / "out"
    boxes = ["--set", "maps.predicted_thr=0.0", "--set", "maps.boxes=components"]
    call(spn_run, [spn_images], out, *boxes)
    assert "2 images" in capsys.readouterr().err
    names = ["000001", "below/000002", "dot", "thin"]
    sizes = {name: Image.open(next(spn_images.glob(f"{name}.*"))).size for name in names}
    assert sizes["dot"] == (1, 1) and sizes["thin"] == (90, 1)
    index = read_index(out / "predictions.json")
    assert list(index.images.values()) == names
    points = read_rows(out / "points.csv")
    assert len(points) == len(names) * len(index.class_names)  # every score exceeds 0
    for row in points:
        width, height = sizes[row["image"]]
        assert 0 < float(row["x"]) < width and 0 < float(row["y"]) < height
        assert row["predicted"] == "1" and 0 < float(row["score"]) < 1
    records = json.loads((out / "predictions.json").read_text())
    assert {record["image_id"] for record in records} == set(names)
    for record in records:
        x, y, width, height = record["bbox"]
        limit = sizes[record["image_id"]]
        assert x >= 0 and y >= 0 and width > 0 and height > 0
        assert x + width <= limit[0] and y + height <= limit[1]
    assert [row["image"] for row in read_rows(out / "image_scores.csv")] == names
    for path in [out / "sheet.jpg"] + [out / "figures" / f"{name}.jpg" for name in names]:
        assert np.asarray(Image.open(path)).std() > 10
    assert not (out / "proposals.npz").exists()


def test_images_in_which_nothing_is_predicted(spn_run, spn_images, tmp_path, capsys):
    out = tmp_path / "out"
    call(spn_run, [spn_images], out, "--set", "eval.maps.predicted_thr=1.0")
    assert "4 of 4 images" in capsys.readouterr().out
    assert json.loads((out / "predictions.json").read_text()) == []
    points = read_rows(out / "points.csv")  # of the best class, which is drawn
    assert len(points) == 4 and {point["predicted"] for point in points} == {"0"}
    assert len(read_rows(out / "image_scores.csv")) == 4
    assert np.asarray(Image.open(out / "figures" / "000001.jpg")).std() > 10


def test_maps_need_no_proposals(spn_run, images, tmp_path, capsys):
    refused_call(
        spn_run,
        [images],
        tmp_path / "out",
        "--proposals",
        spn_run.proposals,
        message="--proposals ",
        capsys=capsys,
    )
    refused_call(
        spn_run,
        [images],
        tmp_path / "out",
        "--max_boxes",
        3,
        message="--max_boxes ",
        capsys=capsys,
    )
    refused_call(
        spn_run,
        [images],
        tmp_path / "out",
        "--set",
        "nms_thr=0.4",
        message="nms_thr ",
        capsys=capsys,
    )
    refused_call(
        spn_run,
        [images],
        tmp_path / "out",
        "--set",
        "maps.treshold=2",
        message="maps.treshold .*'threshold'",
        capsys=capsys,
    )


def test_given_and_computed_proposals_agree(trained_run, tmp_path):
    names = split_test_ids(trained_run)
    files = [trained_run.data / "JPEGImages" / f"{name}.jpg" for name in names]
    given, computed = tmp_path / "given", tmp_path / "computed"
    call(trained_run, files, given, "--proposals", trained_run.proposals, "--max_figures", 1)
    call(trained_run, files, computed, "--score_thr", 2.0)
    assert (given / "predictions.json").read_text() == (computed / "predictions.json").read_text()
    assert [path.name for path in (given / "figures").iterdir()] == [f"{names[0]}.jpg"]
    assert not (given / "proposals.npz").exists()

    boxless = np.asarray(Image.open(computed / "figures" / f"{names[0]}.jpg"))
    call(trained_run, files, computed)
    boxed = np.asarray(Image.open(computed / "figures" / f"{names[0]}.jpg"))
    assert np.abs(boxed.astype(int) - boxless).max() > 100  # --score_thr 2 draws nothing


def split_test_ids(trained_run):
    ids = (trained_run.data / "ImageSets" / "Main" / "test.txt").read_text().split()
    return ids[:2]


def test_other_images_of_the_same_name_are_noticed(trained_run, images, tmp_path, capsys):
    out = tmp_path / "out"
    call(trained_run, [images / "000001.jpg"], out)
    other = tmp_path / "other" / "000001.jpg"
    other.parent.mkdir()
    other.write_bytes((images / "000001.jpg").read_bytes())
    refused_call(trained_run, [other], out, message="'000001'", capsys=capsys)


def test_messages(trained_run, images, tmp_path, capsys):
    out = tmp_path / "out"
    refused(
        predict.main,
        ["--workdir", "nowhere", "--images", str(images), "--out", str(out)],
        "nowhere.*no checkpoint",
        capsys,
    )
    refused_call(trained_run, [images / "text.jpg"], out, message="no image", capsys=capsys)
    refused_call(trained_run, [images / "cut.jpg"], out, message="can be read", capsys=capsys)
    refused_call(
        trained_run,
        [images / "000001.jpg"],
        out,
        "--proposals",
        "none.npz",
        message="none.npz",
        capsys=capsys,
    )
    refused_call(
        trained_run,
        [images / "dot.png"],
        out,
        "--proposals",
        trained_run.proposals,
        message="proposals.* 1 of the 1 .*'dot'",
        capsys=capsys,
    )
    refused_call(
        trained_run,
        [images / "000001.jpg"],
        out,
        "--set",
        "nms_th=0.4",
        message="'nms_thr'",
        capsys=capsys,
    )
    refused_call(
        trained_run,
        [images / "000001.jpg"],
        out,
        "--set",
        "nms_thr=high",
        message="eval.nms_thr is 'high'",
        capsys=capsys,
    )
    assert not (out / "predictions.json").exists()


def stopping(number, kept):
    """Return `ResultLog.add` for a call that Ctrl-C ends when so many images are predicted; `kept` gets them."""
    add = ResultLog.add

    def adding(log, result, counts):
        if len(kept) == number:
            raise KeyboardInterrupt
        kept.append(result.image_index)
        add(log, result, counts)

    return adding


def test_interrupted_prediction_goes_on(spn_run, spn_images, tmp_path, monkeypatch, capsys):
    straight, out = tmp_path / "straight", tmp_path / "out"
    call(spn_run, [spn_images], straight)
    given = ["--workdir", str(spn_run.workdir), "--images", str(spn_images), *FAST]
    first, second, third = [], [], []
    with monkeypatch.context() as patch:
        patch.setattr(ResultLog, "add", stopping(3, first))
        assert predict.main([*given, "--out", str(out)]) == 130
    assert "run again" in capsys.readouterr().err and not (out / "points.csv").exists()
    shutil.copytree(out, tmp_path / "other")
    with monkeypatch.context() as patch:
        patch.setattr(ResultLog, "add", stopping(None, second))
        assert predict.main([*given, "--out", str(out)]) == 0
    assert len(first) == 3 and sorted(first + second) == [0, 1, 2, 3]
    for name in ("predictions.json", "detections.coco.json", "image_scores.csv", "points.csv"):
        assert (out / name).read_text() == (straight / name).read_text()
    assert not list(out.glob(".*"))
    other = spn_images / "000001.jpg"
    other.write_bytes(other.read_bytes() + b" ")  # another image of the same name
    monkeypatch.setattr(ResultLog, "add", stopping(None, third))
    assert predict.main([*given, "--out", str(tmp_path / "other")]) == 0
    assert sorted(third) == [0, 1, 2, 3]


def test_predictions_are_a_coco_data_set_too(trained_run, images, tmp_path):
    call(trained_run, [images], tmp_path / "out")
    content = json.loads((tmp_path / "out" / "detections.coco.json").read_text())
    assert content["info"] == {"source": "oim"}
    files = ["000001.jpg", "below/000002.jpg", "dot.png"]
    assert [image["file_name"] for image in content["images"]] == files
    names = {image["id"]: Path(image["file_name"]).with_suffix("") for image in content["images"]}
    told = [(str(names[a["image_id"]]), a["bbox"], a["score"]) for a in content["annotations"]]
    records = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert told == [(r["image_id"], r["bbox"], r["score"]) for r in records] and told


def test_a_classifier_writes_scores_only(images, tmp_path, capsys):
    from configs.pretrain_tiny import get_config

    config = get_config()
    objects = {
        f"{name}{n}": ((40, 40), [(name, (5, 5, 30, 30), False)])
        for n in range(2)
        for name in ("cat", "dog")
    }
    config.data.root = str(write_voc(tmp_path / "objects", objects))
    config.train.num_steps, config.train.micro_batch = 1, 4
    config.train.scales = config.eval.scales = (64,)
    config.train.loader = "threads"
    config.optim.warmup_steps = 0
    config.log.tensorboard = False
    train(config, tmp_path / "classifier")
    out = tmp_path / "out"
    predict.main(
        ["--workdir", str(tmp_path / "classifier"), "--images", str(images), "--out", str(out)]
    )
    assert [path.name for path in out.iterdir()] == ["image_scores.csv"]  # and no log of results
    with open(out / "image_scores.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert len(rows) == 4
    for row in rows[1:]:
        assert len(row) == 3 and sum(map(float, row[1:])) == pytest.approx(1, abs=1e-4)
    found = load_run(tmp_path / "classifier").detect(images / "000001.jpg")
    assert found.boxes is found.names is None
    assert [f"{score:.4f}" for score in found.image_scores] == [
        f"{float(x):.4f}" for x in rows[1][1:]
    ]
    run = ["--workdir", str(tmp_path / "classifier"), "--out", str(tmp_path / "evaluated")]
    for option in ("--coco_set", "--voc_server"):
        refused(evaluate.main, [*run, option], f"{option} .*boxes.*image_scores", capsys)
    assert not (tmp_path / "evaluated").exists()


@pytest.mark.slow
def test_as_a_program_without_tensorflow(trained_run, images, tmp_path):
    """Workers are started anew, and import this program: they must find all they need."""
    many = tmp_path / "many"
    many.mkdir()
    for i in range(2 * predicting.IMAGES_PER_WORKER):
        (many / f"{i}.jpg").write_bytes((images / "000001.jpg").read_bytes())
    blocked = (
        "import sys; sys.modules['tensorflow'] = None; import runpy; sys.argv = sys.argv[1:]; "
    )
    blocked += "runpy.run_path(sys.argv[0], run_name='__main__')"
    arguments = ["--workdir", trained_run.workdir, "--images", many, "--out", tmp_path / "out"]
    done = subprocess.run(
        [sys.executable, "-c", blocked, "scripts/predict.py", *map(str, arguments), *FAST],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    meaning = json.loads(index_path(tmp_path / "out" / "predictions.json").read_text())
    numbers = [image["id"] for image in meaning["images"]]
    assert numbers == sorted(range(2 * predicting.IMAGES_PER_WORKER), key=str)
