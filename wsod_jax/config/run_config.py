"""The configuration of one run, as typed sections. Each field declares its allowed values.

    seed       int
    method     name, and the options of its class in `methods/`
    backbone   name, and the fields of its module in `nn/`
    data       reader, and the options of its class in `data/readers/`
    proposals  `Proposals`; None for methods that use none
    cues       name, and the options of its class; None for methods that ask for none (no cue source is shipped)
    train      `TrainOptions`
    optim      `Optimizer`
    log        `LogOptions`
    eval       `EvalOptions`

The sections are known here, the methods, backbones, readers and cue sources are not: their tables come from
`build.py`, whose `read_config` turns plain values into a `RunConfig`.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import flax.linen as nn

from wsod_jax.config.eval_options import EvalOptions, MapOptions
from wsod_jax.config.parsing import Chosen, Tables, option_hints, to_values
from wsod_jax.data.input.plan import Jitter
from wsod_jax.data.input.proposal_rows import ProposalRules
from wsod_jax.data.input.transforms import Canvases, Resize
from wsod_jax.errors import ConfigError, error_prefix
from wsod_jax.options import BELOW_ONE, COUNT, NOT_NEGATIVE, Choice, Mark, Range
from wsod_jax.train.optim import Optimizer, check_expressions


@dataclass(frozen=True, kw_only=True)
class Proposals(ProposalRules):
    """Where the proposals lie, and which of them are used; see `ProposalRules`.

    Attributes:
      path: a file of proposals.
    """

    path: Annotated[str, Mark.LOCATION] = dataclasses.field(
        metadata={"advice": "wsod-jax make_proposals makes the file"}
    )

    @property
    def rules(self) -> ProposalRules:
        """Which proposals are used, without the file."""
        names = [field.name for field in dataclasses.fields(ProposalRules)]
        return ProposalRules(**{name: getattr(self, name) for name in names})


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """How a run trains.

    Attributes:
      num_steps: optimizer updates.
      micro_batch: images per forward pass, over all devices.
      accumulate: forward passes per update; micro_batch * accumulate is the batch size.
      init_from: weight files and workdirs of other runs whose arrays a new run starts from, by name; what a later
        one has replaces what an earlier one gave. See `train.init_from`.
      reinit: regular expressions, searched in the paths of parameters ("refine/head/kernel") and extras
        ("extras/centers"); those that match keep their drawn values: heads for other classes.
      scales: side lengths of the image in pixels, at most 32; one is drawn per micro-batch. See `Canvases`.
      resize: which side a scale means, see `Canvases`.
      max_long: no side exceeds this, in pixels.
      aspect: the length of a canvas divided by the scale, see `Canvases`.
      crop: cut out a random window of every image before it is resized, drawn again in every epoch: each of its sides
        is a share, uniform between (smallest, largest), of the image's; (0.9, 0.9) in WS-JDS, (0.9, 1.0) in the code
        of PDSL and OICR+. The window is then resized as an image is. Proposals outside it are masked; labels stay those
        of the whole image. `None` shows whole images.
      crop_margin: resize to scale + crop_margin pixels, and cut out a random window of the scale, drawn again in
        every epoch; see `Canvases`. 0 shows whole images.
      jitter: change the colors of every image, by factors drawn again in every epoch: "hsv", saturation and value, each
        multiplied or divided by a number uniform in [1, 1.5] (WS-JDS); "rgb", brightness and then saturation, by
        numbers uniform in [1 / 1.5, 1.5] (the code of PDSL and OICR+); "none" leaves them.
      flip: mirror an image with probability 1/2, drawn again in every epoch.
      loader: "threads", or "tf" (tf.data); the batches are the same.
      ema_decay: keep a running average of the parameters; `None` keeps none.
      cache: what is kept of a wholly frozen backbone, in float16: its "features", in memory, or the pooled
        "proposals" of every view, in `cache_folder`, where other runs and evaluations find them; "none" keeps nothing.
      cache_folder: see there; it may be deleted when no run uses it.
    """

    num_steps: Annotated[int, NOT_NEGATIVE, Mark.RESUME]
    micro_batch: Annotated[int, COUNT] = 1
    accumulate: Annotated[int, COUNT] = 1
    init_from: Annotated[tuple[str, ...], Mark.LOCATION] = ()
    reinit: tuple[str, ...] = ()
    scales: Annotated[tuple[int, ...], COUNT] = (480, 576, 688, 864, 1200)
    resize: Resize = "short"
    max_long: Annotated[int, COUNT] = 2000
    aspect: Annotated[float, COUNT] = 1.5
    crop: Annotated[tuple[float, float] | None, Range(0, 1, is_low_in=False)] = None
    crop_margin: Annotated[int, NOT_NEGATIVE] = 0
    jitter: Jitter = "none"
    flip: bool = True
    loader: Annotated[Literal["tf", "threads"], Mark.RESUME] = "threads"
    ema_decay: Annotated[float | None, BELOW_ONE] = None
    cache: Literal["none", "features", "proposals"] = "none"
    cache_folder: Annotated[str | None, Mark.LOCATION] = None

    def __post_init__(self) -> None:
        """Raise `ConfigError` for options that do not go together."""
        with error_prefix("config.train."):
            self.canvases  # noqa: B018  (impossible scales are an error here, not when the first image comes)
        check_expressions({f"config.train.reinit[{i}]": p for i, p in enumerate(self.reinit)})
        if self.crop is not None and self.crop[0] > self.crop[1]:
            raise ConfigError(
                f"config.train.crop is {self.crop!r}; allowed are shares (smallest, largest) in this order"
            )
        if self.crop is not None and self.crop_margin:
            raise ConfigError(
                f"config.train.crop is {self.crop!r} and config.train.crop_margin is {self.crop_margin}, but an image "
                "is shown through one window; set crop to None, or crop_margin to 0"
            )
        self._check_cache()

    def _check_cache(self) -> None:
        for name, off in (("crop", None), ("crop_margin", 0), ("jitter", "none")):
            value = getattr(self, name)
            if value != off and self.cache != "none":
                raise ConfigError(
                    f"config.train.{name} is {value!r}, with which an image has other pixels, and other feature maps, "
                    f'in every epoch, so config.train.cache {self.cache!r} saves nothing; set it to "none", or '
                    f"{name} to {off!r}"
                )
        if self.cache == "proposals" and self.cache_folder is None:
            raise ConfigError(
                "config.train.cache_folder is None, but config.train.cache is 'proposals', which are kept on disk; "
                "set it to a folder, such as 'runs/pooled'"
            )

    @property
    def canvases(self) -> Canvases:
        """The static shapes of training images."""
        return Canvases(
            self.scales, self.resize, self.max_long, self.aspect, crop_margin=self.crop_margin
        )


@dataclass(frozen=True, kw_only=True)
class LogOptions:
    """What a run writes, and how often, in updates.

    Attributes:
      log_interval: a line on the console and in metrics.jsonl; the first update has one, too.
      checkpoint_interval: a checkpoint; the latest two are kept.
      keep_period: checkpoints kept for good (step 0 always is), for figures over training; a multiple
        of `checkpoint_interval`, or 0 for none.
      image_interval: figures of fixed training images with their pseudo boxes, also in TensorBoard; 0 for
        none.
      num_images: how many images.
      best: also keep the checkpoint where this score of `data.val_split` is best; it is measured as
        `eval` says at every checkpoint but the first. `None` measures nothing while training.
      tensorboard: write TensorBoard event files too.
      profile_steps: (first, last) update to profile into the workdir, or `None`.
    """

    log_interval: Annotated[int, COUNT] = 20
    checkpoint_interval: Annotated[int, COUNT] = 1000
    keep_period: Annotated[int, NOT_NEGATIVE] = 0
    image_interval: Annotated[int, NOT_NEGATIVE] = 0
    num_images: Annotated[int, NOT_NEGATIVE] = 8
    best: Literal["mAP50"] | None = None
    tensorboard: bool = True
    profile_steps: Annotated[tuple[int, int] | None, COUNT] = None

    def __post_init__(self) -> None:
        """Raise `ConfigError` for a `keep_period` between checkpoints, and for updates in the wrong order."""
        if self.profile_steps is not None and self.profile_steps[0] > self.profile_steps[1]:
            raise ConfigError(
                f"config.log.profile_steps is {self.profile_steps!r}; allowed are (first, last) with first <= last"
            )
        if self.keep_period % self.checkpoint_interval:
            raise ConfigError(
                f"config.log.keep_period is {self.keep_period}, but only checkpoints can be kept, and "
                f"those are made every {self.checkpoint_interval} updates; set it to a multiple of "
                "config.log.checkpoint_interval, or to 0"
            )


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that determines a run, except its data and weights. `build.read_config` makes and checks it.

    Attributes:
      seed: of order, augmentation, drawn parameters and dropout.
      method: its name and its checked options; `build.method` makes it of these and of its parts.
      backbone: the network that makes feature maps.
      data: the reader of the data set, and its splits.
      proposals: which ones are used, `None` for methods that use none.
      cues: the cue source's name and options, `None` for methods that ask for no cues.
      train: how the run trains.
      optim: its optimizer.
      log: what it writes.
      eval: how it is tested.
      tables: name -> class of methods, backbones, readers and cues; not a part of what the run is.
    """

    seed: Annotated[int, NOT_NEGATIVE]
    method: Annotated[Chosen, Choice("methods")]
    backbone: Annotated[nn.Module, Choice("backbones")]
    data: Annotated[Any, Choice("readers", key="reader")]
    proposals: Proposals | None = None
    cues: Annotated[Chosen | None, Choice("cues", what="cue source")] = None
    train: TrainOptions
    optim: Optimizer
    log: LogOptions
    eval: EvalOptions
    tables: Tables = dataclasses.field(repr=False, compare=False, metadata={"option": False})

    def to_dict(self) -> dict[str, Any]:
        """Return every option's value, defaults included, as JSON has it; read again it is an equal configuration."""
        hints = option_hints(RunConfig)
        return {
            key: to_values(getattr(self, key), hint, self.tables) for key, hint in hints.items()
        }

    def to_json(self) -> str:
        """Return `to_dict` as the text of a file."""
        return json.dumps(self.to_dict(), indent=1) + "\n"


