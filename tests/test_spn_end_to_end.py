"""Whole runs of the scripts with SPN: trained, stopped and resumed, measured beside its baselines, joined."""

import csv
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from tests.commands import refused, train
from tests.data.readers.voc_tree import write_voc
from tests.oracles import localization as oracle
from tests.test_end_to_end import labels_only, losses, read_report
from wsod_jax import build
from wsod_jax.analysis.baselines import COLUMNS
from wsod_jax.commands import evaluate
from wsod_jax.data.readers.voc import Voc
from wsod_jax.errors import ConfigError, DataError
from wsod_jax.runs.annotated_images import truth_table
from wsod_jax.runs.predictor import load_run
from wsod_jax.train.checkpoint import checkpoint_steps, load_checkpoint, write_manifest
from wsod_jax.train.weights import save_weights


@pytest.fixture
def config(spn_run):
    """The configuration of the shared run, to change."""
    return spn_run.config.copy_and_resolve_references()


def measure(run, out: Path, *arguments, figures=0) -> dict:
    """Evaluate the last checkpoint; return the report."""
    given = ["--workdir", str(run), "--out", str(out), "--figures", str(figures)]
    evaluate.main([*given, *map(str, arguments)])
    return read_report(out / "4")


def rows_of(report: dict) -> dict[str, dict]:
    """Return the table of baselines as row -> column -> value."""
    (table,) = report["tables"]
    assert table["head"] == ["", *COLUMNS]
    return {name: dict(zip(COLUMNS, values, strict=True)) for name, *values in table["rows"]}


# -- training


def test_run_trains_every_layer_and_logs_how_far_the_map_is_from_uniform(spn_run):
    logged = losses(spn_run.workdir)
    assert list(logged) == [1, 2, 3, 4]
    for values in logged.values():
        assert values["loss"] == values["loss/classification"] > 0
        assert values["proposal_peak"] > 1 and 0 <= values["top1"] <= 1
    first, last = (load_checkpoint(spn_run.workdir, step=step).params for step in (0, 4))
    assert set(first) == {"backbone", "extra", "head"}
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), first, last)
    assert all(jax.tree.leaves(moved)), moved


def test_resumed_equals_straight_and_how_maps_are_read_may_change(spn_run, config, tmp_path):
    config.train.num_steps = 2
    train(config, tmp_path)
    assert checkpoint_steps(tmp_path) == [0, 2]
    config.train.num_steps, config.eval.maps.threshold = 4, 0.5
    train(config, tmp_path)
    for step in (0, 2, 4):
        straight, resumed = (
            load_checkpoint(w, step=step).params for w in (spn_run.workdir, tmp_path)
        )
        jax.tree.map(np.testing.assert_array_equal, straight, resumed)
    assert losses(tmp_path) == losses(spn_run.workdir)
    config.method.soft_proposal.solver = "uniform"
    with pytest.raises(ConfigError, match="soft_proposal.solver: 'walk' there, 'uniform' now"):
        train(config, tmp_path)


def test_labels_must_suit_the_activation(config, tmp_path, caplog):
    config.train.num_steps = 0
    config.method.activation = "softmax"
    with pytest.raises(DataError, match="softmax .*activation='sigmoid'"):
        train(config, tmp_path / "many")
    assert not (tmp_path / "many").exists()
    objects = {
        f"{n}": ((40, 40), [(n[:3], (5, 5, 30, 30), False)])
        for n in ("cat1", "cat2", "dog1", "dog2")
    }
    config.data.root = str(write_voc(tmp_path / "single", objects))
    train(config, tmp_path / "one")
    assert "activation" not in caplog.text
    config.method.activation = "sigmoid"
    train(config, tmp_path / "several")
    assert "config.method.activation='softmax'" in caplog.text


def test_weights_of_another_backbone_are_refused(config, tmp_path):
    config.train.init_from = (str(tmp_path / "weights.npz"),)
    other = build.read_config(config).backbone.clone(preprocessing="caffe").description
    kernel = np.zeros((3, 3, 3, 16), np.float32)
    save_weights(
        config.train.init_from[0], {"conv1_1": {"kernel": kernel}}, other | {"source": "a test"}
    )
    with pytest.raises(DataError, match="preprocessing .*'caffe'.*'torch'"):
        train(config, tmp_path / "run")
    assert not checkpoint_steps(tmp_path / "run")


def test_layer_to_insert_after_must_exist(config, tmp_path):
    config.method.insert_after = "conv5_3"
    with pytest.raises(ConfigError, match="insert_after.*unit_mean"):
        train(config, tmp_path / "run")
    config.method.soft_proposal.unit_mean = True
    with pytest.raises(ConfigError, match="'conv5_3'.*TinyNet.*conv4_2"):
        train(config, tmp_path / "run")


