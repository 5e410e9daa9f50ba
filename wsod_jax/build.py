"""Tables of methods, backbones, readers and cue sources; from a configuration to objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import optax

from wsod_jax.config import overrides
from wsod_jax.config.parsing import Tables
from wsod_jax.config.run_config import RunConfig, check_run
from wsod_jax.data.proposals.proposal_set import ProposalSet
from wsod_jax.data.readers.coco import Coco
from wsod_jax.data.readers.folder import Folder
from wsod_jax.data.readers.image_folder import ImageFolder
from wsod_jax.data.readers.sbd import Sbd
from wsod_jax.data.readers.tfds import Tfds
from wsod_jax.data.readers.voc import Voc
from wsod_jax.data.records import ImageSet
from wsod_jax.errors import ConfigError
from wsod_jax.methods.base import Method
from wsod_jax.methods.classifier import Classifier
from wsod_jax.methods.mist import Mist
from wsod_jax.methods.oicr import Oicr
from wsod_jax.methods.oim import Oim
from wsod_jax.methods.pcl import Pcl
from wsod_jax.methods.spn import Spn
from wsod_jax.methods.ws_jds import WsJds
from wsod_jax.methods.wsddn import Wsddn
from wsod_jax.nn.cnn_s import CnnS
from wsod_jax.nn.efficientnet_lite import EfficientNetLite0
from wsod_jax.nn.googlenet import GoogLeNet
from wsod_jax.nn.squeezenet import SqueezeNet
from wsod_jax.nn.tiny import TinyNet
from wsod_jax.nn.vgg import Vgg16
from wsod_jax.train.optim import Schedule

METHODS = {
    "classifier": Classifier,
    "wsddn": Wsddn,
    "oicr": Oicr,
    "pcl": Pcl,
    "mist": Mist,
    "oim": Oim,
    "spn": Spn,
    "ws_jds": WsJds,
}
BACKBONES = {
    "vgg16": Vgg16,
    "squeezenet": SqueezeNet,
    "efficientnet_lite0": EfficientNetLite0,
    "tiny": TinyNet,
    "googlenet": GoogLeNet,
    "cnn_s": CnnS,
}
READERS = {
    "voc": Voc,
    "coco": Coco,
    "sbd": Sbd,
    "image_folder": ImageFolder,
    "folder": Folder,
    "tfds": Tfds,
}
CUES: dict[str, type] = {}


def union_tables(methods: Mapping[str, type] = METHODS, cues: Mapping[str, type] = CUES) -> Tables:
    """Return the unions of a configuration; raise `ConfigError` for a method that is not a frozen dataclass."""
    for name, cls in methods.items():
        settings = vars(cls).get("__dataclass_params__")
        if settings is None or not settings.frozen:
            raise ConfigError(
                f"method {name!r}: {cls.__name__} is not a frozen dataclass; write "
                "@dataclass(frozen=True, kw_only=True) above it"
            )
    return {"methods": methods, "backbones": BACKBONES, "readers": READERS, "cues": cues}


def read_config(
    values: Mapping[str, Any],
    *,
    methods: Mapping[str, type] = METHODS,
    cues: Mapping[str, type] = CUES,
) -> RunConfig:
    """Return a run's typed configuration, checked.

    Args:
      values: section -> options: the ConfigDict of a file in configs/, or what a config.json holds.
      methods: name -> class, a frozen dataclass each.
      cues: name -> class of the cue sources.

    Raises:
      ConfigError: for anything that is not allowed; the message names the option, and what is.
    """
    return _checked(overrides.parse_run(values, union_tables(methods, cues)))


def override(
    values: Mapping[str, Any],
    settings: Sequence[str],
    *,
    methods: Mapping[str, type] = METHODS,
    cues: Mapping[str, type] = CUES,
) -> tuple[dict[str, Any], list[str]]:
    """Return values with settings such as "train.num_steps=100" in place, and notes; see `overrides.override`."""
    return overrides.override(values, settings, union_tables(methods, cues))


def change(config: RunConfig, changes: Sequence[str]) -> RunConfig:
    """Return the configuration of a trained run with changes such as "nms_thr=0.4"; see `overrides.change`."""
    return _checked(overrides.change(config, changes))


def method(config: RunConfig, *, num_classes: int, max_classes: int, max_targets: int) -> Method:
    """Make the method.

    Args:
      config: the configuration.
      num_classes: c.
      max_classes: the most positive classes that an image of the training set has.
      max_targets: the most boxes that an image of it has, at least 1; without boxes 1.

    Raises:
      ConfigError: if its constructor refuses its options, or the method cannot be hashed.
    """
    made = config.method.make(
        backbone=config.backbone,
        num_classes=num_classes,
        max_classes=max_classes,
        max_targets=max_targets,
    )
    try:
        hash(made)
    except TypeError as error:
        raise ConfigError(
            f"method {config.method.name!r}: {type(made).__name__} cannot be hashed: {error}; its options are numbers, "
            "text, tuples, None, and frozen dataclasses and flax modules of these"
        ) from error
    return made


def optimizer(config: RunConfig) -> tuple[optax.GradientTransformation, Schedule]:
    """Make the optimizer and its schedule; layers that the backbone freezes get neither step nor memory."""
    frozen = tuple(f"^backbone/{prefix}" for prefix in config.backbone.frozen)
    return config.optim.transformation(config.train.num_steps, frozen)


def cue_source(config: RunConfig, images: ImageSet, proposals: ProposalSet | None) -> Any:
    """Make the cue source, a context manager; `None` for methods that ask for no cues."""
    return config.cues and config.cues.make(images=images, proposals=proposals)


def _checked(config: RunConfig) -> RunConfig:
    some_method = method(config, num_classes=1, max_classes=1, max_targets=1)  # any sizes will do
    check_run(config, some_method)
    return config