def check_run(config: RunConfig, method: Any) -> None:
    """Raise `ConfigError` for sections that do not go together, or not with the method.

    Args:
      config: the configuration.
      method: its method, with any parts.
    """
    name, train, log = config.method.name, config.train, config.log
    if method.uses_proposals and config.proposals is None:
        raise ConfigError(
            f"config lacks proposals, which {name} scores; set config.proposals.path to a file that "
            "wsod-jax make_proposals makes, and config.proposals.max_proposals"
        )
    if config.proposals is not None and not method.uses_proposals:
        raise ConfigError(
            f"config.proposals is a section that method {name!r} does not read; set it to None"
        )
    if (method.propose is None) != (config.cues is None):
        asks = "asks for no cues; set it to None" if config.cues else "asks for cues; name a source"
        raise ConfigError(f"config.cues is {config.cues and config.cues.name!r}, but {name} {asks}")
    if train.cache != "none":
        _check_cache(config, method)
    from_labels = method.propose is None and dict(method.supervision) == {"train": "image"}
    if log.image_interval and not (method.uses_proposals and from_labels):
        raise ConfigError(
            f"config.log.image_interval is {log.image_interval}, but {name} mines no boxes in images with labels "
            "alone, which is what is drawn; set it to 0. wsod-jax visualize proposal_maps draws what SPN's maps "
            "became during training"
        )
    if method.result == "ema" and train.ema_decay is None:
        raise ConfigError(
            f"config.train.ema_decay is None, but the detector of {name} is the running average of its weights; set a "
            "decay below 1, such as 0.9996"
        )
    kinds = {"train": "boxes" if method.supervision.get("train") == "boxes" else "image"}
    if dict(method.supervision) != kinds:
        raise ConfigError(
            f"method {name!r} trains on the streams {dict(method.supervision)}, but config.data has one, 'train'"
        )
    if kinds["train"] == "boxes" and not config.data.has_boxes:
        raise ConfigError(
            f"method {name!r} trains on boxes, which config.data's reader does not have; use one that has, such as "
            "voc or coco"
        )
    _check_measuring(config, method)


