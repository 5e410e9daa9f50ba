"""`wsod-jax visualize` on a small VOC tree, a plain folder and a tiny trained run, and its messages."""

import importlib.util
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from tests.commands import refused
from wsod_jax.analysis.mining import MiningRun
from wsod_jax.analysis.opened_run import OpenedRun
from wsod_jax.analysis.quality import pseudo_quality
from wsod_jax.data.proposals.proposal_set import ProposalSet
from wsod_jax.data.readers.voc import Voc
from wsod_jax.evaluation.formats import write_results
from wsod_jax.ops.boxes import pairwise_iou
from wsod_jax.train.checkpoint import write_manifest
from wsod_jax.types import ImageResult

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
def predictions(tree, tmp_path):
    results = [
        ImageResult(
            image_index=index,
            size=(80, 100),
            boxes=np.array([[10, 10, 60, 50]], np.float32),
            scores=np.array([score], np.float32),
            classes=np.array([0], np.int32),
        )
        for index, score in enumerate((0.9, 0.8))
    ]
    return write_results(tmp_path / "predictions.json", results, Voc(root=tree).images("test"))


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
    assert visualize([*arguments, "--data", str(tree / "JPEGImages"), "--images", "zz"]) == 1
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
    assert (
        visualize(["curves", "--workdir", *runs, "--names", "loss", "lr", "--out", str(out)]) == 0
    )
    assert out.exists()
    assert visualize(["curves", "--workdir", str(tree), "--out", str(out)]) == 1
    assert "metrics.jsonl" in capsys.readouterr().err
    out = tmp_path / "instances.png"
    assert visualize(["instances", "--data", str(tree), "--split", "test", "--out", str(out)]) == 0
    assert out.exists()


def test_missing_split_is_named(visualize, tree, predictions, tmp_path, capsys):
    arguments = ["detections", "--predictions", str(predictions), "--out", str(tmp_path / "o")]
    assert visualize([*arguments, "--data", str(tree)]) == 1
    assert "test" in capsys.readouterr().err
    assert visualize([*arguments, "--data", str(tree / "JPEGImages"), "--split", "test"]) == 1


