"""From a configuration to objects: the only place that reads one.

A configuration is a `ConfigDict` of sections. Each section becomes the keyword arguments of one typed
constructor, so a misspelt key is an error with a suggestion, and a config goes no further down.

    seed       int
    method     name, and the options of its function in `methods/`
    network    `ProposalNetwork`, or `SpnNetwork` for spn (absent for the classifier)
    soft_proposal  `SoftProposal` (spn alone)
    backbone   name, weights (file or None), and the fields of the module in `nn/`
    neck       `BoxHead` (methods with proposals alone)
    data       reader, splits (train, test, and val if wanted), and the arguments of the reader
    proposals  path, and the fields of `ProposalRules` (absent for methods without proposals)
    train      `TrainSettings`
    optim      `Optimizer`
    log        `LogSettings`
    eval       `EvalSettings`
    localization  `LocalizationSettings` (spn alone)
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import optax
from ml_collections import ConfigDict, FrozenConfigDict

from wsod_jax.config_values import suggestion
from wsod_jax.construction import choose, construct, hidden
from wsod_jax.data import coco, folder, image_folder, tfds, voc
from wsod_jax.data.proposals import ProposalSet
from wsod_jax.data.records import GroundTruth, ImageSet, check_single_label, is_single_label
from wsod_jax.data.transforms import ProposalRules
from wsod_jax.errors import ConfigError
from wsod_jax.methods.base import Method
from wsod_jax.methods.classifier import Classifier
from wsod_jax.methods.mist import Mist
from wsod_jax.methods.oicr import Oicr
from wsod_jax.methods.oim import Oim
from wsod_jax.methods.pcl import Pcl
from wsod_jax.methods.spn import Spn
from wsod_jax.methods.wsddn import Wsddn
from wsod_jax.nn.backbone import Backbone
from wsod_jax.nn.box_head import BoxHead
from wsod_jax.nn.cnn_s import CnnS
from wsod_jax.nn.googlenet import GoogLeNet
from wsod_jax.nn.proposal_network import ProposalNetwork
from wsod_jax.nn.soft_proposal import SoftProposal
from wsod_jax.nn.spn_network import SpnNetwork
from wsod_jax.nn.squeezenet import SqueezeNet
from wsod_jax.nn.tiny import TinyNet
from wsod_jax.nn.vgg import Vgg16
from wsod_jax.settings import EvalSettings, LocalizationSettings, LogSettings, TrainSettings
from wsod_jax.train.init_from import init_from, read_sources
from wsod_jax.train.optim import Group, Optimizer, Schedule
from wsod_jax.types import Params

logger = logging.getLogger(__name__)

METHODS = {
    "classifier": Classifier,
    "wsddn": Wsddn,
    "oicr": Oicr,
    "pcl": Pcl,
    "mist": Mist,
    "oim": Oim,
    "spn": Spn,
}
BACKBONES = {
    "vgg16": Vgg16,
    "squeezenet": SqueezeNet,
    "tiny": TinyNet,
    "googlenet": GoogLeNet,
    "cnn_s": CnnS,
}
READERS = {
    "voc": voc,
    "coco": coco,
    "image_folder": image_folder,
    "folder": folder,
    "tfds": tfds,
}
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
SECTIONS = ("seed", "method", "backbone", "data", "train", "optim", "log", "eval")
# What a method needs beside them; methods that are not named here score proposals.
SECTIONS_OF = {
    "classifier": (),
    "spn": ("network", "soft_proposal", "localization"),
}
SECTIONS_WITH_PROPOSALS = ("network", "neck")


def sections_of(method_name: str) -> tuple[str, ...]:
    """Return the sections that a configuration of a method has; `proposals` may be there too."""
    return (*SECTIONS, *SECTIONS_OF.get(method_name, SECTIONS_WITH_PROPOSALS))


def check_section_name(key: str) -> None:
    """Raise `ConfigError` unless a configuration can have a section `key`, with the closest that exists."""
    known = dict.fromkeys(["proposals", *(name for m in METHODS for name in sections_of(m))])
    if key not in known:
        raise ConfigError(
            f"config.{key} is no section; sections are {', '.join(known)}"
            + suggestion(key, list(known))
        )


def check_sections(config: ConfigDict | FrozenConfigDict) -> None:
    """Raise `ConfigError` for a section that does not exist, is missing, or is none of the method's."""
    for key in config:
        check_section_name(key)
    name = config.get("method", {}).get("name")
    wanted = sections_of(name)
    missing = [key for key in wanted if key not in config]
    if missing:
        raise ConfigError(
            f"config lacks {', '.join(missing)}; configs/debug_tiny.py shows every section"
        )
    allowed = wanted if name in SECTIONS_OF else (*wanted, "proposals")
    unread = [key for key in config if key not in allowed]
    if unread:
        raise ConfigError(
            f"config.{unread[0]} is a section that method {name!r} does not read; it reads {', '.join(allowed)}"
        )


