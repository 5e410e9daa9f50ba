"""Reading .pth files without torch: both formats, every dtype, views, damage, and pickles that want to run."""

import collections
import io
import os
import pickle
import zipfile

import numpy as np
import pytest
import safetensors.numpy

from wsod_jax.convert import caffe, torch_file, torchvision
from wsod_jax.convert.torch_file import read_torch_file
from wsod_jax.errors import DataError


class Payload:
    """Unpickles to a call of os.system."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def as_torch_zip(path, pickled):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", "3\n")


def as_old_torch(path, pickled):
    with path.open("wb") as file:
        pickle.dump(torch_file.OLD_MAGIC, file, protocol=2)
        pickle.dump(1001, file, protocol=2)
        pickle.dump({"little_endian": True}, file, protocol=2)
        file.write(pickled)
        pickle.dump([], file, protocol=2)


def as_pickle(path, pickled):
    path.write_bytes(pickled)


def as_npy(path, pickled):
    np.save(path, np.empty((), object), allow_pickle=True)
    header = path.read_bytes()[:128]
    path.write_bytes(header + pickled)


@pytest.mark.filterwarnings("ignore:.*has no hash")
@pytest.mark.parametrize(
    "name, write",
    [
        ("x.pth", as_torch_zip),
        ("old.pth", as_old_torch),
        ("bare.pth", as_pickle),
        ("x.pkl", as_pickle),
        ("x.npy", as_npy),
    ],
)
def test_malicious_pickles_do_not_run(tmp_path, name, write):
    proof = tmp_path / "ran"
    path = tmp_path / name
    pickled = pickle.dumps({"conv1_1_w": Payload(f"touch {proof}")}, protocol=2)
    write(path, pickled)
    read = read_torch_file if path.suffix == ".pth" else caffe.convert_vgg16
    with pytest.raises(DataError) as caught:
        read(path)
    assert not proof.exists()
    if name != "bare.pth":  # that one is refused before its pickle is looked into
        assert "system" in str(caught.value)
    pickle.loads(pickled)
    assert proof.exists()  # the payload works where nothing holds it back


@pytest.mark.parametrize("old_format", [False, True])
def test_dtypes_views_and_shared_storages(tmp_path, old_format):
    torch = pytest.importorskip("torch")
    base = torch.arange(24, dtype=torch.float32)
    state = collections.OrderedDict(
        plain=base.reshape(2, 3, 4),
        transposed=base.reshape(4, 6).T,
        slice=base[5:17:3],
        scalar=torch.tensor(7.5),
        empty=torch.zeros(0, 3),
        parameter=torch.nn.Parameter(torch.ones(2)).data,
        **{
            f"typed_{i}": torch.tensor([0, 1, 2]).to(dtype)
            for i, dtype in enumerate(
                (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool)
            )
        },
    )
    path = tmp_path / "x.pth"
    torch.save(state, path, _use_new_zipfile_serialization=not old_format)
    arrays = read_torch_file(path)
    assert set(arrays) == set(state)
    for name, tensor in state.items():
        assert arrays[name].shape == tuple(tensor.shape)
        np.testing.assert_array_equal(arrays[name].astype(np.float64), tensor.double().numpy())
    assert str(arrays["typed_2"].dtype) == "bfloat16"
    for key in ("state_dict", "model_state_dict", "net"):
        torch.save({key: state, "epoch": 3}, path)
        assert set(read_torch_file(path)) == set(state)


def test_a_whole_model_is_refused(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "model.pth"
    torch.save(torch.nn.Linear(2, 2), path)
    with pytest.raises(DataError, match="Linear.*state_dict"):
        read_torch_file(path)


@pytest.mark.parametrize("old_format", [False, True])
def test_truncated_files(tmp_path, old_format):
    torch = pytest.importorskip("torch")
    path = tmp_path / "x.pth"
    torch.save({"a": torch.zeros(1000)}, path, _use_new_zipfile_serialization=not old_format)
    whole = path.read_bytes()
    for length in (0, 3, 40, len(whole) // 2, len(whole) - 10):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match="x.pth"):
            read_torch_file(path)


STORAGE = object()  # pickled as a persistent id


class Tensor:
    """Pickles as torch pickles a tensor."""

    def __init__(self, module, offset, shape, strides):
        self.parts = module, offset, shape, strides

    def __reduce__(self):
        module, *view = self.parts
        return module._utils._rebuild_tensor_v2, (STORAGE, *view, False, None)


@pytest.mark.parametrize(
    "view",
    [
        (0, (5,), (1,)),
        (2, (3,), (1,)),
        (0, (2, 2), (3, 2)),
        (-1, (2,), (1,)),
        (0, (9, 9), (0, 0)),
        (0, (2,), (1, 1)),
    ],
)
def test_tensors_stay_within_their_storage(tmp_path, view):
    torch = pytest.importorskip("torch")

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj):
            return ("storage", torch.FloatStorage, "0", "cpu", 4) if obj is STORAGE else None

    file = io.BytesIO()
    Pickler(file, protocol=2).dump(
        {"good": Tensor(torch, 1, (3,), (1,)), "bad": Tensor(torch, *view)}
    )
    path = tmp_path / "x.pth"
    as_torch_zip(path, file.getvalue())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/data/0", np.arange(4, dtype=np.float32).tobytes())
    with pytest.raises(DataError, match="bad"):
        read_torch_file(path)


def test_files_that_are_something_else(tmp_path):
    path = tmp_path / "x.pth"
    path.write_bytes(b"not a pickle at all")
    with pytest.raises(DataError, match="x.pth"):
        read_torch_file(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(DataError, match="torch.save"):
        read_torch_file(path)
    as_torch_zip(path, pickle.dumps({"epoch": 3}, protocol=2))
    with pytest.raises(DataError, match="tensors"):
        read_torch_file(path)


def test_safetensors(tmp_path):
    path = tmp_path / "x.safetensors"
    kernel = np.arange(6, dtype=np.float16).reshape(2, 3)
    safetensors.numpy.save_file({"conv1.weight": kernel}, path)
    np.testing.assert_array_equal(read_torch_file(path)["conv1.weight"], kernel)
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(DataError, match="x.safetensors.*damaged"):
        read_torch_file(path)


@pytest.mark.parametrize("prefix", ["", "module.", "model.encoder."])
def test_prefixes_come_off(tmp_path, prefix):
    state = {"conv1.weight": np.ones((2, 3)), "conv1.bias": np.zeros(2)}
    wrapped = {f"{prefix}{name}": array for name, array in state.items()}
    path = tmp_path / "x.safetensors"
    safetensors.numpy.save_file(wrapped | {"head.conv2.bias": np.ones(1)}, path)
    found = read_torch_file(path, "conv1.weight")
    assert state.keys() <= found.keys() and len(found) == (2 if prefix else 3)
    np.testing.assert_array_equal(found["conv1.weight"], state["conv1.weight"])


def test_a_file_of_two_networks_or_of_another_one_is_refused(tmp_path):
    path, array = tmp_path / "x.safetensors", np.ones(1)
    both = {"student.features.0.weight": array, "teacher.features.0.weight": array}
    safetensors.numpy.save_file(both, path)
    with pytest.raises(DataError, match="features.0.weight.*'student.' .*'teacher.'"):
        torchvision.convert_squeezenet(path)
    safetensors.numpy.save_file({"body.0.weight": array}, path)
    with pytest.raises(DataError, match="'features.0.weight'.*'body.0.weight'"):
        torchvision.convert_squeezenet(path)
