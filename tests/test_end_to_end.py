"""Whole runs of the scripts on a tiny synthetic set: stop and go on, measure, refuse what does not belong."""

import csv
import errno
import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from absl import logging
from PIL import Image

import wsod_jax.train.checkpoint
from tests.commands import refused, train
from wsod_jax import build
from wsod_jax.commands import evaluate, measuring
from wsod_jax.commands import train as script
from wsod_jax.data.images import read_image
from wsod_jax.data.proposals.proposal_set import ProposalSet
from wsod_jax.data.readers.voc import Voc
from wsod_jax.errors import ConfigError, DataError, NonFiniteError
from wsod_jax.evaluation import image_evaluators
from wsod_jax.evaluation.result_log import ResultLog
from wsod_jax.runs import training as runs
from wsod_jax.runs.hooks import describe_schedule
from wsod_jax.runs.predictor import load_run
from wsod_jax.train.checkpoint import checkpoint_steps, load_checkpoint, write_manifest
from wsod_jax.train.logging import JsonlWriter, read_jsonl
from wsod_jax.train.loop import Interrupted
from wsod_jax.train.sharding import make_mesh

ROOT = Path(__file__).resolve().parents[1]
TIMES = {"images_per_s", "input_wait", "step_s"}  # differ from run to run


@pytest.fixture(autouse=True)
def quiet():
    logging.set_verbosity(logging.WARNING)


@pytest.fixture
def config(trained_run):
    """The configuration of the shared run, to change."""
    return trained_run.config.copy_and_resolve_references()


def losses(workdir) -> dict[int, dict]:
    """Return step -> everything logged that depends on the computation alone."""
    entries = read_jsonl(workdir / "metrics.jsonl")
    return {e["step"]: {k: v for k, v in e.items() if k not in TIMES} for e in entries}


def weights(workdir, step=None):
    return load_checkpoint(workdir, step=step).params


def assert_same_bits(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


# -- training


def test_run_learns_something_and_logs_it(trained_run):
    assert checkpoint_steps(trained_run.workdir) == [0, 2, 4]
    logged = losses(trained_run.workdir)
    assert list(logged) == [1, 2, 3, 4]
    stages = {"loss/mil", "loss/refine_1", "loss/refine_2", "loss/refine_3"}
    for values in logged.values():
        assert stages | {"loss", "lr", "pseudo_boxes", "positives", "nodes"} <= set(values)
        assert values["loss"] == pytest.approx(sum(values[name] for name in stages), rel=1e-5)
        assert values["pseudo_boxes"] >= 1 and values["proposals"] > 1
    first, last = weights(trained_run.workdir, 0), weights(trained_run.workdir, 4)
    frozen = trained_run.config.backbone.frozen
    for layer, before in first.pop("backbone").items():
        moved = np.any(before["kernel"] != last["backbone"][layer]["kernel"])
        assert moved == (not layer.startswith(frozen)), layer
    for part, before in first.items():
        assert any(
            np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (before, last[part])), strict=True)
        )


def test_pictures_of_training_on_several_devices(trained_run):
    """One image at a time cannot be split over the devices that the run trains on."""
    names = sorted(path.name for path in (trained_run.workdir / "figures").iterdir())
    assert [name[:6] for name in names] == ["000002", "000004"]
    assert len({name[6:] for name in names}) == 1
    picture = read_image(trained_run.workdir / "figures" / names[-1])
    assert picture.std() > 10  # not a blank sheet


class StopsAt(JsonlWriter):
    """Asks its own process to stop while the second update is under way."""

    def write(self, step, scalars):
        super().write(step, scalars)
        if step == 1:
            os.kill(os.getpid(), signal.SIGTERM)