def backbone(config: ConfigDict) -> Backbone:
    """Make the backbone module."""
    module, options = choose(BACKBONES, config.backbone, "backbone")
    options.pop("weights", None)
    dtype = _dtype(options.pop("dtype", "float32"), "backbone")
    return construct(module, options, "backbone", dtype=dtype)


def method(config: ConfigDict, *, num_classes: int, max_classes: int) -> Method:
    """Make the method: its network, mining and losses.

    Args:
      config: the whole configuration.
      num_classes: c.
      max_classes: the most positive classes that an image of the training set has.
    """
    check_sections(config)
    function, options = choose(METHODS, config.method, "method")
    parts = {
        "backbone": backbone(config),
        "num_classes": num_classes,
        "max_classes": max_classes,
    }
    declared = {field.name for field in dataclasses.fields(function)}
    options |= dict(config.get("network", {}).items())
    if config.method.name == "wsddn":
        options.pop("num_stages", None)
    if "neck" in config:
        neck_options = dict(config.neck.items())
        dtype = _dtype(neck_options.pop("dtype", "float32"), "neck")
        options["box_head"] = construct(BoxHead, neck_options, "neck", dtype=dtype)
    if "soft_proposal" in config:
        options["soft_proposal"] = construct(SoftProposal, config.soft_proposal, "soft_proposal")
    given = {key: value for key, value in parts.items() if key in declared}
    return construct(function, options, "method", **given)


def optimizer(config: ConfigDict) -> tuple[optax.GradientTransformation, Schedule]:
    """Make the optimizer and its schedule; layers that the backbone freezes get neither step nor memory."""
    options = dict(config.optim.items())
    options["groups"] = tuple(map(_group, options.get("groups", ())))
    frozen = tuple(f"^backbone/{prefix}" for prefix in config.backbone.get("frozen", ()))
    chosen = construct(Optimizer, options, "optim")
    return chosen.transformation(config.train.num_steps, frozen)


def _group(values: Sequence[Any] | Mapping[str, Any]) -> Group:
    """Make a group of parameters of its options by name, or in the order of the fields of `Group`."""
    if not isinstance(values, Mapping):
        names = [field.name for field in dataclasses.fields(Group)]
        if isinstance(values, str) or len(values) > len(names):
            raise ConfigError(
                f"config.optim.groups holds {values!r}; a group is a tuple of up to {len(names)} values "
                f"({', '.join(names)}), or a dict of these"
            )
        values = dict(zip(names, values, strict=False))
    return construct(Group, values, "optim.groups")


def warm_start(
    config: ConfigDict,
) -> Callable[[Params, dict], tuple[Params, dict]] | None:
    """Return the function that puts other weights into drawn parameters and extras, or `None`.

    Raises:
      DataError: if the file or run is missing, damaged, or was made for another network.
    """
    path = config.backbone.get("weights")
    if path is None:
        return None
    sources = read_sources((path,), backbone(config).description)

    def merge(params: Params, extras: dict) -> tuple[Params, dict]:
        params, extras, report = init_from(params, extras, sources)
        print(f"weights: {report}")
        return params, extras

    return merge


def images(config: ConfigDict, split: str) -> ImageSet:
    """Read a split's images and labels. No box is read."""
    reader, options = _reader(config, split)
    if hasattr(reader, "read_ground_truth"):
        options = _of_function(options, reader.read_image_set, reader.read_ground_truth)
    if "split" in inspect.signature(reader.read_image_set).parameters:
        return construct(reader.read_image_set, options, "data", split=split)
    return construct(reader.read_image_set, options, "data")


def check_labels(config: ConfigDict, image_set: ImageSet) -> None:
    """Raise `DataError` if a method's softmax meets an image without exactly one class; log the reverse."""
    function, options = choose(METHODS, config.method, "method")
    parameter = inspect.signature(function).parameters.get("activation")
    if parameter is None:
        return
    if options.get("activation", parameter.default) == "softmax":
        check_single_label(image_set)
    elif is_single_label(image_set):
        logger.warning(
            "%s: every image shows one class; config.method.activation='softmax' makes use of that",
            image_set.name,
        )


