"""A single-label run on an ImageNet-like folder, from training to the errors of ILSVRC."""

import json
import shutil

import numpy as np
import pytest

from configs.spn_googlenet_ilsvrc import get_config
from tests.conftest import four_steps
from wsod_jax.commands import evaluate
from wsod_jax.data.readers.voc import Voc
from wsod_jax.errors import DataError
from wsod_jax.evaluation.metrics.ilsvrc import read_blacklist
from wsod_jax.runs import training as runs
from wsod_jax.train.sharding import make_mesh

ERRORS = ("localization error", "top-1 error", "top-1 localization error", "top-5 error")


@pytest.fixture(scope="module")
def folder_run(tiny_set, tmp_path_factory):
    """Give every image one of its classes, lay the set out as ImageNet is, and train on it."""
    data, _ = tiny_set
    root = tmp_path_factory.mktemp("imagenet")
    for split, name in (("trainval", "train"), ("test", "val")):
        images = Voc(root=data).images(split)
        truth = Voc(root=data).annotated_boxes(split)
        for number, record in enumerate(images.records, start=1):
            own = images.class_names[truth.boxes[record.image_id].classes[0]]
            image_id = f"set_{name}_{number:08d}"
            place = root / name / own / f"{image_id}{record.path.suffix}"
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(record.path, place)
            boxes = root / "annotations" / name / own / f"{image_id}.xml"
            boxes.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(data / "Annotations" / f"{record.image_id}.xml", boxes)
        for own in images.class_names:  # a class without an image still has its folder
            (root / name / own).mkdir(parents=True, exist_ok=True)
    config = get_config("spn")
    config.train.init_from = ()
    config.backbone = dict(name="tiny", stride=8, widths=(4, 4, 8, 8))
    config.method.extra_channels = 8
    config.optim.name, config.optim.learning_rate = "adamw", 1e-3
    for key in ("momentum", "update_rule"):
        del config.optim[key]
    config.optim.decay_steps, config.log.log_interval = (), 1
    config.train.accumulate, config.train.crop_margin = 1, 8
    config.data.class_names = images.class_names
    with pytest.MonkeyPatch.context() as patch:  # four devices add nothing here
        patch.setattr(runs, "make_mesh", lambda: make_mesh(1))
        return four_steps(config, (root, None), tmp_path_factory.mktemp("folder_run"))


def report_of(run, tmp_path, *arguments):
    evaluate.main(
        ["--workdir", str(run.workdir), "--out", str(tmp_path), "--figures", "0", *arguments]
    )
    return json.loads((tmp_path / "4" / "report.json").read_text(encoding="utf-8"))


def test_errors_are_in_the_report(folder_run, tmp_path):
    summary = report_of(folder_run, tmp_path)["summary"]
    assert all(0 <= summary[name] <= 1 for name in ERRORS)
    assert summary["top-5 error"] <= summary["top-1 error"] <= summary["top-1 localization error"]
    assert summary["localization error"] <= summary["top-1 localization error"]
    rows = (tmp_path / "4" / "points.csv").read_text(encoding="utf-8").splitlines()[1:]
    assert len(rows) >= 5 * 4  # five guesses of four images, whatever is predicted
    assert sum(row.endswith(",1") for row in rows) == 4  # one class each


def test_blacklisted_images_do_not_count(folder_run, tmp_path):
    blacklist = tmp_path / "blacklist.txt"
    blacklist.write_text("2\n4\n")
    notes = report_of(folder_run, tmp_path, "--blacklist", str(blacklist))["notes"]
    assert any("blacklist" in note and " 2 images" in note for note in notes)


def test_blacklist_names_images_by_id_or_number(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("36\nn01/val_00000007\n")
    ids = ["n01/val_00000007", "n02/val_00000036", "n02/no_number"]
    assert read_blacklist(path, ids) == [1, 0]
    path.write_text("8\n")
    with pytest.raises(DataError, match="entry 1.*'8'"):
        read_blacklist(path, ids)
    with pytest.raises(DataError, match=r"none\.txt"):
        read_blacklist(tmp_path / "none.txt", ids)


def test_several_labels_are_refused_before_training(spn_run, tmp_path):
    config = spn_run.config.copy_and_resolve_references()
    config.method.activation = "softmax"
    labels = Voc(root=spn_run.data).images("trainval").labels
    assert (np.sum(labels == 1, axis=1) > 1).any()
    with pytest.raises(DataError, match="sigmoid"):
        four_steps(config, (spn_run.data, None), tmp_path)
