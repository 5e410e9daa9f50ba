"""GoogLeNet and VGG-CNN-S: converted files give the features of independent torch networks; others are refused."""

import functools
import hashlib
import pickle

import jax
import numpy as np
import pytest

from tests.nn.cases import apply
from wsod_jax.commands import convert_weights
from wsod_jax.convert import caffe, conversion, torchvision
from wsod_jax.errors import DataError
from wsod_jax.nn.cnn_s import CnnS
from wsod_jax.nn.googlenet import GoogLeNet
from wsod_jax.nn.vgg import Vgg16
from wsod_jax.train.weights import check_meta, load_weights

torch = pytest.importorskip("torch")
from tests.convert import networks  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:.*has no hash")

CAFFE_GOOGLENET = dict(preprocessing="caffe", branch3_kernel=5, pool4_window=3, lrn=True)


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).integers(0, 256, (1, 67, 90, 3), np.uint8)


@pytest.fixture(scope="module")
def state():
    return networks.googlenet_state()


def assert_same_features(backbone, params, image, expected):
    size = np.array([image.shape[1:3]], np.int32)
    found = jax.jit(functools.partial(apply, backbone))({"params": params}, image, size)
    found, expected = np.asarray(found.features).transpose(0, 3, 1, 2), expected.numpy()
    assert found.shape == expected.shape
    scale = np.abs(expected).max()
    assert scale > 0.1 and np.mean(expected > 0) > 0.2
    np.testing.assert_allclose(found, expected, atol=2e-5 * scale)


def test_torchvision_googlenet(tmp_path, image, state):
    path = tmp_path / "googlenet.pth"
    torch.save(state, path)
    params, meta = torchvision.convert_googlenet(path)
    assert set(params) == set(GoogLeNet(ends_at="inception5b").layers)
    expected = networks.googlenet_forward(
        networks.inception_input(image),
        networks.batch_normed(state),
        branch3_pad=1,
        pool4=2,
        lrn=False,
    )
    for ends_at, features in zip(("inception4e", "inception5b"), expected, strict=True):
        backbone = GoogLeNet(ends_at=ends_at)
        check_meta(meta, backbone.description, path=path)
        used = {name: params[name] for name in backbone.layers}
        assert_same_features(backbone, used, image, features)


@pytest.mark.parametrize(
    "backbone, wrong",
    [
        (GoogLeNet(preprocessing="torch"), "preprocessing"),
        (GoogLeNet(branch3_kernel=5), "branch3_kernel"),
        (GoogLeNet(lrn=True), "lrn"),
        (GoogLeNet(ends_at="inception5b", pool4_window=3), "pool4_window"),
        (CnnS(), "architecture"),
        (Vgg16(), "architecture"),
    ],
)
def test_weights_of_another_network_are_refused(backbone, wrong):
    meta = GoogLeNet(ends_at="inception5b").description
    with pytest.raises(DataError, match=wrong):
        check_meta(meta, backbone.description, path="googlenet.npz")


@pytest.mark.parametrize(
    "name, damage, message",
    [
        ("inception4c.branch3.1.conv.weight", None, " 2 of .*inception4c/branch3/"),
        ("inception4c.branch3.1.bn.running_var", None, "branch3.1.bn.running_var"),
        ("conv1.bn.bias", torch.zeros(3), r"conv1.bn.bias.*\(3,\).*\(64,\)"),
        ("conv2.bn.running_var", -torch.ones(64), "conv2.bn.running_var"),
        ("conv2.bn.running_mean", torch.full((64,), torch.nan), "conv2/bias.*finite"),
        ("inception3a.branch3.1.conv.weight", torch.zeros(32, 16, 5, 5), "inception3a/branch3"),
    ],
)
def test_damaged_batch_normalization_is_named(tmp_path, state, name, damage, message):
    damaged = {key: value for key, value in state.items() if key != name}
    if damage is not None:
        damaged[name] = damage
    path = tmp_path / "googlenet.pth"
    torch.save(damaged, path)
    with pytest.raises(DataError, match=message):
        torchvision.convert_googlenet(path)


def caffe_names(blobs):
    """Rename GoogLeNet's convolutions from torchvision's places to Caffe's names."""
    branches = {"1": "1x1", "2.0": "3x3_reduce", "2.1": "3x3"}
    branches |= {"3.0": "5x5_reduce", "3.1": "5x5", "4.1": "pool_proj"}
    stem = {"conv1": "conv1/7x7_s2", "conv2": "conv2/3x3_reduce", "conv3": "conv2/3x3"}
    renamed = {}
    for place, arrays in blobs.items():
        if place in stem:
            renamed[stem[place]] = arrays
        else:
            module, branch = place.removeprefix("inception").split(".branch")
            renamed[f"inception_{module}/{branches[branch]}"] = arrays
    return renamed