def test_stopped_twice_and_resumed_equals_straight(
    trained_run, config, tmp_path, monkeypatch, capsys
):
    """A full disk at the first checkpoint, then SIGTERM, then a last resumption: the same bits."""
    # So that the checkpoint of step 2 is due to the signal:
    config.log.checkpoint_interval = config.log.keep_period = 100
    with monkeypatch.context() as patch:
        patch.setattr(runs, "JsonlWriter", StopsAt)
        patch.setattr(wsod_jax.train.checkpoint, "write_manifest", manifest_but_for_step(2))
        with pytest.raises(OSError, match="step 2 .*disk.*step 0"):
            train(config, tmp_path)
    assert "input: {'images': " in "".join(capsys.readouterr())
    assert checkpoint_steps(tmp_path) == [0]
    with monkeypatch.context() as patch:
        patch.setattr(runs, "JsonlWriter", StopsAt)
        with pytest.raises(Interrupted, match="0") as stopped:
            train(config, tmp_path)
    assert re.search("SIGTERM.* 2 of 4", stopped.value.message)
    assert "done: " not in "".join(capsys.readouterr())
    assert checkpoint_steps(tmp_path) == [0, 2]
    train(config, tmp_path)
    assert "done: " in "".join(capsys.readouterr())
    assert checkpoint_steps(tmp_path) == [0, 2, 4]
    for step in (0, 2, 4):
        assert_same_bits(weights(tmp_path, step), weights(trained_run.workdir, step))
    assert losses(tmp_path) == losses(trained_run.workdir)
    train(config, tmp_path)  # finished: nothing happens
    assert losses(tmp_path) == losses(trained_run.workdir)


def manifest_but_for_step(number):
    """Return `write_manifest` for a disk that is full when this step's checkpoint is finished."""
    write_manifest = wsod_jax.train.checkpoint.write_manifest

    def write(folder):
        if folder.name == str(number):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
        write_manifest(folder)

    return write


def garbled_boxes(trained_run, config, folder):
    """The same set with nonsense in every <bndbox>."""
    shutil.copytree(trained_run.data, folder / "data")
    for path in (folder / "data" / "Annotations").glob("*.xml"):
        text, count = re.subn(r"(<[xy]m(?:in|ax)>)\d+(<)", r"\g<1>rubbish\g<2>", path.read_text())
        assert count >= 4
        path.write_text(text)
    config.data.root = str(folder / "data")


def labels_only(trained_run, config, folder):
    """The same pictures in a plain folder, with a CSV of labels; no box exists anywhere."""
    images = Voc(root=trained_run.data).images("trainval")
    (folder / "data").mkdir()
    with (folder / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "labels"])
        for record in images.records:
            shutil.copy(record.path, folder / "data")
            present = np.flatnonzero(record.labels)
            writer.writerow([record.image_id, ";".join(images.class_names[c] for c in present)])
    config.data = {
        "reader": "folder",
        "folder": str(folder / "data"),
        "labels_csv": str(folder / "labels.csv"),
        "class_names": images.class_names,
        "train_split": "all",
        "test_split": "all",
    }


@pytest.mark.parametrize("data", [garbled_boxes, labels_only])
def test_boxes_never_reach_training(trained_run, config, tmp_path, data):
    data(trained_run, config, tmp_path)
    train(config, tmp_path / "run")
    assert losses(tmp_path / "run") == losses(trained_run.workdir)
    assert_same_bits(weights(tmp_path / "run"), weights(trained_run.workdir))
    if data is labels_only:
        evaluate.main(["--workdir", str(tmp_path / "run"), *FAST])
        summary = read_report(tmp_path / "run" / "evaluation" / "4")["summary"]
        assert "classification mAP" in summary and not {"mAP50", "CorLoc"} & set(summary)
        assert (tmp_path / "run" / "evaluation" / "4" / "predictions.json").exists()


def test_one_device_gives_the_result_of_four(trained_run, config, tmp_path, monkeypatch):
    assert jax.local_device_count() == 4
    monkeypatch.setattr(runs, "make_mesh", functools.partial(make_mesh, 1))
    config.log.tensorboard = True
    train(config, tmp_path)
    (events,) = (tmp_path / "tensorboard").iterdir()
    pictures = [path.read_bytes() for path in (tmp_path / "figures").iterdir()]
    assert pictures and all(picture in events.read_bytes() for picture in pictures)
    four, one = losses(trained_run.workdir), losses(tmp_path)
    for step, values in four.items():
        assert set(one[step]) == set(values)
        for name, value in values.items():
            assert one[step][name] == pytest.approx(value, rel=1e-3, abs=1e-5), (step, name)
    trained = [weights(tmp_path), weights(trained_run.workdir)]
    for params in trained:
        # The softmax over proposals cannot feel it, so AdamW follows the rounding errors.
        del params["midn"]["det"]["bias"]
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4), *trained)