def _check_cache(config: RunConfig, method: Any) -> None:
    name, option = config.method.name, f"config.train.cache is {config.train.cache!r}"
    if method.requires_image:
        raise ConfigError(f'{option}, but {name} needs the pixels; set it to "none"')
    if config.train.cache == "proposals" and method.pool is None:
        raise ConfigError(f'{option}, but {name} pools none; set it to "features" or "none"')
    layers, frozen = config.backbone.layers, tuple(config.backbone.frozen)
    if not all(layer.startswith(frozen) for layer in layers):
        raise ConfigError(
            f"{option}, which needs a wholly frozen backbone; config.backbone.frozen is {frozen}, its layers are "
            f"{', '.join(layers)}"
        )


def _check_measuring(config: RunConfig, method: Any) -> None:
    name, log = config.method.name, config.log
    has_maps, has_boxes = "maps" in method.outputs, "boxes" in method.outputs
    if log.best is not None and config.data.val_split is None:
        raise ConfigError(
            f"config.log.best is {log.best!r}, but nothing says on which images; set "
            "config.data.val_split to a split that is neither trained on nor tested on"
        )
    if log.best is not None and not has_boxes:
        raise ConfigError(
            f"config.log.best is {log.best!r}, which is measured of boxes chosen among proposals, but "
            f"{name} has none; set config.log.best to None"
        )
    merges = {"": config.eval.merge}
    merges |= {f"passes.{one}.": config.eval.of_pass(one).merge for one in config.eval.passes}
    for place, merge in merges.items():
        if has_maps and merge == "sum":
            raise ConfigError(
                f'config.eval.{place}merge is "sum", but maps of several views are averaged ("mean") or read one by '
                'one ("union")'
            )
        if has_boxes and not method.aligned_rows and merge != "union":
            raise ConfigError(
                f"config.eval.{place}merge is {merge!r}, but row m of {name} is another region in every view; allowed "
                "is 'union'"
            )
    if not has_maps and config.eval.maps != MapOptions():
        raise ConfigError(f"config.eval.maps is about maps, of which {name} predicts none; drop it")
