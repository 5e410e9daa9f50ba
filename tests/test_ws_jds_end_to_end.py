"""WS-JDS as a user runs it: trained, evaluated by boxes, masks and label maps, drawn; bad input is refused."""

import json

import numpy as np
import pytest
from PIL import Image

from configs.ws_jds_synthetic import get_config
from tests.commands import refused
from tests.conftest import four_steps
from wsod_jax import build, runs
from wsod_jax.commands import evaluate, predict
from wsod_jax.errors import ConfigError
from wsod_jax.train.logging import read_jsonl


@pytest.fixture(scope="module")
def run(tiny_set, tmp_path_factory):
    """A run in which every present class guides, with crops and jitter."""
    config = get_config("ws_jds")
    config.proposals.path = str(tiny_set[1])
    config.method.box_head.dims = (16, 16)
    config.method.segmentation = dict(dilations=(1, 2), channels=8)
    config.method.confidence_thr = 0.0
    config.method.guidance_steps = 3
    config.train.update(init_from=(), crop=(0.9, 0.9), jitter="hsv")
    config.optim.update(warmup_steps=2, decay_steps=())
    config.log.update(image_interval=0, log_interval=1)
    return four_steps(config, tiny_set, tmp_path_factory.mktemp("ws_jds"))


@pytest.mark.slow
def test_guidance_is_logged_and_ends(run):
    logged = read_jsonl(run.workdir / "metrics.jsonl")
    guiding = [entry["confident_classes"] for entry in logged]
    assert all(count >= 1 for count in guiding[:3]) and guiding[3] == 0
    assert logged[2]["loss/seed"] > 0 == logged[3]["loss/seed"]
    assert all(entry["loss/boundary"] > 0 for entry in logged)


@pytest.mark.slow
def test_boxes_masks_and_label_maps_are_evaluated(run, tmp_path):
    arguments = ["--workdir", str(run.workdir), "--out", str(tmp_path), "--figures", "2"]
    assert evaluate.main(arguments) == 0
    report = json.loads((tmp_path / "4" / "report.json").read_text(encoding="utf-8"))
    assert {"mAP50", "CorLoc", "mIoU", "mask AP50"} <= set(report["summary"])
    assert (
        evaluate.main([*arguments[:2], "--out", str(tmp_path / "plain"), "--set", "masks.crf=None"])
        == 0
    )
    plain = json.loads((tmp_path / "plain" / "4" / "report.json").read_text(encoding="utf-8"))
    assert plain["summary"]["mAP50"] == report["summary"]["mAP50"]


@pytest.mark.slow
def test_prediction_writes_masks_label_maps_and_what_the_branches_see(
    run, spn_run, tiny_set, tmp_path
):
    images = sorted((tiny_set[0] / "JPEGImages").glob("*"))[:2]
    arguments = ["--workdir", str(run.workdir), "--images", *map(str, images)]
    arguments += ["--out", str(tmp_path), "--proposals", str(tiny_set[1])]
    assert predict.main([*arguments, "--cam", str(spn_run.workdir)]) == 0
    found = json.loads((tmp_path / "predictions.json").read_text(encoding="utf-8"))
    assert found and all("segmentation" in one for one in found)
    for path in images:
        size = Image.open(path).size
        assert Image.open(tmp_path / "label_maps" / f"{path.stem}.png").size == size
        panels = Image.open(tmp_path / "guidance" / f"{path.stem}.jpg")
        assert panels.width > 5 * 240  # image, activation, localization map, seeds, segmentation
    result = runs.predictor.load_run(run.workdir).detect(str(images[0]))
    assert len(result.masks) == len(result.boxes)
    for mask, box in zip(result.masks, result.boxes, strict=True):
        bottom, right = np.add((mask.top, mask.left), mask.pixels.shape)
        if mask.pixels.size:
            assert mask.left >= box[0] - 0.5 and right <= box[2] + 0.5
            assert mask.top >= box[1] - 0.5 and bottom <= box[3] + 0.5


def test_cam_of_methods_without_localization_maps(spn_run, tiny_set, tmp_path, capsys):
    image = next((tiny_set[0] / "JPEGImages").glob("*"))
    arguments = ["--workdir", spn_run.workdir, "--images", image, "--out", tmp_path]
    refused(predict.main, [*arguments, "--cam", spn_run.workdir], "localization maps", capsys)


@pytest.mark.parametrize("cache", ["features", "proposals"])
def test_caches_are_refused(cache):
    config = get_config("ws_jds")
    config.train.cache = cache
    with pytest.raises(ConfigError, match="cache"):
        build.read_config(config)