@pytest.mark.slow
def test_caches_give_the_same_run(config, tmp_path):
    config.backbone.frozen = ("conv",)
    config.train.flip = False  # few enough images for the cache to be used from step 3 on
    config.train.cache_folder = str(tmp_path / "pooled")
    found = {}
    for name in ("none", "features", "proposals", "again"):
        config.train.cache = name if name != "again" else "proposals"
        train(config, tmp_path / name)
        found[name] = losses(tmp_path / name)
    for step, values in found["none"].items():
        for name, value in values.items():
            for cached in (found["features"], found["proposals"]):
                assert cached[step][name] == pytest.approx(value, rel=1e-3, abs=1e-5), (step, name)
    assert found["again"] == found["proposals"]
    jax.tree.map(
        np.testing.assert_array_equal, *map(weights, (tmp_path / "again", tmp_path / "proposals"))
    )


@pytest.mark.slow
def test_evaluation_reads_what_training_has_pooled(config, trained_run, tmp_path):
    config.backbone.frozen = ("conv",)
    config.train.flip = False
    config.train.cache, config.train.cache_folder = "proposals", str(tmp_path / "pooled")
    train(config, tmp_path / "run")
    [folder] = (tmp_path / "pooled").iterdir()
    trained, summaries = set(folder.iterdir()), []
    for _ in range(2):
        evaluate.main(["--workdir", str(tmp_path / "run"), "--out", str(tmp_path / "out")])
        [path] = (tmp_path / "out").glob("*/report.json")
        summaries.append(json.loads(path.read_text())["summary"])
        del summaries[-1]["seconds_per_image"]
    assert summaries[1] == pytest.approx(summaries[0], abs=0, nan_ok=True)
    assert [*(tmp_path / "pooled").iterdir()] == [folder] and trained < set(folder.iterdir())

    predictor = load_run(tmp_path / "run")
    images = Voc(root=trained_run.data).images("trainval")
    proposals = ProposalSet.load(trained_run.proposals)
    cache = predictor.pooled_cache(images, proposals)
    views = [predictor.views(images, proposals, used) for used in (None, cache)]
    for plain, cached in zip(*map(predictor.candidates, views), strict=True):
        np.testing.assert_allclose(cached.scores, plain.scores, rtol=0.02, atol=1e-5)
        np.testing.assert_array_equal(cached.boxes, plain.boxes)
    assert cache.num_computed == 0


@pytest.mark.slow
def test_all_of_it_from_the_command_line(trained_run, tmp_path):
    """SIGTERM from outside ends with status 0 and says how to go on; Ctrl-C is the same; then it goes on."""
    settings = {"data.root": trained_run.data, "proposals.path": trained_run.proposals}
    settings |= {"train.scales": "(64,)", "eval.scales": "(64,)", "train.num_steps": 40}
    settings |= {"log.image_interval": 5, "log.tensorboard": True}
    settings |= {"train.cache_folder": tmp_path / "pooled"}
    settings |= {"log.checkpoint_interval": 10, "log.keep_period": 20}
    command = [sys.executable, "scripts/train.py", "--config", "configs/debug_tiny.py:oicr"]
    command += ["--workdir", str(tmp_path / "run")]
    command += [f"--config.{key}={value}" for key, value in settings.items()]
    for number in (signal.SIGTERM, signal.SIGINT):
        process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        for line in process.stderr:
            if line.startswith("step "):
                process.send_signal(number)
                break
        rest = process.stderr.read()
        assert process.wait() == 0, rest
        assert f"{number.name}: " in rest
        assert "scripts/train.py" in rest
    done = subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0 and "resuming" in done.stderr, done.stderr
    assert "compilations of the training step: " in done.stderr
    assert list(losses(tmp_path / "run")) == list(range(1, 41))
    assert {0, 20, 40} <= set(checkpoint_steps(tmp_path / "run"))
    assert len(list((tmp_path / "run" / "figures").glob("000040_*.png"))) == 2
    assert list((tmp_path / "run" / "tensorboard").iterdir())


def test_best_checkpoint_on_a_validation_split_is_kept(config, tmp_path):
    config.log.checkpoint_interval, config.log.keep_period = 1, 0
    config.eval.flips = (False,)
    config.log.best = "mAP50"
    with pytest.raises(ConfigError, match=r"config\.log\.best .*config\.data\.val_split"):
        train(config, tmp_path / "run")
    config.data.val_split = "test"
    train(config, tmp_path / "run")
    scores = {
        entry["step"]: entry["mAP50"]
        for entry in read_jsonl(tmp_path / "run" / "metrics.jsonl")
        if "mAP50" in entry
    }
    assert list(scores) == [1, 2, 3, 4]
    kept = checkpoint_steps(tmp_path / "run")
    assert set(kept) >= {0, 3, 4} and len(kept) <= 4  # the first, the latest two, and the best
    assert max(scores[step] for step in kept if step) == max(scores.values())
    stored = load_checkpoint(tmp_path / "run").metadata["scores"]
    assert stored == {"mAP50": scores[4]}
    config.data.val_split = None  # may change in a resumed run
    config.log.best = None
    train(config, tmp_path / "run")


