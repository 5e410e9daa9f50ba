"""The layers of a run as the pretrained weights of another one."""

import jax
import numpy as np

from wsod_jax import build
from wsod_jax.commands import convert_weights
from wsod_jax.methods.base import Method
from wsod_jax.runs import training as runs
from wsod_jax.train.checkpoint import load_checkpoint
from wsod_jax.train.weights import load_weights


def test_checkpoint_gives_all_but_the_layers_of_its_classes(trained_run, tmp_path, capsys):
    out = tmp_path / "weights" / "tiny.safetensors"
    workdir = str(trained_run.workdir)
    assert convert_weights.main(["--from", "checkpoint", workdir, "--out", str(out)]) == 0
    assert "source: " in capsys.readouterr().out
    loaded, meta = load_weights(out)
    expected = load_checkpoint(workdir).params
    expected = {name: expected[name] for name in ("backbone", "box_head")}
    jax.tree.map(np.testing.assert_array_equal, loaded, jax.device_get(expected))
    assert meta["architecture"] == "tiny" and meta["preprocessing"] == "torch"
    assert workdir in meta["source"] and "step 4" in meta["source"]

    config = trained_run.config.copy_and_resolve_references()
    config.train.init_from = (str(out),)
    drawn = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), load_checkpoint(workdir).params)
    warmed, _ = runs.warm_start(build.read_config(config), Method())(drawn, {})
    for module in ("backbone", "box_head"):
        jax.tree.map(np.testing.assert_array_equal, warmed[module], loaded[module])
    assert all(not leaf.any() for leaf in jax.tree.leaves(warmed["midn"]))


def test_folder_without_checkpoint_is_an_error(tmp_path, capsys):
    out = tmp_path / "tiny.npz"
    assert (
        convert_weights.main(["--from", "checkpoint", str(tmp_path / "no"), "--out", str(out)]) == 1
    )
    assert "no checkpoint" in capsys.readouterr().err
    assert not out.exists()
