"""Weight files, .npz or .safetensors: an array per parameter, and a JSON description.

Keys are parameter paths, of a backbone and its fully connected layers ("fire2/squeeze1x1/kernel", "fc6/bias"), or of a
whole network ("backbone/fire2/squeeze1x1/kernel", "box_head/fc6/bias"); kernels are [rows, columns, in, out] or
[in, out], float32. The entry "__meta__" (in safetensors: of the file's metadata) is JSON:

    architecture   name of the network ("vgg16", "squeezenet1_1", "googlenet", "cnn_s", "tiny", ...)
    preprocessing  of the input ("caffe", "torch", "tf", ...); with "caffe", `mean` is the blue, green, red mean
    source         file or run that the numbers come from
    created_by     program that wrote the file
    checksum       "sha256:..." over names, shapes and values of all arrays

and further properties of the architecture (SqueezeNet: `ceil_mode`; GoogLeNet: `branch3_kernel`, `lrn`,
`pool4_window`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from flax.traverse_util import flatten_dict, unflatten_dict

from wsod_jax import __version__
from wsod_jax.errors import DataError
from wsod_jax.files import array_checksum, atomic_write, read_npz
from wsod_jax.types import Params

META_KEY = "__meta__"
_OLD_PIXELS = {"torchvision": "torch", "inception": "tf"}  # written by version 0.1, as "pixels"
SUFFIXES = (".npz", ".safetensors")
MEAN_TOLERANCE = 2.0  # gray levels of 255


def save_weights(path: str | Path, params: Params, meta: Mapping[str, Any]) -> dict[str, Any]:
    """Write parameters and their description, atomically.

    Args:
      path: file to write, ending in .npz or .safetensors; its folder is made if absent.
      params: nested dict of arrays.
      meta: description in JSON types, with at least "architecture", "preprocessing" and "source". A backbone's
        `description` has all but the last.

    Returns:
      The description as written, with `created_by` and `checksum` added.

    Raises:
      DataError: `path` ends in something else, or `meta` lacks a key.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise DataError(f"weights file {path} must end in {' or '.join(SUFFIXES)}")
    lacking = [key for key in ("architecture", "preprocessing", "source") if key not in meta]
    if lacking:
        raise DataError(f"description of weights for {path} lacks {', '.join(lacking)}")
    # order="C": safetensors writes the buffer as it is, whatever its order.
    arrays = {n: np.asarray(leaf, order="C") for n, leaf in flatten_dict(params, sep="/").items()}
    written = {
        "created_by": f"wsod_jax {__version__}",
        **meta,
        "checksum": array_checksum(arrays),
    }
    description = json.dumps(written)
    with atomic_write(path, "wb") as file:
        if path.suffix == ".npz":
            np.savez(file, **arrays, **{META_KEY: np.asarray(description)})
        else:
            file.write(safetensors.numpy.save(arrays, {META_KEY: description}))
    return written


def load_weights(path: str | Path) -> tuple[Params, dict[str, Any]]:
    """Read a file written by `save_weights` and check its checksum.

    Args:
      path: a file of either form with a "__meta__" entry.

    Returns:
      params: nested dict of NumPy arrays.
      meta: the description.

    Raises:
      DataError: the file is missing, damaged, or not in this format; the message says how to get one.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(missing_weights(path))
    arrays, description = _read(path)
    if description is None:
        raise DataError(
            f"weights file {path} has no {META_KEY!r} entry, so its preprocessing is unknown; convert it with "
            "wsod-jax convert_weights (for a Keras-style npz: --from keras_squeezenet_npz)"
        )
    try:
        meta = dict(json.loads(description))
    except ValueError as error:
        raise DataError(
            f"weights file {path}: {META_KEY!r} is not a JSON object ({error})"
        ) from error
    if "pixels" in meta:
        old = meta.pop("pixels")
        meta["preprocessing"] = _OLD_PIXELS.get(old, old)
    checksum = array_checksum(arrays)
    if checksum != meta.get("checksum"):
        raise DataError(
            f"weights file {path} is damaged: its arrays have checksum {checksum}, its description says "
            f"{meta.get('checksum')}; convert or copy it again"
        )
    return unflatten_dict(arrays, sep="/"), meta


def _read(path: Path) -> tuple[dict[str, np.ndarray], str | None]:
    """Return a file's arrays, and its description if it has one."""
    again = "Convert or copy it again."
    if path.suffix == ".safetensors":
        try:
            with safetensors.safe_open(path, "numpy") as file:
                arrays = {name: file.get_tensor(name) for name in file.keys()}
                return arrays, (file.metadata() or {}).get(META_KEY)
        except (OSError, safetensors.SafetensorError) as error:
            raise DataError(f"{path} cannot be read as safetensors ({error}). {again}") from error
    arrays = read_npz(path, advice=again)
    description = arrays.pop(META_KEY, None)
    return arrays, None if description is None else str(description)


def missing_weights(path: Path) -> str:
    """Return a message that says how to get the weights missing at `path`."""
    return (
        f"No weights at {path}. Download them on a machine with internet access, e.g. with torchvision: "
        "python -c \"import torchvision.models as m; m.vgg16(weights='IMAGENET1K_V1')\" "
        "(or m.squeezenet1_1, m.googlenet; the .pth file is in ~/.cache/torch/hub/checkpoints), and run "
        f"wsod-jax convert_weights --from torchvision_vgg16 FILE.pth --out {path} "
        "(or torchvision_squeezenet1_1, torchvision_googlenet, caffe_vgg16, caffe_cnn_s, ...; see its --help)"
    )


def check_meta(
    meta: Mapping[str, Any], description: Mapping[str, Any], *, path: str | Path
) -> None:
    """Check that weights fit a network.

    Args:
      meta: description from `load_weights`, or of the backbone of a run.
      description: the backbone's `description`.
      path: the weights file or run, for the message.

    Raises:
      DataError: architecture, preprocessing, mean or pooling differ, which would give wrong features silently. Means
        may differ by up to `MEAN_TOLERANCE` per channel, as the field uses the same weights with several means.
    """
    wrong = [
        f"{key} is {meta.get(key)!r} in the file and {value!r} in the network"
        for key, value in description.items()
        if not _agree(key, meta.get(key), value)
    ]
    if wrong:
        raise DataError(
            f"the weights of {path} do not fit the backbone: {'; '.join(wrong)}. Set the backbone's options to the "
            "file's values, or convert other weights with wsod-jax convert_weights"
        )


def _agree(key: str, found: Any, expected: Any) -> bool:
    """Compare one entry of two descriptions."""
    if key == "mean" and isinstance(found, list) and len(found) == len(expected):
        return bool(np.allclose(found, expected, rtol=0, atol=MEAN_TOLERANCE))
    return found == expected