def test_help_shows_examples(visualize, capsys):
    with pytest.raises(SystemExit) as stop:
        visualize(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for name in (
        "proposals",
        "detections",
        "curves",
        "instances",
        "pseudo",
        "graphs",
        "objectness",
    ):
        assert f"visualize {name}" in text


@pytest.fixture(scope="module")
def mining_run(trained_run):
    return MiningRun.open(trained_run.workdir)


def changed_run(trained_run, folder, change):
    """Return a copy of the run whose newest checkpoint tells another story."""
    shutil.copytree(trained_run.workdir / "checkpoints" / "4", folder / "checkpoints" / "4")
    path = folder / "checkpoints" / "4" / "metadata" / "metadata"
    metadata = json.loads(path.read_text())
    change(metadata)
    path.write_text(json.dumps(metadata))
    write_manifest(folder / "checkpoints" / "4")
    return folder


def test_mining_can_be_told_where_files_lie_and_nothing_else(
    visualize, trained_run, tmp_path, capsys
):
    run = ["pseudo", "--workdir", str(trained_run.workdir), "--out", str(tmp_path)]
    assert visualize([*run, "--set", "proposals.path=moved.npz"]) == 1
    assert "moved.npz" in capsys.readouterr().err
    refused(visualize, [*run, "--set", "nms_thr=0.4"], "'nms_thr=0.4'.*data.root", capsys)


def has_color(path, color):
    return bool((np.abs(np.asarray(Image.open(path)).astype(int) - color).max(axis=-1) < 8).any())


def test_mined_boxes_are_those_of_the_training_step(mining_run):
    positions = [5, 0]
    mined = mining_run.mine(positions)
    assert sorted(mined) == [0, 5]
    batches = mining_run.data.fixed_batches(6)
    batch = next(batch for batch in batches if batch.image_index[0] == 5)
    key = jax.random.fold_in(jax.random.key(mining_run.config.seed), mining_run.step)
    loss = jax.jit(mining_run.method.loss)(mining_run.params, {}, batch, key, np.int32(4))
    expected = jax.tree.map(lambda x: np.asarray(x[0]), loss.pseudo)
    for found, wanted in zip(*map(jax.tree.leaves, (mined[5].mined.pseudo, expected)), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    record = mining_run.data.image_set.records[5]
    boxes = mined[5].original(mined[5].boxes[mined[5].mask])
    assert boxes.min() >= 0 and (boxes.max(axis=0) <= [record.width + 1e-3] * 4).all()


def test_class_graphs_against_plain_distances(mining_run):
    images = mining_run.data.image_set
    mined = mining_run.mine(range(len(images)))
    num_nodes = num_rejected = 0
    for index, image in mined.items():
        for label in np.flatnonzero(images.labels[index] == 1):
            for stage in range(image.num_stages):
                graph = mining_run.class_graph(image, stage, label)
                features = image.features.astype(np.float64)
                distances = np.linalg.norm(features - features[graph.core], axis=1)
                iou = pairwise_iou(image.boxes, image.boxes)
                near = np.flatnonzero(image.mask & (iou[graph.core] >= 0.5))
                assert set(graph.neighbors) == set(near) - {graph.core}
                assert graph.d_avg == pytest.approx(distances[near].mean(), rel=1e-3, abs=1e-6)
                assert graph.limit == pytest.approx(2 * graph.d_avg)
                assert (distances[graph.nodes] < graph.limit + 1e-4).all()
                assert (distances[graph.rejected] > graph.limit - 1e-4).all()
                assert not (iou[graph.core][[*graph.nodes, *graph.rejected]] > 1e-6).any()
                assert not (iou[np.ix_(graph.nodes, graph.rejected)] > 1e-6).any()
                num_nodes += len(graph.nodes)
                num_rejected += len(graph.rejected)
    assert num_nodes > 0 and num_rejected > 0
    absent = int(np.flatnonzero(images.labels[0] != 1)[0])
    assert mining_run.class_graph(mined[0], 0, absent) is None


def test_pseudo_and_graphs(visualize, trained_run, tmp_path, capsys):
    core, truth = (40, 110, 255), (0, 190, 110)
    arguments = ["--workdir", str(trained_run.workdir), "--images", "000001", "000004"]
    assert visualize(["pseudo", *arguments, "--out", str(tmp_path / "a")]) == 0
    assert visualize(["pseudo", *arguments, "--truth", "--out", str(tmp_path / "b")]) == 0
    step = ["--step", "2", "--out", str(tmp_path / "c")]
    assert visualize(["graphs", *arguments, *step]) == 0
    assert "alpha 5" in capsys.readouterr().out  # 2 from step 4 on
    for folder in "abc":
        names = {path.name for path in (tmp_path / folder).iterdir()}
        assert names == {"000001.png", "000004.png", "sheet.png"}
        assert has_color(tmp_path / folder / "000001.png", core)
    assert not has_color(tmp_path / "a" / "000001.png", truth)
    assert has_color(tmp_path / "b" / "000001.png", truth)


def test_quality_of_what_was_mined(visualize, mining_run, trained_run, capsys):
    positions = [5, 0, 3]
    images = mining_run.data.image_set
    truth = mining_run.objects()
    hits = mined_boxes = 0
    for position, image in mining_run.mine(positions).items():
        objects = truth.boxes[images.image_ids[position]]
        pseudo = jax.tree.map(lambda x: x[-1], image.mined.pseudo)
        for row in np.flatnonzero(pseudo.mask & pseudo.is_seed):
            own = objects.boxes[objects.classes == pseudo.classes[row]]
            hits += pairwise_iou(own, image.original(pseudo.boxes[row][None])).max() > 0.5
            mined_boxes += 1
    quality = pseudo_quality(mining_run, positions)["cores"]
    assert quality.precision == pytest.approx(hits / mined_boxes)
    assert quality.boxes_per_image == pytest.approx(mined_boxes / 3)

    workdir = str(trained_run.workdir)
    assert visualize(["quality", "--workdir", workdir, "--steps", "2", "4", "--num", "3"]) == 0
    head, _, *rows = capsys.readouterr().out.splitlines()
    assert head.count("precision") == 2 and [row.split(" | ")[0] for row in rows] == [
        f"| {workdir}, {step}" for step in (2, 4)
    ]


def test_objectness(visualize, trained_run, tmp_path, capsys):
    workdir, out = str(trained_run.workdir), ["--num", "2", "--out", str(tmp_path / "out")]
    assert OpenedRun.open(workdir, "boxes").steps() == [0, 2, 4]
    assert visualize(["objectness", "--workdir", workdir, workdir, "--steps", "0", "4", *out]) == 0
    assert "at steps [0, 4]" in capsys.readouterr().out
    two = np.asarray(Image.open(tmp_path / "out" / "000001.png")).shape
    one_run = ["objectness", "--workdir", workdir, *out, "--class", "fish", "--split", "test"]
    assert visualize([*one_run, "--set", "flips=(False,)"]) == 0
    one = np.asarray(Image.open(tmp_path / "out" / "000009.png")).shape
    assert two[0] > 1.5 * one[0] and one[1] > two[1]  # two rows of three; one row of four
    assert visualize([*one_run, "--class", "fishes"]) == 1
    assert visualize([*one_run, "--steps", "3"]) == 1
    assert visualize(["objectness", "--workdir", str(tmp_path), *out]) == 1
    messages = capsys.readouterr().err
    for part in ("'fishes'", "step 3", "no checkpoint"):
        assert part in messages


@pytest.mark.parametrize(
    ("command", "change", "message"),
    [
        ("pseudo", lambda m: m["class_names"].reverse(), "trained for"),
        ("graphs", lambda m: m["config"].update(method={"name": "oicr"}), "OIM"),
        (
            "pseudo",
            lambda m: (m.update(method="wsddn"), m["config"].update(method={"name": "wsddn"})),
            "'wsddn'",
        ),
    ],
)
def test_runs_that_do_not_fit(visualize, trained_run, tmp_path, capsys, command, change, message):
    folder = changed_run(trained_run, tmp_path / "run", change)
    assert visualize([command, "--workdir", str(folder), "--out", str(tmp_path / "out")]) == 1
    assert message in capsys.readouterr().err