# -- evaluation

FAST = ["--set", "flips=(False,)", "--figures", "2"]


def read_report(folder: Path) -> dict:
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def evaluated(trained_run, tmp_path_factory):
    """Every checkpoint of the shared run, measured; and what was printed."""
    out = tmp_path_factory.mktemp("evaluation")
    arguments = ["--workdir", str(trained_run.workdir), "--out", str(out), "--all_steps"]
    evaluate.main([*arguments, *FAST])
    return out


def test_every_checkpoint_is_measured(evaluated, trained_run):
    history = json.loads((evaluated / "history.json").read_text())
    assert list(history) == ["0", "2", "4"]
    assert (evaluated / "curves.png").stat().st_size > 1000
    for step, summary in history.items():
        report = read_report(evaluated / step)
        assert summary.items() <= report["summary"].items()
        assert {"mAP50", "CorLoc", "classification mAP"} <= set(summary)
        assert report["settings"]["test"]["flips"] == [False]
        assert report["settings"]["set"].endswith("test")
        assert report["settings"]["method"]["node_neighbors"] == "paper"  # a default
        assert report["settings"]["method"]["det_temperature"] == 1.0
        assert "mAP50" in (evaluated / step / "report.md").read_text()
        for name in ("precision_recall.png", "detections.png"):
            assert np.ptp(np.asarray(Image.open(evaluated / step / name))) > 100
        assert len(list((evaluated / step / "detections").glob("*.png"))) == 2
    first, last = ((evaluated / step / "predictions.json").read_text() for step in ("0", "4"))
    assert first != last


def test_saved_predictions_score_as_the_model_did(evaluated, trained_run, tmp_path, monkeypatch):
    predictions = evaluated / "4" / "predictions.json"
    monkeypatch.setattr(measuring, "load_run", None)  # no model
    arguments = ["--predictions", str(predictions), "--out", str(tmp_path / "o"), "--figures", "0"]
    evaluate.main(["--workdir", str(trained_run.workdir), *arguments])
    again, first = read_report(tmp_path / "o"), read_report(evaluated / "4")
    assert again["summary"] == {name: first["summary"][name] for name in ("mAP50", "mAP75")}
    assert again["summary"]["mAP50"] > 0
    columns = ("class", "AP50", "AP75", "objects", "detections", "hits")
    for one, other in zip(again["per_class"], first["per_class"], strict=True):
        assert {name: one[name] for name in columns} == {name: other[name] for name in columns}
    shipped = str(ROOT / "configs" / "debug_tiny.py")
    plain = f"import runpy\n\nbase = runpy.run_path({shipped!r})['get_config']\n\n\ndef get_config(name):\n"
    lines = ("    config = base(name)", f"    config.data.root = {str(trained_run.data)!r}")
    (tmp_path / "c.py").write_text(plain + "\n".join((*lines, "    return config", "")))
    evaluate.main(
        ["--config", f"{tmp_path / 'c.py'}:oicr", *arguments, "--set", "iou_thrs=sweep", "--coco"]
    )
    swept = read_report(tmp_path / "o")
    assert swept["summary"]["mAP50"] == again["summary"]["mAP50"]
    assert len(swept["iou_sweep"]) == 10 and "COCO AP75" in swept["summary"]
    assert swept["settings"]["method"]["name"] == "oicr"


@pytest.fixture
def copied_run(trained_run, tmp_path):
    """Configuration, checkpoints and data of the shared run, to damage."""
    shutil.copytree(trained_run.workdir, tmp_path / "run")
    return tmp_path / "run"


