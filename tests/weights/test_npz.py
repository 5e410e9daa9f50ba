"""The weight file format and merging: round trips, damage, shapes, reports."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from wsod_jax.errors import DataError
from wsod_jax.weights.npz import load_weights, merge_weights, save_weights

META = {"architecture": "tiny", "pixels": "torchvision", "source": "a test"}


@pytest.fixture
def weights():
    rng = np.random.default_rng(0)
    return {
        "conv1": {
            "kernel": rng.standard_normal((3, 3, 3, 4), np.float32),
            "bias": np.ones(4, np.float32),
        },
        "fc6": {"kernel": rng.standard_normal((8, 5), np.float32)},
    }


def network():
    return {
        "backbone": {"conv1": {"kernel": jnp.zeros((3, 3, 3, 4)), "bias": jnp.zeros(4)}},
        "neck": {"fc6": {"kernel": jnp.zeros((8, 5), jnp.bfloat16), "bias": jnp.zeros(5)}},
        "midn": {"cls": {"kernel": jnp.zeros((5, 2))}},
    }


def test_round_trip(tmp_path, weights):
    path = tmp_path / "deep" / "w.npz"
    written = save_weights(path, weights, META)
    params, meta = load_weights(path)
    assert meta == written and META.items() <= meta.items()
    assert meta["checksum"].startswith("sha256:") and meta["created_by"].startswith("wsod_jax ")
    assert set(params) == set(weights)
    np.testing.assert_array_equal(params["conv1"]["kernel"], weights["conv1"]["kernel"])
    assert [p.name for p in path.parent.iterdir()] == ["w.npz"]


def test_checksum_follows_values_names_and_shapes(tmp_path, weights):
    def checksum(params):
        return save_weights(tmp_path / "w.npz", params, META)["checksum"]

    reference = checksum(weights)
    assert checksum(dict(reversed(weights.items()))) == reference
    renamed = {"conv2": weights["conv1"], "fc6": weights["fc6"]}
    reshaped = {**weights, "fc6": {"kernel": weights["fc6"]["kernel"].reshape(5, 8)}}
    changed = {**weights, "fc6": {"kernel": weights["fc6"]["kernel"] + 1}}
    assert len({reference, *map(checksum, (renamed, reshaped, changed))}) == 4


def test_damage_is_noticed(tmp_path, weights):
    path = tmp_path / "w.npz"
    save_weights(path, weights, META)
    arrays = dict(np.load(path))
    arrays["conv1/bias"] = arrays["conv1/bias"] + 1
    np.savez(path, **arrays)
    with pytest.raises(DataError, match="damaged.*sha256"):
        load_weights(path)
    arrays["__meta__"] = np.asarray("no json")
    np.savez(path, **arrays)
    with pytest.raises(DataError, match="no JSON object"):
        load_weights(path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match="cannot be read"):
        load_weights(path)


def test_missing_and_foreign_files_say_what_to_do(tmp_path, weights):
    with pytest.raises(DataError, match="No weights at .*Download.*scripts/convert_weights.py"):
        load_weights(tmp_path / "none.npz")
    np.savez(tmp_path / "keras.npz", **{"conv1/kernel": weights["conv1"]["kernel"]})
    with pytest.raises(DataError, match="--from keras_squeezenet_npz"):
        load_weights(tmp_path / "keras.npz")


@pytest.mark.parametrize("path, meta", [("w.txt", META), ("w.npz", {"architecture": "tiny"})])
def test_bad_descriptions_are_not_written(tmp_path, weights, path, meta):
    with pytest.raises(DataError, match="must end in .npz|lacks pixels, source"):
        save_weights(tmp_path / path, weights, meta)
    assert not list(tmp_path.iterdir())


def test_failed_writes_leave_the_old_file(tmp_path, weights):
    path = tmp_path / "w.npz"
    save_weights(path, weights, META)
    with pytest.raises(TypeError):
        save_weights(path, weights, {**META, "odd": json})
    load_weights(path)
    assert len(list(tmp_path.iterdir())) == 1


def test_merge_finds_each_layer_its_place(weights):
    params = network()
    merged, report = merge_weights(
        params, {**weights, "fc8": {"bias": np.ones(3)}}, prefix=("backbone", "neck")
    )
    np.testing.assert_array_equal(merged["backbone"]["conv1"]["kernel"], weights["conv1"]["kernel"])
    assert merged["neck"]["fc6"]["kernel"].dtype == jnp.bfloat16
    assert report.loaded == ("backbone/conv1/bias", "backbone/conv1/kernel", "neck/fc6/kernel")
    assert report.missing == ("neck/fc6/bias",)
    assert report.unused == ("fc8/bias",)
    assert "3 parameters loaded" in str(report) and "neck/fc6/bias" in str(report)
    assert not np.any(params["backbone"]["conv1"]["kernel"])
    assert not np.any(merged["midn"]["cls"]["kernel"])


def test_merge_at_the_root(weights):
    _, report = merge_weights(network()["backbone"], weights)
    assert report.loaded == ("conv1/bias", "conv1/kernel") and report.unused == ("fc6/kernel",)


def test_merge_refuses_other_shapes_and_other_networks(weights):
    params = network()
    params["neck"]["fc6"]["kernel"] = jnp.zeros((9, 5))
    with pytest.raises(DataError, match=r"neck/fc6/kernel has shape \(9, 5\).*\(8, 5\)"):
        merge_weights(params, weights, prefix=("backbone", "neck"))
    with pytest.raises(DataError, match="none of the weights"):
        merge_weights(params, weights, prefix="midn")