def has_boxes(config: ConfigDict) -> bool:
    """Return whether the data's reader knows boxes, so that detections can be measured."""
    return hasattr(_reader(config, "")[0], "read_ground_truth")


def ground_truth(config: ConfigDict, split: str) -> GroundTruth:
    """Read a split's boxes, for evaluation."""
    reader, options = _reader(config, split)
    if not hasattr(reader, "read_ground_truth"):
        raise ConfigError(
            f"data read by {config.data.reader!r} has no boxes, so nothing can be measured; "
            "scripts/predict.py draws detections without"
        )
    options = _of_function(options, reader.read_ground_truth, reader.read_image_set)
    return construct(reader.read_ground_truth, options, "data", split=split)


def proposals(config: ConfigDict) -> ProposalSet | None:
    """Load the proposals; `None` for methods without."""
    if "proposals" not in config:
        return None
    if config.proposals.get("path") is None:
        raise ConfigError("config.proposals lacks path; scripts/make_proposals.py makes the file")
    return ProposalSet.load(config.proposals.path)


def proposal_rules(config: ConfigDict) -> ProposalRules | None:
    """Make the rules of which proposals are used; `None` for methods without."""
    if "proposals" not in config:
        return None
    options = {key: value for key, value in config.proposals.items() if key != "path"}
    return construct(ProposalRules, options, "proposals")


def train_settings(config: ConfigDict) -> TrainSettings:
    """Make the training settings."""
    return construct(TrainSettings, config.train, "train")


def log_settings(config: ConfigDict) -> LogSettings:
    """Make the logging settings."""
    return construct(LogSettings, config.log, "log")


def eval_settings(config: ConfigDict) -> EvalSettings:
    """Make the evaluation settings."""
    return construct(EvalSettings, config.eval, "eval")


def localization_settings(config: ConfigDict) -> LocalizationSettings | None:
    """Make the settings of reading maps; `None` for methods without."""
    if "localization" not in config:
        return None
    return construct(LocalizationSettings, config.localization, "localization")


def settings_used(config: ConfigDict) -> dict[str, dict[str, Any]]:
    """Return all that a trained detector was made with, by section: what is set, and the defaults of the rest."""
    functions = {
        "method": [METHODS[config.method.name]],
        "network": [SpnNetwork if config.method.name == "spn" else ProposalNetwork],
        "soft_proposal": [SoftProposal],
        "backbone": [BACKBONES[config.backbone.name]],
        "neck": [BoxHead],
        "data": [READERS[config.data.reader].read_image_set],
        "proposals": [ProposalRules],
        "train": [TrainSettings],
        "optim": [Optimizer],
    }
    used = {}
    for section in functions.keys() & config.keys():
        defaults = {
            key: parameter.default
            for function in functions[section]
            for key, parameter in inspect.signature(function).parameters.items()
            if parameter.default is not inspect.Parameter.empty and key not in hidden(function)
        }
        if "dtype" in defaults:
            defaults["dtype"] = jnp.dtype(defaults["dtype"]).name
        used[section] = defaults | config[section].to_dict()
    return {section: used[section] for section in functions if section in used}


def load_config(path: str | Path) -> ConfigDict:
    """Read a configuration that a run has stored as JSON."""
    return from_dict(json.loads(Path(path).read_text(encoding="utf-8")))


def from_dict(values: Mapping[str, Any]) -> ConfigDict:
    """Make a configuration of plain values, as checkpoints store it."""
    config = ConfigDict(dict(values), convert_dict=True)
    check_sections(config)
    return config


def _reader(config: ConfigDict, split: str) -> tuple[Any, dict]:
    """Return the data's reader and its arguments for a split, which may be of a year of its own."""
    options = dict(config.data.items())
    name, test_year = options.pop("reader", None), options.pop("test_year", None)
    splits = {key: options.pop(key, None) for key in ("train_split", "val_split", "test_split")}
    if test_year is not None and split == splits["test_split"]:
        options["year"] = test_year
    return choose(READERS, {"name": name}, "data.reader")[0], options


def _of_function(options: dict, function: Callable, other: Callable) -> dict:
    """Return the options without those that only another function of the same section takes."""
    own, others = (inspect.signature(f).parameters for f in (function, other))
    return {key: value for key, value in options.items() if key in own or key not in others}


def _dtype(name: str, section: str) -> jnp.dtype:
    if name not in DTYPES:
        raise ConfigError(f"config.{section}.dtype is {name!r}; allowed are {', '.join(DTYPES)}")
    return DTYPES[name]