def test_checkpoints_that_training_deletes_are_left_out(copied_run, tmp_path, monkeypatch, capsys):
    seen = []

    def step_of(predictor, args, folder):
        seen.append(predictor.metadata["step"])
        shutil.rmtree(copied_run / "checkpoints" / "2", ignore_errors=True)
        return {"mAP50": predictor.metadata["step"] / 10}

    monkeypatch.setattr(measuring, "evaluate_step", step_of)
    (tmp_path / "o").mkdir()
    evaluate.main(["--workdir", str(copied_run), "--out", str(tmp_path / "o"), "--all_steps"])
    assert seen == [0, 4]
    assert capsys.readouterr().out.count("step 2: ") == 1

    def vanish(path, step, **options):
        shutil.rmtree(copied_run / "checkpoints" / "4")
        raise DataError("gone")

    monkeypatch.setattr(measuring, "load_run", vanish)
    evaluate.main(["--workdir", str(copied_run)])
    assert "step 4: " in capsys.readouterr().out


def test_split_without_boxes_is_predicted_and_not_measured(trained_run, copied_run, tmp_path):
    shutil.copytree(trained_run.data, tmp_path / "data")
    shutil.rmtree(tmp_path / "data" / "Annotations")
    metadata = copied_run / "checkpoints" / "4" / "metadata" / "metadata"
    content = metadata.read_text()
    assert json.dumps(str(trained_run.data)) in content
    metadata.write_text(content.replace(str(trained_run.data), str(tmp_path / "data")))
    write_manifest(metadata.parents[1])
    out = tmp_path / "o"
    evaluate.main(["--workdir", str(copied_run), "--out", str(out), "--voc_server", *FAST])
    report = read_report(out / "4")
    assert set(report["summary"]) == {"seconds_per_image"}
    assert sum("no boxes" in note for note in report["notes"]) == 2  # mAP, CorLoc
    found = json.loads((out / "4" / "predictions.json").read_text())
    files = list((out / "4" / "voc_server").glob("comp4_det_test_*.txt"))
    assert len(found) == sum(len(path.read_text().splitlines()) for path in files) > 0


def test_image_that_cannot_be_read_is_left_out_and_told(copied_run, trained_run, tmp_path):
    """Its file breaks off after the header, so that only decoding finds out."""
    shutil.copytree(trained_run.data, tmp_path / "data")
    broken = Voc(root=tmp_path / "data").images("test").records[0]
    broken.path.write_bytes(broken.path.read_bytes()[: broken.path.stat().st_size // 2])
    out = tmp_path / "o"
    arguments = ["--workdir", str(copied_run), "--out", str(out), *FAST]
    evaluate.main([*arguments, "--set", f"data.root={tmp_path / 'data'}"])
    report = read_report(out / "4")
    assert {"mAP50", "CorLoc", "classification mAP"} <= set(report["summary"])
    (told,) = report["left_out"]
    assert f"({broken.image_id})" in told and "1 of 4 images of" in told
    objects = Voc(root=trained_run.data).annotated_boxes("test").boxes.values()
    assert sum(row["objects"] for row in report["per_class"]) == sum(len(o.boxes) for o in objects)
    assert sum("bad_images 1" in note for note in report["notes"]) == 1  # of one view
    found = json.loads((out / "4" / "predictions.json").read_text())
    assert found and broken.image_id not in {entry["image_id"] for entry in found}
    assert len(list((out / "4" / "detections").glob("*.png"))) == 1  # of two asked for


def test_what_is_predicted_outlives_a_measurement_that_fails(
    trained_run, tmp_path, monkeypatch, capsys
):
    def fail(*args, **options):
        raise DataError("no measure")

    arguments = ["--workdir", str(trained_run.workdir), "--out", str(tmp_path), *FAST]
    with monkeypatch.context() as patch:
        patch.setattr(image_evaluators, "classification_ap", fail)
        refused(evaluate.main, arguments, "no measure", capsys)
    monkeypatch.setattr(ResultLog, "add", fail)  # all images of the test split are there already
    refused(evaluate.main, arguments, "no measure", capsys)  # of the next pass
    assert len(json.loads((tmp_path / "4" / "predictions.json").read_text())) > 0


def test_ends_of_evaluation(trained_run, tmp_path, monkeypatch, capsys):
    arguments = ["--workdir", str(trained_run.workdir), "--out", str(tmp_path)]
    for flags in (["--ema"], ["--weights", "ema"]):
        refused(evaluate.main, [*arguments, *flags], "no 'ema'", capsys)

    def fail(error):
        def write(*args):
            raise error

        return write

    monkeypatch.setattr(measuring, "evaluate_run", fail(OSError("disk full")))
    refused(evaluate.main, arguments, "disk full", capsys)
    monkeypatch.setattr(measuring, "evaluate_run", fail(KeyboardInterrupt()))
    assert evaluate.main(arguments) == 130
    assert "interrupted" in capsys.readouterr().err
    for wrong in (["--config", "c.py"], [*arguments, "--predictions", "p.json", "--ema"]):
        with pytest.raises(SystemExit, match="2"):
            evaluate.main(wrong)


def test_running_average_of_the_weights_is_scored(config, tmp_path):
    config.train.ema_decay, config.log.image_interval = 0.5, 0
    train(config, tmp_path / "run")
    arguments = ["--workdir", str(tmp_path / "run"), "--passes", *FAST]
    scores = {}
    for name, flags in (("params", []), ("ema", ["--ema"])):
        evaluate.main([*arguments, *flags, "--out", str(tmp_path / name)])
        assert read_report(tmp_path / name / "4")["settings"]["weights"] == name
        entries = json.loads((tmp_path / name / "4" / "predictions.json").read_text())
        scores[name] = sorted(entry["score"] for entry in entries)
    assert scores["ema"] != scores["params"]


def test_watching_a_finished_run_ends(trained_run, tmp_path, monkeypatch):
    clock = SimpleNamespace(perf_counter=time.perf_counter)  # nothing here can sleep
    monkeypatch.setattr(measuring, "time", clock)
    arguments = ["--workdir", str(trained_run.workdir), "--out", str(tmp_path), *FAST]
    evaluate.main([*arguments, "--watch", "--passes"])
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"0", "2", "4"}


def test_one_checkpoint_by_its_folder(trained_run, tmp_path):
    checkpoint = trained_run.workdir / "checkpoints" / "2"
    evaluate.main(["--workdir", str(checkpoint), "--out", str(tmp_path), "--passes", *FAST])
    assert read_report(tmp_path / "2")["settings"]["step"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "nms=0.3"], "config.eval.nms .*'nms_thr'"),
        (["--set", "train.flip=False"], "train.flip .*data.root"),
        (["--set", "proposals.path=gone.npz"], "gone.npz"),
        (["--split", "tset"], "tset"),
        (["--predictions", "nowhere.json"], "nowhere.json"),
    ],
)
def test_evaluation_names_what_is_wrong(trained_run, tmp_path, capsys, arguments, message):
    given = ["--workdir", trained_run.workdir, "--out", tmp_path, *arguments]
    refused(evaluate.main, given, message, capsys)


