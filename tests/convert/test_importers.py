"""Importers: converted files give the features of independent torch networks; wrong files are refused."""

import collections
import functools
import hashlib
import importlib.util
import pickle
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.nn.cases import apply
from wsod_jax.convert import caffe, conversion, keras, torchvision
from wsod_jax.errors import DataError
from wsod_jax.nn.box_head import BoxHead
from wsod_jax.nn.squeezenet import SqueezeNet
from wsod_jax.nn.vgg import Vgg16
from wsod_jax.train.weights import check_meta, load_weights

torch = pytest.importorskip("torch")
from tests.convert import networks  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:.*has no hash")


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).integers(0, 256, (1, 53, 71, 3), np.uint8)


@pytest.fixture(scope="module")
def blobs():
    return networks.vgg_blobs()


def features(backbone, params, image):
    """Run the backbone and return [b, d, h, w], as torch has it."""
    size = np.array([image.shape[1:3]], np.int32)
    maps = jax.jit(functools.partial(apply, backbone))({"params": params}, image, size)
    return np.asarray(maps.features).transpose(0, 3, 1, 2)


def assert_same_features(found, expected):
    expected = expected.numpy()
    assert found.shape == expected.shape
    scale = np.abs(expected).max()
    assert scale > 0.1
    np.testing.assert_allclose(found, expected, atol=2e-5 * scale)


@pytest.mark.parametrize("dilated", [True, False])
def test_torchvision_vgg16(tmp_path, image, blobs, dilated):
    path = tmp_path / "vgg.pth"
    torch.save(networks.vgg_state(blobs), path)
    params, meta = torchvision.convert_vgg16(path, with_fc=False)
    backbone = Vgg16(preprocessing="torch", dilated=dilated)
    check_meta(meta, backbone.description, path=path)
    expected = networks.vgg_forward(networks.torchvision_input(image), blobs, dilated)
    assert_same_features(features(backbone, params, image), expected)
    with pytest.raises(DataError, match="fc6"):
        torchvision.convert_vgg16(path)


@pytest.mark.parametrize("old_format", [False, True])
def test_torchvision_squeezenet(tmp_path, image, old_format):
    layers = networks.squeezenet_layers()
    state = collections.OrderedDict()
    for name, (kernel, bias) in layers.items():
        state[f"{name}.weight"], state[f"{name}.bias"] = map(torch.from_numpy, (kernel, bias))
    path = tmp_path / "squeezenet.pth"
    torch.save(state, path, _use_new_zipfile_serialization=not old_format)
    params, meta = torchvision.convert_squeezenet(path)
    backbone = SqueezeNet(preprocessing="torch", ceil_mode=True)
    check_meta(meta, backbone.description, path=path)
    expected = networks.squeezenet_forward(networks.torchvision_input(image), layers, True)
    assert_same_features(features(backbone, params, image), expected)


def write_keras_squeezenet(path, layers):
    arrays, fire = {}, 2
    for name, (kernel, bias) in layers.items():
        if name == "classifier.1":
            continue
        if name == "features.0":
            target = "conv1"
        else:
            layer = name.split(".")[-1]
            target = f"fire{fire}/" + ("squeeze1x1" if layer == "squeeze" else layer)
            fire += layer == "expand3x3"
        arrays[f"{target}/kernel"] = kernel.transpose(2, 3, 1, 0)
        arrays[f"{target}/bias"] = bias
    np.savez(path, **arrays)


def test_keras_squeezenet(tmp_path, image):
    layers = networks.squeezenet_layers()
    path = tmp_path / "keras.npz"
    write_keras_squeezenet(path, layers)
    params, meta = keras.convert_squeezenet(path)
    backbone = SqueezeNet()
    check_meta(meta, backbone.description, path=path)
    x = networks.caffe_input(image, (103.939, 116.779, 123.68))
    assert_same_features(
        features(backbone, params, image), networks.squeezenet_forward(x, layers, False)
    )
    with pytest.raises(DataError, match=r"preprocessing .*'caffe'.*'torch'"):
        check_meta(meta, SqueezeNet(preprocessing="torch").description, path=path)
    with pytest.raises(DataError, match="ceil_mode"):
        check_meta(meta, SqueezeNet(ceil_mode=True).description, path=path)
    with pytest.raises(DataError, match="architecture"):
        check_meta(meta, Vgg16().description, path=path)
    with pytest.raises(DataError, match="mean"):
        check_meta(meta, SqueezeNet(mean=(123.68, 116.779, 103.939)).description, path=path)


