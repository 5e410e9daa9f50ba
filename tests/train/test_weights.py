"""The weight file format: round trips and damage."""

import json

import numpy as np
import pytest
import safetensors.numpy
from flax.traverse_util import unflatten_dict

from wsod_jax.errors import DataError
from wsod_jax.train.weights import load_weights, save_weights

META = {"architecture": "tiny", "preprocessing": "torch", "source": "a test"}


@pytest.mark.parametrize("name", ["w.npz", "w.safetensors"])
def test_round_trip(tmp_path, weights, name):
    path = tmp_path / "deep" / name
    written = save_weights(path, weights, META)
    params, meta = load_weights(path)
    assert meta == written and META.items() <= meta.items()
    assert meta["checksum"].startswith("sha256:") and meta["created_by"].startswith("wsod_jax ")
    assert set(params) == set(weights)
    np.testing.assert_array_equal(params["conv1"]["kernel"], weights["conv1"]["kernel"])
    assert [p.name for p in path.parent.iterdir()] == [name]


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
    with pytest.raises(DataError, match="w.npz.*sha256"):
        load_weights(path)
    arrays["__meta__"] = np.asarray("no json")
    np.savez(path, **arrays)
    with pytest.raises(DataError, match="JSON"):
        load_weights(path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match="w.npz"):
        load_weights(path)


def test_damaged_and_foreign_safetensors(tmp_path, weights):
    path = tmp_path / "w.safetensors"
    arrays = {"conv1/bias": weights["conv1"]["bias"], "fc6/kernel": weights["fc6"]["kernel"].T}
    written = save_weights(path, unflatten_dict(arrays, sep="/"), META)
    found = safetensors.numpy.load_file(path)
    assert found.keys() == arrays.keys()
    np.testing.assert_array_equal(found["fc6/kernel"], arrays["fc6/kernel"])  # as others read it
    changed = {**found, "conv1/bias": found["conv1/bias"] + 1}
    safetensors.numpy.save_file(changed, path, {"__meta__": json.dumps(written)})
    with pytest.raises(DataError, match="damaged.*sha256"):
        load_weights(path)
    safetensors.numpy.save_file(arrays, path)
    with pytest.raises(DataError, match="__meta__.*preprocessing"):
        load_weights(path)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DataError, match="cannot be read"):
        load_weights(path)


def test_missing_and_foreign_files_say_what_to_do(tmp_path, weights):
    with pytest.raises(DataError, match="none.npz.*wsod-jax convert_weights"):
        load_weights(tmp_path / "none.npz")
    np.savez(tmp_path / "keras.npz", **{"conv1/kernel": weights["conv1"]["kernel"]})
    with pytest.raises(DataError, match="--from keras_squeezenet_npz"):
        load_weights(tmp_path / "keras.npz")


@pytest.mark.parametrize("path, meta", [("w.txt", META), ("w.npz", {"architecture": "tiny"})])
def test_bad_descriptions_are_not_written(tmp_path, weights, path, meta):
    with pytest.raises(DataError, match="w.txt.*npz|preprocessing, source"):
        save_weights(tmp_path / path, weights, meta)
    assert not list(tmp_path.iterdir())


def test_failed_writes_leave_the_old_file(tmp_path, weights):
    path = tmp_path / "w.npz"
    save_weights(path, weights, META)
    with pytest.raises(TypeError):
        save_weights(path, weights, {**META, "odd": json})
    load_weights(path)
    assert len(list(tmp_path.iterdir())) == 1


def test_files_of_version_0_1_are_read(tmp_path, weights):
    path = tmp_path / "w.npz"
    save_weights(path, weights, {"architecture": "tiny", "preprocessing": "tf", "source": "x"})
    with np.load(path) as archive:
        arrays = dict(archive)
    meta = json.loads(str(arrays.pop("__meta__")))
    del meta["preprocessing"]
    np.savez(path, **arrays, __meta__=json.dumps({**meta, "pixels": "torchvision"}))
    assert load_weights(path)[1]["preprocessing"] == "torch"