# -- evaluation


@pytest.fixture(scope="module")
def evaluated(spn_run, tmp_path_factory):
    """Every checkpoint of the shared run, measured beside all baselines."""
    out = tmp_path_factory.mktemp("evaluation")
    energy = ["--energy_of", str(spn_run.proposals)]
    arguments = ["--workdir", str(spn_run.workdir), "--out", str(out), "--all_steps"]
    evaluate.main([*arguments, "--compare", *energy, "--figures", "2"])
    return out


@pytest.fixture(scope="module")
def truth(spn_run):
    """(objects, sizes) of the test split, as the oracles take them."""
    reader = build.read_config(spn_run.config).data
    images = reader.images("test")
    table = truth_table(images, reader.annotated_boxes("test"))
    objects = zip(
        table.image_index, table.classes, table.boxes.tolist(), table.difficult, strict=True
    )
    return list(objects), [(record.height, record.width) for record in images.records], images


def share_pointed_at(points, truth) -> float:
    objects, sizes, images = truth
    values, _, _ = oracle.pointing_accuracy(
        points, objects, len(sizes), len(images.class_names), 15.0
    )
    return float(np.nanmean(values))


def test_every_checkpoint_is_measured(evaluated):
    history = json.loads((evaluated / "history.json").read_text())
    assert list(history) == ["0", "2", "4"] and (evaluated / "curves.png").stat().st_size > 1000
    names = {
        "classification mAP",
        "pointing",
        "pointing AP",
        "CorLoc",
        "CorLoc any",
        "energy",
        "mAP50",
    }
    for step, summary in history.items():
        report = read_report(evaluated / step)
        assert names <= set(summary) and {"pointing difficult", *names} <= set(report["summary"])
        assert all(0 <= summary[name] <= 1 for name in names)
        assert summary["CorLoc"] <= summary["CorLoc any"]  # the box around all can only be beaten
        assert report["settings"]["test"]["maps"]["pointing_px"] == 15.0
        assert report["settings"]["method"]["soft_proposal"]["epsilon_factor"] == 0.15  # a default
        assert "pointing" in (evaluated / step / "report.md").read_text()
        for name in ("maps.png", "detections.png"):
            assert np.ptp(np.asarray(Image.open(evaluated / step / name))) > 100
        assert len(list((evaluated / step / "maps").iterdir())) == 2
    assert history["0"]["energy"] != history["4"]["energy"]


def test_table_of_baselines(evaluated, spn_run, truth):
    report = read_report(evaluated / "4")
    rows = rows_of(report)
    tested, stationary, uniform, center, grad, proposals = rows.values()
    assert list(rows)[0] == "M of the walk: as tested"
    assert list(rows)[-1] == "proposals of proposals.npz"
    assert tested == {name: report["summary"][name] for name in COLUMNS}
    assert set(stationary) == set(uniform) == set(COLUMNS)
    assert len({row["energy"] for row in (tested, stationary, uniform, proposals)}) == 4
    objects, sizes, _ = truth
    covered = [
        oracle.union_area([box for i, _, box, _ in objects if i == image], *size) / np.prod(size)
        for image, size in enumerate(sizes)
    ]
    assert uniform["energy"] == pytest.approx(np.mean(covered), rel=1e-5)
    middle = [[(w / 2, h / 2)] * 99 for h, w in sizes]
    assert center["pointing"] == pytest.approx(share_pointed_at(middle, truth))
    for row in (center, grad):
        assert {name for name, value in row.items() if value is not None} <= {
            "pointing",
            "pointing difficult",
        }
        assert 0 <= row["pointing"] <= 1
    assert [name for name, value in proposals.items() if value is not None] == ["energy"]
    text = (evaluated / "4" / "report.md").read_text()
    assert all(name in text for name in rows)


def points_of(folder: Path, images) -> list[list[tuple[float, float]]]:
    """Return points.csv as image -> class -> (x, y), off the image where there is none."""
    points = [[(-1e9, -1e9)] * len(images.class_names) for _ in images.records]
    with open(folder / "points.csv", newline="") as file:
        for row in csv.DictReader(file):
            image = images.image_ids.index(row["image"])
            place = float(row["x"]), float(row["y"])
            points[image][images.class_names.index(row["class"])] = place
    return points


def test_points_written_are_those_measured(evaluated, truth):
    expected = share_pointed_at(points_of(evaluated / "4", truth[2]), truth)
    assert read_report(evaluated / "4")["summary"]["pointing"] == pytest.approx(expected)