def write_blobs(path, blobs):
    """Write Caffe's blobs as its users export them: an npz, or a pickle of lists."""
    if path.suffix == ".npz":
        flat = {f"{name}_{'wb'[i]}": a for name, ab in blobs.items() for i, a in enumerate(ab)}
        np.savez(path, **flat)
    else:
        path.write_bytes(pickle.dumps({name: list(ab) for name, ab in blobs.items()}))
    return path


def test_caffe_googlenet(tmp_path, image):
    blobs = networks.googlenet_blobs()
    params, meta = caffe.convert_googlenet(
        write_blobs(tmp_path / "googlenet.npz", caffe_names(blobs))
    )
    backbone = GoogLeNet(ends_at="inception5b", **CAFFE_GOOGLENET)
    check_meta(meta, backbone.description, path="googlenet.npz")
    x = networks.caffe_input(image, backbone.mean)
    _, expected = networks.googlenet_forward(
        x, networks.biased(blobs), branch3_pad=2, pool4=3, lrn=True
    )
    assert_same_features(backbone, params, image, expected)


@pytest.mark.parametrize("ending", [".npz", ".pkl"])
def test_caffe_cnn_s(tmp_path, image, ending):
    blobs = networks.cnn_s_blobs()
    with_fc = blobs | {"fc6": (np.ones((8, 512 * 36)), np.ones(8))}
    params, meta = caffe.convert_cnn_s(write_blobs(tmp_path / f"cnn_s{ending}", with_fc))
    assert set(params) == set(CnnS().layers)
    check_meta(meta, CnnS().description, path="cnn_s.npz")
    with pytest.raises(DataError, match="architecture"):
        check_meta(meta, Vgg16().description, path="cnn_s.npz")
    x = networks.caffe_input(image, (103.939, 116.779, 123.68))
    assert_same_features(CnnS(), params, image, networks.cnn_s_forward(x, blobs))


def test_old_blobs_have_four_axes_everywhere(tmp_path):
    blobs = networks.cnn_s_blobs()
    old = {name: (kernel, bias.reshape(1, 1, 1, -1)) for name, (kernel, bias) in blobs.items()}
    params, _ = caffe.convert_cnn_s(write_blobs(tmp_path / "cnn_s.npz", old))
    for name, (kernel, bias) in blobs.items():
        np.testing.assert_array_equal(params[name]["kernel"], kernel.transpose(2, 3, 1, 0))
        np.testing.assert_array_equal(params[name]["bias"], bias)


def test_blobs_of_another_network_are_refused(tmp_path):
    path = write_blobs(tmp_path / "vgg.npz", networks.vgg_blobs())
    with pytest.raises(DataError, match="10 of 10 .*conv1/"):
        caffe.convert_cnn_s(path)
    blobs = networks.cnn_s_blobs() | {"conv4": networks.conv(np.random.default_rng(0), 256, 512, 3)}
    with pytest.raises(DataError, match="conv4/kernel.* .3, 3, 256, 512."):
        caffe.convert_cnn_s(write_blobs(tmp_path / "cnn.npz", blobs))


def test_torchvision_file_under_another_name_is_known_by_its_content(tmp_path, monkeypatch, state):
    path = tmp_path / "renamed.pth"
    torch.save(state, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    entry = conversion.KNOWN_FILES["1378be20"]
    monkeypatch.setitem(conversion.KNOWN_FILES, digest, entry)
    with pytest.raises(DataError, match="--from torchvision_googlenet"):
        caffe.convert_googlenet(path)
    torchvision.convert_googlenet(path)


def test_script_knows_the_importers(tmp_path, state, capsys):
    torch.save(state, tmp_path / "googlenet.pth")
    write_blobs(tmp_path / "googlenet.npz", caffe_names(networks.googlenet_blobs()))
    write_blobs(tmp_path / "cnn_s.npz", networks.cnn_s_blobs())
    for importer, file, facts in (
        ("torchvision_googlenet", "googlenet.pth", ("googlenet", "tf")),
        ("caffe_googlenet", "googlenet.npz", ("googlenet", "caffe")),
        ("caffe_cnn_s", "cnn_s.npz", ("cnn_s", "caffe")),
    ):
        out = tmp_path / f"{importer}.npz"
        argv = ["--from", importer, str(tmp_path / file), "--out", str(out)]
        assert convert_weights.main(argv) == 0, capsys.readouterr().err
        _, meta = load_weights(out)
        assert (meta["architecture"], meta["preprocessing"]) == facts