def write_caffe(folder, blobs, spelling):
    """Write the same blobs in one of the forms that are in circulation."""
    if spelling == "npz":
        path = folder / "vgg.npz"
        np.savez(path, **{f"{n}_{'wb'[i]}": a for n, ab in blobs.items() for i, a in enumerate(ab)})
    elif spelling == "detectron_pkl":
        path = folder / "vgg.pkl"
        flat = {f"{n}_{'wb'[i]}": a for n, ab in blobs.items() for i, a in enumerate(ab)}
        path.write_bytes(pickle.dumps({"blobs": flat, "cfg": "text"}, protocol=2))
    elif spelling == "tensorflow_npy":
        path = folder / "vgg.npy"
        layers = {
            n: {"weights": w.transpose(2, 3, 1, 0), "biases": b} for n, (w, b) in blobs.items()
        }
        np.save(path, layers, allow_pickle=True)
    elif spelling == "lists_pkl5":
        path = folder / "vgg.pkl"
        path.write_bytes(pickle.dumps({n: list(ab) for n, ab in blobs.items()}, protocol=5))
    else:
        path = folder / "vgg.pth"
        torch.save(networks.vgg_state(blobs), path)
    return path


@pytest.mark.parametrize(
    "spelling", ["npz", "detectron_pkl", "tensorflow_npy", "lists_pkl5", "torch_names"]
)
def test_caffe_vgg16_spellings(tmp_path, blobs, spelling):
    path = write_caffe(tmp_path, blobs, spelling)
    params, meta = caffe.convert_vgg16(path, with_fc=False)
    assert set(params) == set(Vgg16().layers) == set(blobs)
    for name, (kernel, bias) in blobs.items():
        np.testing.assert_array_equal(params[name]["kernel"], kernel.transpose(2, 3, 1, 0))
        np.testing.assert_array_equal(params[name]["bias"], bias)
    check_meta(meta, Vgg16().description, path=path)
    with pytest.raises(DataError, match="preprocessing"):
        check_meta(meta, Vgg16(preprocessing="torch").description, path=path)


def test_caffe_vgg16_features(tmp_path, image, blobs):
    params, _ = caffe.convert_vgg16(write_caffe(tmp_path, blobs, "npz"), with_fc=False)
    x = networks.caffe_input(image, (102.9801, 115.9465, 122.7717))
    assert_same_features(features(Vgg16(), params, image), networks.vgg_forward(x, blobs, True))


def test_first_dense_layer_takes_maps_in_row_column_channel_order():
    rng = np.random.default_rng(1)
    pooled = rng.standard_normal((1, 2, 3, 3, 5), np.float32)
    matrix = rng.standard_normal((4, 45), np.float32)
    kernel = conversion.dense_kernel_from_map(matrix, channels=5, side=3)
    found = BoxHead((4,)).apply(
        {"params": {"fc6": {"kernel": kernel, "bias": np.zeros(4, np.float32)}}},
        jax.numpy.asarray(pooled),
    )
    flat = torch.from_numpy(pooled[0]).permute(0, 3, 1, 2).flatten(1)
    expected = torch.relu(flat @ torch.from_numpy(matrix).T)
    np.testing.assert_allclose(found.features[0], expected.numpy(), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["torchvision", "caffe"])
def test_fully_connected_layers_at_full_size(tmp_path, blobs, form):
    rng = np.random.default_rng(2)
    fc6, fc7 = (
        rng.standard_normal((4096, n), np.float32) * np.float32(0.01) for n in (25088, 4096)
    )
    bias6, bias7 = (rng.standard_normal(4096, np.float32) for _ in range(2))
    if form == "torchvision":
        path = tmp_path / "vgg.pth"
        names = (
            "classifier.0.weight",
            "classifier.0.bias",
            "classifier.3.weight",
            "classifier.3.bias",
        )
        tensors = map(torch.from_numpy, (fc6, bias6, fc7, bias7))
        torch.save(networks.vgg_state(blobs) | dict(zip(names, tensors, strict=True)), path)
        params, _ = torchvision.convert_vgg16(path)
    else:
        path = write_caffe(tmp_path, blobs | {"fc6": (fc6, bias6), "fc7": (fc7, bias7)}, "npz")
        params, _ = caffe.convert_vgg16(path)
    pooled = rng.standard_normal((1, 3, 7, 7, 512), np.float32)
    neck_params = {name: params[name] for name in ("fc6", "fc7")}
    found = BoxHead().apply({"params": neck_params}, jax.numpy.asarray(pooled)).features
    flat = torch.from_numpy(pooled[0]).permute(0, 3, 1, 2).flatten(1)
    x = torch.relu(flat @ torch.from_numpy(fc6).T + torch.from_numpy(bias6))
    x = torch.relu(x @ torch.from_numpy(fc7).T + torch.from_numpy(bias7))
    np.testing.assert_allclose(found[0], x.numpy(), atol=1e-4 * float(x.abs().max()))