def test_another_proposal_map_at_test(evaluated, spn_run, tmp_path):
    """--set method.soft_proposal.solver tests another network than was trained, the one of the table."""
    report = measure(spn_run.workdir, tmp_path, "--set", "method.soft_proposal.solver=uniform")
    expected = rows_of(read_report(evaluated / "4"))["M uniform (CAM)"]
    found = {name: report["summary"][name] for name in COLUMNS}
    assert found == pytest.approx(expected)
    assert report["settings"]["method"]["soft_proposal"]["solver"] == "uniform"
    assert report["settings"]["changes"] == ["method.soft_proposal.solver=uniform"]
    assert "soft_proposal.solver` | `uniform" in (tmp_path / "4" / "report.md").read_text()
    assert load_run(spn_run.workdir).method.soft_proposal.solver == "walk"  # as it was trained


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "maps.treshold=2"], "maps.treshold .*'threshold'"),
        (
            ["--set", "method.soft_proposal.solver=cam"],
            "soft_proposal.solver is 'cam'.*'walk'",
        ),
        (["--set", "eval.maps.nms_thr=7"], "maps.nms_thr is 7"),
        (["--set", "method.soft_proposal.num_steps=3"], "num_steps .*trained run"),
        (["--set", "localization.threshold=2"], "localization.threshold .*eval.maps.threshold"),
        (["--workdir", "nowhere"], "nowhere"),
        (["--energy_of", "nowhere.npz"], "nowhere.npz"),
    ],
)
def test_evaluation_names_what_is_wrong(spn_run, tmp_path, capsys, arguments, message):
    given = ["--workdir", spn_run.workdir, "--out", tmp_path, *arguments]
    refused(evaluate.main, given, message, capsys)


BOXES = ["--set", "maps.boxes=components", "--set", "maps.predicted_thr=0.0"]


def test_together_with_itself_changes_no_box(spn_run, tmp_path):
    found = {}
    for count in (0, 1, 2):
        others = ["--workdir", *[spn_run.workdir] * count] if count else []
        report = measure(spn_run.workdir, tmp_path / str(count), *others, *BOXES)
        boxes = json.loads((tmp_path / str(count) / "4" / "predictions.json").read_text())
        found[count] = boxes, {name: report["summary"][name] for name in COLUMNS}
    alone, once, twice = (found[count][0] for count in (0, 1, 2))
    assert once == twice and 0 < len(once) <= len(alone)
    kinds = {(box["image_id"], box["category_id"], *box["bbox"]) for box in alone}
    assert {(box["image_id"], box["category_id"], *box["bbox"]) for box in once} <= kinds
    assert all(box["score"] > 0 for box in once)
    assert found[1][1] == found[2][1]
    for name in set(COLUMNS) - {"CorLoc any"}:
        assert found[1][1][name] == found[0][1][name]


def test_table_of_joined_runs_joins_the_baselines_too(spn_run, tmp_path):
    others = ["--workdir", spn_run.workdir]
    rows = rows_of(measure(spn_run.workdir, tmp_path / "a", *others, "--compare"))
    uniform = ["--set", "method.soft_proposal.solver=uniform"]
    copy = tmp_path / "run"
    shutil.copytree(spn_run.workdir, copy)
    edit_metadata(copy, '"solver": "walk"', '"solver": "uniform"')
    joined = measure(spn_run.workdir, tmp_path / "b", "--workdir", copy, *uniform)
    expected = {name: joined["summary"][name] for name in COLUMNS}
    assert rows["M uniform (CAM)"] == pytest.approx(expected)


def edit_metadata(run: Path, old: str, new: str) -> None:
    """Change what the last checkpoint of a copied run says of itself."""
    metadata = run / "checkpoints" / "4" / "metadata" / "metadata"
    content = metadata.read_text()
    assert old in content
    metadata.write_text(content.replace(old, new))
    write_manifest(metadata.parents[1])


def test_runs_that_cannot_be_joined(spn_run, trained_run, tmp_path, capsys):
    shutil.copytree(spn_run.workdir, tmp_path / "run")
    name = load_checkpoint(spn_run.workdir).metadata["class_names"][0]
    edit_metadata(tmp_path / "run", json.dumps(name), '"unicorn"')
    joined = ["--workdir", spn_run.workdir, "--out", tmp_path / "o", "--workdir"]
    refused(evaluate.main, [*joined, tmp_path / "run"], "unicorn", capsys)
    message = "--workdir .*'oim'"
    refused(evaluate.main, [*joined, trained_run.workdir], message, capsys)
    boxes = ["--workdir", trained_run.workdir, "--out", tmp_path / "o"]
    for option in (["--compare"], ["--energy_of", "x.npz"], ["--workdir", spn_run.workdir]):
        message = f"{option[0]} .*maps.*'oim'"
        refused(evaluate.main, [*boxes, *option], message, capsys)


