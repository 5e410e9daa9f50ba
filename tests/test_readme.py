"""The README's code runs, as it is printed but for the paths."""

import re
from pathlib import Path

import jax
import numpy as np

from wsod_jax import build
from wsod_jax.convert import torchvision
from wsod_jax.data.images import read_image
from wsod_jax.train.weights import check_meta

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def python_block(word: str) -> str:
    """Return the README's one Python block that contains `word`."""
    (found,) = (b for b in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if word in b)
    return found


def test_library_snippet(trained_run, tmp_path):
    block = python_block("load_run")
    assert len([line for line in block.splitlines() if line.strip()]) <= 25
    before = block.count("demo/oim_ir") + block.count("found.png")
    assert before == 2
    picture = tmp_path / "found.png"
    names = {}
    block = block.replace("demo/oim_ir", str(trained_run.workdir))
    exec(block.replace("found.png", str(picture)), names)
    assert read_image(picture).std() > 10  # not a blank sheet
    scores = names["best"]["scores"]
    assert 0 < len(scores) <= 5 and scores.max() == names["found"].scores.max()
    assert np.isfinite(names["loss"]) and names["loss"] > 0
    old, new = names["predictor"].params, names["params"]
    moved = jax.tree.map(lambda a, b: float(abs(a - b).max()), old, new)
    assert moved["midn"] and max(jax.tree.leaves(moved["midn"])) > 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(new))


def test_config_for_own_images_builds():
    names = {}
    exec(python_block("my_pictures"), names)
    config = build.read_config(names["get_config"]())
    method = build.method(config, num_classes=3, max_classes=2, max_targets=1)
    assert method.num_stages == 3
    assert "--from torchvision_squeezenet1_1" in README
    (weights,) = config.train.init_from
    check_meta(torchvision.SQUEEZENET_META, config.backbone.description, path=weights)
    build.optimizer(config)
    assert config.train.scales == config.eval.scales == (448,)
    assert config.proposals.max_proposals == 512
    assert not hasattr(config.data, "ground_truth")  # a folder of images has no boxes


def test_results_are_between_their_markers():
    assert README.count("<!-- results:begin -->") == README.count("<!-- results:end -->") == 1
    assert README.index("<!-- results:begin -->") < README.index("<!-- results:end -->")