def test_evaluation_of_nothing(tmp_path, capsys):
    refused(evaluate.main, ["--workdir", tmp_path], "no checkpoints.*wsod-jax train", capsys)


# -- what does not belong


def test_workdir_of_another_run_is_refused_and_left_alone(trained_run, config):
    before = (trained_run.workdir / "config.json").read_text()
    config.optim.learning_rate = 0.5
    config.method.beta = 0.7
    with pytest.raises(ConfigError, match="another run") as error:
        train(config, trained_run.workdir)
    rate = trained_run.config.optim.learning_rate
    assert f"config.optim.learning_rate: {rate} there, 0.5 now" in str(error.value)
    assert "config.method.beta: 0.2 there, 0.7 now" in str(error.value)
    assert (trained_run.workdir / "config.json").read_text() == before
    assert len(losses(trained_run.workdir)) == 4


def test_a_start_without_its_weights_leaves_no_workdir(config, tmp_path):
    config.train.init_from = (str(tmp_path / "none.npz"),)
    with pytest.raises(DataError, match=r"none\.npz"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_finished_run_says_that_nothing_is_to_do(config, tmp_path, capsys, monkeypatch):
    config.train.num_steps, config.log.image_interval = 0, 0
    first = train(config, tmp_path / "run")
    capsys.readouterr()
    monkeypatch.setattr(runs, "TrainStep", None)  # nothing is compiled
    again = train(config, tmp_path / "run")
    told = capsys.readouterr()
    assert "step 0 of 0" in told.out
    assert "warning" not in told.err
    assert int(again.step) == 0
    jax.tree.map(np.testing.assert_array_equal, first.params, again.params)


def test_cosine_does_not_resume_with_another_length(trained_run, config):
    config.optim.shape, config.optim.decay_steps, config.train.num_steps = "cosine", (), 6
    with pytest.raises(ConfigError, match=r"config\.train\.num_steps: 4 there, 6 now"):
        train(config, trained_run.workdir)


def test_steps_that_a_run_never_reaches_are_named(config, capsys):
    config.train.num_steps = 100
    config.optim.decay_steps, config.optim.warmup_steps = (70, 100), 10
    config.method.alpha = ((0, 5.0), (700, 2.0))
    parsed = build.read_config(config)
    method = build.method(parsed, num_classes=6, max_classes=6, max_targets=1)
    describe_schedule(print, parsed, method)
    schedule, *warnings = capsys.readouterr().out.splitlines()
    assert schedule == (
        "schedule: 100 updates; optim.warmup_steps 10; optim.decay_steps 70, 100; method.alpha 700"
    )
    assert [line.split(",")[0] for line in warnings] == [
        "warning: config.optim.decay_steps has update 100",
        "warning: config.method.alpha has update 700",
    ]


def test_ctrl_c_outside_the_loop_says_how_to_go_on(monkeypatch, capsys):
    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("wsod_jax.runs.train", interrupted)
    given = ["--workdir", "runs/one", "--config", "configs/debug_tiny.py", "--config.seed", "3"]
    monkeypatch.setattr(sys, "argv", ["train.py", *given])
    assert script.main() == 130
    assert f"train.py {' '.join(given)}" in capsys.readouterr().err


def test_workdir_of_another_method_is_refused(trained_run, config):
    config.method = {"name": "oicr"}
    with pytest.raises(ConfigError, match="  method: 'oim' there, 'oicr' now"):
        train(config, trained_run.workdir)


def test_checkpoint_of_other_classes_is_refused(trained_run, config, tmp_path, capsys):
    shutil.copytree(trained_run.data, tmp_path / "data")
    config.data.root = str(tmp_path / "data")
    config.train.num_steps = 0
    train(config, tmp_path / "run")
    with (tmp_path / "data" / "classes.txt").open("a") as file:
        file.write("unicorn\n")
    with pytest.raises(ConfigError, match="class_names: .* now"):
        train(config, tmp_path / "run")
    arguments = ["--workdir", tmp_path / "run", *FAST]
    refused(evaluate.main, arguments, "unicorn", capsys)


def test_run_goes_on_where_its_data_have_moved(trained_run, config, copied_run, tmp_path):
    config.data.root = str(shutil.copytree(trained_run.data, tmp_path / "data"))
    config.proposals.path = str(shutil.copy(trained_run.proposals, tmp_path / "proposals.npz"))
    config.train.num_steps = 5
    train(config, copied_run)
    assert checkpoint_steps(copied_run)[-1] == 5


def test_image_without_proposals_stops_before_training(trained_run, config, tmp_path):
    proposals = ProposalSet.load(trained_run.proposals)
    proposals.select(proposals.ids[1:]).save(tmp_path / "fewer.npz")
    config.proposals.path = str(tmp_path / "fewer.npz")
    with pytest.raises(DataError, match=f"fewer.npz.*{proposals.ids[0]!r}.*make_proposals"):
        train(config, tmp_path / "run")


def test_diverged_run_stops_and_names_the_term(config, tmp_path):
    config.optim.learning_rate, config.optim.warmup_steps = 1e15, 0
    message = r"update \d: loss/\w+ = (nan|inf).*step 0"
    with pytest.raises(NonFiniteError, match=message):
        train(config, tmp_path)
    assert checkpoint_steps(tmp_path) == [0]


def test_cached_features_need_a_frozen_backbone(config, tmp_path):
    config.train.cache, config.backbone.frozen = "features", ("conv1",)
    with pytest.raises(ConfigError, match="frozen.*conv4_2"):
        train(config, tmp_path)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.metod.name=oicr", "config.metod .*'method'"),
        ("--config.train.num_step=3", "config.train.num_step .*'num_steps'"),
        ("--config.train.num_steps=many", "num_steps"),
    ],
)
def test_command_line_names_what_is_wrong(tmp_path, argument, message):
    command = [sys.executable, "scripts/train.py", "--config", "configs/debug_tiny.py", argument]
    done = subprocess.run(
        [*command, "--workdir", str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert re.search(message, done.stdout + done.stderr), done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_pictures_of_pseudo_boxes_need_a_method_that_mines(spn_run, tmp_path):
    config = spn_run.config.copy_and_resolve_references()
    config.log.image_interval = 2
    with pytest.raises(ConfigError, match="image_interval is 2.*spn"):
        train(config, tmp_path)
    assert not (tmp_path / "checkpoints").exists()
