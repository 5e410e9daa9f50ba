"""The README's code runs, as it is printed but for the paths."""

import re
from pathlib import Path

import jax
import numpy as np

from wsod_jax import build
from wsod_jax.data.images import read_image
from wsod_jax.runs import training as runs

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def python_block(word: str) -> str:
    """Return the README's one Python block that contains `word`."""
    (found,) = (b for b in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if word in b)
    return found


def test_library_snippets(trained_run, tmp_path):
    image = next((trained_run.data / "JPEGImages").glob("*.jpg"))
    paths = {
        "demo/oim_ir": trained_run.workdir,
        "demo/data/synthetic/JPEGImages/000301.jpg": image,
        "found.png": tmp_path / "found.png",
    }
    block, names = python_block("load_run"), {}
    for path, here in paths.items():
        assert block.count(f'"{path}"') == 1
        block = block.replace(path, str(here))
    exec(block, names)
    assert read_image(tmp_path / "found.png").std() > 10  # not a blank sheet
    scores = names["best"]["scores"]
    assert 0 < len(scores) <= 5 and scores.max() == names["found"].scores.max()
    exec(python_block("train_step"), names)
    assert np.isfinite(names["loss"]) and names["loss"] > 0
    old, new = names["detector"].params, names["params"]
    moved = jax.tree.map(lambda a, b: float(abs(a - b).max()), old, new)
    assert moved["midn"] and max(jax.tree.leaves(moved["midn"])) > 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((new, names["opt_state"])))
    assert max(float(abs(leaf).max()) for leaf in jax.tree.leaves(names["opt_state"])) > 0


def test_config_for_own_images_builds():
    names = {}
    exec(python_block("my_images"), names)
    config = build.read_config(names["get_config"]())
    method = build.method(config, num_classes=3, max_classes=2, max_targets=1)
    assert method.num_stages == 3
    assert '".[lite0]"' in README
    assert config.train.init_from == (config.backbone.architecture,)
    assert config.backbone.architecture in runs.INSTALLED_WEIGHTS
    build.optimizer(config)
    assert config.train.scales == config.eval.scales == (384,)
    assert config.proposals.max_proposals == 512
    assert not hasattr(config.data, "annotated_boxes")  # a folder of images has no boxes


def test_results_are_between_their_markers():
    assert README.count("<!-- results:begin -->") == README.count("<!-- results:end -->") == 1
    assert README.index("<!-- results:begin -->") < README.index("<!-- results:end -->")