def test_image_that_cannot_be_read_is_missed(evaluated, spn_run, tmp_path, truth):
    """One in either split breaks off after its header, so that only decoding finds out."""
    data = Path(shutil.copytree(spn_run.data, tmp_path / "data"))
    broken = [Voc(root=data).images(split).records[0] for split in ("test", "trainval")]
    for record in broken:
        record.path.write_bytes(record.path.read_bytes()[: record.path.stat().st_size // 2])
    report = measure(
        spn_run.workdir, tmp_path / "o", "--set", f"data.root={data}", "--compare", figures=2
    )
    summary, rows = report["summary"], rows_of(report)
    for record, total in zip(broken, (4, 8), strict=True):
        told = [text for text in report["left_out"] if f"({record.image_id})" in text]
        assert len(told) == 1 and f"1 of {total} images of" in told[0]
    points = points_of(evaluated / "4", truth[2])  # of the same weights and the whole files
    points[0] = [(-1e9, -1e9)] * len(points[0])
    assert points_of(tmp_path / "o" / "4", truth[2]) == points
    assert summary["pointing"] == pytest.approx(share_pointed_at(points, truth))
    assert summary["CorLoc any"] < 1 and set(rows_of(read_report(evaluated / "4"))) > set(rows)
    assert len(rows) == 5 and all(row["pointing"] is not None for row in rows.values())
    found = json.loads((tmp_path / "o" / "4" / "predictions.json").read_text())
    assert broken[0].image_id not in {entry["image_id"] for entry in found}
    assert len(list((tmp_path / "o" / "4" / "maps").iterdir())) == 1  # of two asked for


def test_split_without_boxes_is_predicted_and_not_measured(spn_run, tmp_path):
    data = Path(shutil.copytree(spn_run.data, tmp_path / "data"))
    shutil.rmtree(data / "Annotations")
    report = measure(
        spn_run.workdir,
        tmp_path / "o",
        "--set",
        f"data.root={data}",
        "--compare",
        *BOXES,
        figures=1,
    )
    assert set(report["summary"]) == {"seconds_per_image"} and not report["tables"]
    assert (
        sum("no boxes" in note for note in report["notes"]) == 4
    )  # boxes, points, CorLoc, baselines
    assert json.loads((tmp_path / "o" / "4" / "predictions.json").read_text())
    assert (tmp_path / "o" / "4" / "maps.png").exists()


def test_labels_alone_train_the_same_and_only_classes_are_measured(spn_run, config, tmp_path):
    labels_only(spn_run, config, tmp_path)
    train(config, tmp_path / "run")
    assert losses(tmp_path / "run") == losses(spn_run.workdir)
    report = measure(tmp_path / "run", tmp_path / "o")
    assert set(report["summary"]) == {"seconds_per_image", "classification mAP"}
    assert (tmp_path / "o" / "4" / "predictions.json").exists()


def test_views_are_averaged_or_kept_apart(spn_run, tmp_path):
    """Two scales and both orientations; `union` gives every view's components to CorLoc any."""
    views = ["--set", "scales=(64,96)", "--set", "flips=(False,True)"]
    mean = measure(spn_run.workdir, tmp_path / "a", *views, *BOXES)["summary"]
    union = measure(spn_run.workdir, tmp_path / "b", *views, *BOXES, "--set", "merge=union")[
        "summary"
    ]
    assert {name for name in mean if mean[name] != union[name]} <= {
        "CorLoc any",
        "mAP50",
        "seconds_per_image",
    }
    together = components_with(
        spn_run.workdir, "scales=(64,96)", "flips=(False,True)", "merge=union"
    )
    alone = [
        components_with(spn_run.workdir, f"scales={scale}", f"flips={flip}")
        for scale in (64, 96)
        for flip in (False, True)
    ]
    assert len(together) == sum(map(len, alone)) > 0
    assert sorted(together) == sorted(score for one in alone for score in one)


def components_with(workdir, *changes):
    """Return the scores of all components of all classes of the test images, with changed settings."""
    kept = [
        "maps.predicted_thr=0.0",
        "maps.nms_thr=1.0",
        "maps.min_side_px=0.0",
    ]  # none is left out
    predictor = load_run(workdir, changes=[*changes, *kept])
    scores = []
    for result in predictor.predict(predictor.config.data.images("test")):
        found = [result.maps.components(int(c))[1] for c in result.maps.classes]
        scores += [float(score) for score in np.concatenate(found) if score > 0]
    return scores