def test_hash_in_the_name_is_checked(tmp_path):
    path = tmp_path / "keras.npz"
    write_keras_squeezenet(path, networks.squeezenet_layers())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    right = path.rename(tmp_path / f"squeezenet-{digest[:8]}.npz")
    _, meta = keras.convert_squeezenet(right)
    assert digest in meta["source"]
    wrong = right.rename(tmp_path / "squeezenet-0badc0de.npz")
    with pytest.raises(DataError, match=f"0badc0de.*{digest[:8]}"):
        keras.convert_squeezenet(wrong)


def test_files_without_hash_warn(tmp_path):
    path = tmp_path / "keras.npz"
    write_keras_squeezenet(path, networks.squeezenet_layers())
    with pytest.warns(UserWarning, match="keras.npz.*hash"):
        keras.convert_squeezenet(path)


@pytest.mark.parametrize(
    "importer, belongs_to",
    [
        ("caffe_vgg16", "torchvision_vgg16"),
        ("torchvision_vgg16", "caffe_vgg16"),
        ("caffe_vgg16", None),
    ],
)
def test_known_files_of_another_channel_order_are_refused(
    tmp_path, monkeypatch, importer, belongs_to
):
    path = tmp_path / "renamed.pth"
    torch.save({"features.0.weight": torch.zeros(1)}, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    monkeypatch.setitem(conversion.KNOWN_FILES, digest, ("another file", belongs_to))
    convert = {"caffe_vgg16": caffe.convert_vgg16, "torchvision_vgg16": torchvision.convert_vgg16}
    with pytest.raises(DataError, match=belongs_to or "another file"):
        convert[importer](path)


@pytest.mark.parametrize("damage", ["missing", "shape", "nan"])
def test_wrong_arrays_are_named(tmp_path, damage):
    path = tmp_path / "keras.npz"
    write_keras_squeezenet(path, networks.squeezenet_layers())
    arrays = dict(np.load(path))
    if damage == "missing":
        del arrays["fire7/expand3x3/bias"]
    elif damage == "shape":
        arrays["fire7/expand3x3/bias"] = np.zeros(3, np.float32)
    else:
        arrays["fire7/expand3x3/bias"][2] = np.nan
    np.savez(path, **arrays)
    with pytest.raises(DataError, match="fire7/expand3x3/bias"):
        keras.convert_squeezenet(path)


@pytest.fixture(scope="module")
def script():
    path = Path(__file__).parents[2] / "scripts" / "convert_weights.py"
    spec = importlib.util.spec_from_file_location("convert_weights", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_script_converts_and_says_what_it_wrote(tmp_path, script, capsys):
    source, out = tmp_path / "keras.npz", tmp_path / "made" / "squeezenet.npz"
    write_keras_squeezenet(source, networks.squeezenet_layers())
    assert script.main(["--from", "keras_squeezenet_npz", str(source), "--out", str(out)]) == 0
    printed, warned = capsys.readouterr()
    assert "warning: keras.npz" in warned
    assert str(out) in printed and "50 arrays" in printed and "preprocessing: caffe" in printed
    params, meta = load_weights(out)
    assert meta["source"].startswith("keras.npz") and meta["created_by"].startswith("wsod_jax")
    np.testing.assert_array_equal(
        params["fire2"]["squeeze1x1"]["bias"], np.load(source)["fire2/squeeze1x1/bias"]
    )
    assert script.main(["--from", "keras_squeezenet_npz", str(out), "--out", str(out)]) == 1
    assert "already" in capsys.readouterr().err


def test_script_errors_say_what_to_do(tmp_path, script, capsys):
    out = str(tmp_path / "out.npz")
    assert script.main(["--from", "caffe_vgg16", str(tmp_path / "no.npz"), "--out", out]) == 1
    assert "--help" in capsys.readouterr().err
    (tmp_path / "vgg.caffemodel").write_bytes(b"x")
    assert (
        script.main(["--from", "caffe_vgg16", str(tmp_path / "vgg.caffemodel"), "--out", out]) == 1
    )
    assert ".npy" in capsys.readouterr().err
    assert not Path(out).exists()
