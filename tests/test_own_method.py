"""A method that no library file knows: written here, handed in, trained, interrupted, resumed, loaded.

It learns from boxes, asks for cues on the host before every update, keeps extras, and has options of its own. It
predicts a box for each class and instance masks, which the commands evaluate, write and draw.
docs/adding_a_method.md explains it step by step.
"""

import dataclasses
import json
import os
import signal
from pathlib import Path
from typing import Annotated, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from wsod_jax import build
from wsod_jax.build import METHODS
from wsod_jax.commands import evaluate, predict
from wsod_jax.errors import ConfigError
from wsod_jax.methods.base import Method, image_term
from wsod_jax.nn.layers import valid_mask
from wsod_jax.ops.boxes import pairwise_iou
from wsod_jax.ops.detect import detect
from wsod_jax.options import COUNT, NOT_NEGATIVE, SHARE
from wsod_jax.runs import training as runs
from wsod_jax.runs.predictor import load_run
from wsod_jax.train.loop import Interrupted
from wsod_jax.types import LossOutput, Predictions

# -- 1. the method


@struct.dataclass
class Asked:
    """What the cue source is asked: how well every target is found so far.

    Attributes:
      found: [b, g] highest IoU of a detection of a target's class with it.
      mask: [b, g] bool, real targets.
    """

    found: jax.Array
    mask: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class CellClassifier(Method):
    """Every cell of the map says which class covers it, and stands for a box around itself.

        L = -(1/n) Σ_cells [t log p + (1 - t) log(1 - p)] u,   p = σ(w · f + b - m)

    with t_c = 1 where a target of class c covers the cell's center, u the weight that the cue source gives the target
    (1 elsewhere), and m a running mean of the logits, which gradients do not train.

    Attributes:
      backbone: part: the network that makes the map "c5".
      num_classes: part: c.
      max_targets: part: g, the most boxes of a training image.
      side: of the box that a cell stands for, in cells; `growth`: by how much each class's box is larger than that of
        the class before it.
      mask_size: p, cells per side of a mask.
      momentum: of the running mean.
    """

    backbone: nn.Module
    num_classes: int
    max_targets: int
    side: Annotated[float, NOT_NEGATIVE] = 3.0
    growth: Annotated[float, NOT_NEGATIVE] = 0.5
    mask_size: Annotated[int, COUNT] = 14
    momentum: Annotated[float, SHARE] = 0.9

    supervision: ClassVar = {"train": "boxes"}
    outputs: ClassVar = frozenset({"boxes", "masks"})
    aligned_rows: ClassVar = False  # a cell shows another place in every view

    def init(self, key, batch):
        backbone = self.backbone.init(key, batch)["params"]
        head = {
            "kernel": jnp.zeros((self.backbone.channels, self.num_classes)),
            "bias": jnp.zeros(()),
        }
        return {"backbone": backbone, "head": head}, {"mean": jnp.zeros(self.num_classes)}

    def logits(self, params, extras, batch):
        """Return the map, its logits [b, h, w, c] and its valid cells [b, h, w, 1]."""
        maps = self.backbone.apply({"params": params["backbone"]}, batch)["c5"]
        raw = maps.features @ params["head"]["kernel"] + params["head"]["bias"]
        mask = valid_mask(maps.size, *maps.features.shape[1:3])
        return maps, raw - extras["mean"][None, None, None, :], mask

    def covered(self, maps, targets):
        """Return which cells' centers every target covers, [b, g, h, w]."""
        height, width = maps.features.shape[1:3]
        y, x = ((jnp.arange(n) + 0.5) * maps.stride for n in (height, width))
        x1, y1, x2, y2 = jnp.moveaxis(targets.boxes, -1, 0)[..., None]  # each [b, g, 1]
        rows = (y[None, None, :] >= y1) & (y[None, None, :] < y2)
        columns = (x[None, None, :] >= x1) & (x[None, None, :] < x2)
        real = targets.mask & ~targets.ignore
        return rows[..., :, None] & columns[..., None, :] & real[..., None, None]

    def propose(self, params, extras, batch, key, step):
        seen = self.predict(params, extras, batch, self.outputs)
        best = detect(
            seen.boxes,
            seen.scores,
            seen.mask,
            score_thr=0.0,
            iou_thr=0.5,
            top_k=8,
            class_top_k=32,
        )
        overlap = jax.vmap(pairwise_iou)(batch.targets.boxes, best.boxes)  # [b, g, n]
        same = batch.targets.classes[:, :, None] == best.classes[:, None, :]
        found = jnp.max(jnp.where(same & best.mask[:, None, :], overlap, 0.0), axis=2)
        return Asked(found, batch.targets.mask), batch

    def loss(self, params, extras, batch, key, step):
        maps, logits, mask = self.logits(params, extras, batch)
        inside = self.covered(maps, batch.targets)[..., None]  # [b, g, h, w, 1]
        classes = jax.nn.one_hot(batch.targets.classes, self.num_classes)[:, :, None, None, :]
        target = jnp.max(inside * classes, axis=1)
        weight = jnp.max(
            jnp.where(inside, batch.cues[:, :, None, None, None], 0.0) * classes, axis=1
        )
        weight = jnp.where(target > 0, weight, 1.0)
        log_p, log_q = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
        cells = -(target * log_p + (1 - target) * log_q) * weight * mask
        count = jnp.maximum(jnp.sum(mask, (1, 2, 3)), 1)
        terms = {"cells": image_term(jnp.sum(cells, (1, 2, 3)) / count, batch)}
        real = mask & batch.image_mask[:, None, None, None]
        mean = jnp.sum(logits * real, (0, 1, 2)) / jnp.maximum(jnp.sum(real), 1)
        mean = self.momentum * extras["mean"] + (1 - self.momentum) * jax.lax.stop_gradient(mean)
        cue = image_term(jnp.sum(batch.cues * batch.targets.mask, 1), batch)
        return LossOutput(terms, {"mean": mean}, {"cue": cue})

    def predict(self, params, extras, batch, want):
        maps, logits, mask = self.logits(params, extras, batch)
        b, height, width, c = logits.shape
        y, x = jnp.meshgrid(jnp.arange(height) + 0.5, jnp.arange(width) + 0.5, indexing="ij")
        center = jnp.stack([x, y, x, y], -1).reshape(-1, 1, 4)  # [m, 1, 4] in cells
        side = self.side + self.growth * jnp.arange(c)[None, :, None]
        boxes = (center + side / 2 * jnp.array([[[-1.0, -1.0, 1.0, 1.0]]])) * maps.stride
        boxes = jnp.broadcast_to(boxes, (b, *boxes.shape))  # [b, m, c, 4]
        scores = jax.nn.sigmoid(logits)
        memo = maps.replace(features=scores) if "masks" in want else None
        real = mask.reshape(b, -1) & batch.image_mask[:, None]
        return Predictions(boxes, scores.reshape(b, -1, c), real, memo=memo)

    def predict_masks(self, params, extras, batch, memo, detections):
        """Read the probability of a detection's class in the cells under its box."""
        share = (jnp.arange(self.mask_size) + 0.5) / self.mask_size
        x1, y1, x2, y2 = jnp.moveaxis(detections.boxes, -1, 0)[..., None]  # each [b, n, 1]

        def cells(low, high, last):
            place = (low + share[None, None, :] * (high - low)) / memo.stride
            return jnp.clip(jnp.floor(place).astype(int), 0, last - 1)

        rows = cells(y1, y2, memo.features.shape[1])[..., :, None]
        columns = cells(x1, x2, memo.features.shape[2])[..., None, :]
        image = jnp.arange(len(rows))[:, None, None, None]
        return memo.features[image, rows, columns, detections.classes[..., None, None]]


# -- 2. its cue source


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attention:
    """Weighs up the targets that are not found yet. NumPy on the host; a context manager.

    Attributes:
      images: part: the training images.
      proposals: part: their proposals, here none.
      power: of 2 - found.
    """

    images: object
    proposals: object
    power: Annotated[float, NOT_NEGATIVE] = 1.0

    kill_at: ClassVar[int | None] = None  # for the test: the call at which the process gets SIGTERM
    calls: ClassVar[int] = 0

    def __enter__(self):
        return self

    def __exit__(self, *failure):
        pass

    def __call__(self, request, image_index, image_mask):
        type(self).calls += 1
        if type(self).calls == type(self).kill_at:
            os.kill(os.getpid(), signal.SIGTERM)
        assert isinstance(request.found, np.ndarray) and len(image_index) == len(request.found)
        return np.where(request.mask, (2.0 - request.found) ** self.power, 0.0).astype(np.float32)


# -- 3. the tables that it is handed in by, and a configuration

OWN = {"methods": {**METHODS, "cells": CellClassifier}, "cues": {"attention": Attention}}


def values(data) -> dict:
    """The configuration as plain values; a file in configs/ would return the same as a ConfigDict."""
    return dict(
        seed=3,
        method=dict(name="cells", side=2.0),
        backbone=dict(name="tiny", widths=(4, 4, 8, 8)),
        data=dict(reader="voc", root=str(data), train_split="trainval", test_split="test"),
        cues=dict(name="attention", power=2.0),
        train=dict(
            num_steps=6, micro_batch=4, accumulate=2, scales=(64,), aspect=1.5, loader="threads"
        ),
        optim=dict(name="adamw", learning_rate=0.01),
        log=dict(log_interval=1, checkpoint_interval=3, tensorboard=False),
        eval=dict(scales=(64,), micro_batch=4, merge="union", loader="threads"),
    )


def config(data, **changes):
    made = values(data)
    for section, options in changes.items():
        made[section] = options if options is None else {**made.get(section, {}), **options}
    return build.read_config(made, **OWN)


@pytest.fixture(scope="module")
def whole(tiny_set, tmp_path_factory):
    """A run that nothing interrupts."""
    workdir = tmp_path_factory.mktemp("whole")
    Attention.calls, Attention.kill_at = 0, None
    runs.train(config(tiny_set[0]), workdir)
    assert Attention.calls == 6 * 2  # once for every micro-batch of every update
    return workdir


def test_it_trains_and_is_loaded_by_its_name(whole, tiny_set):
    predictor = load_run(whole, **OWN)
    assert type(predictor.method) is CellClassifier
    assert predictor.method.side == 2.0 and predictor.method.momentum == 0.9
    assert np.any(predictor.extras["mean"])
    images = predictor.config.data.images("test")
    results = predictor.predict(images)
    assert [result.image_index for result in results] == [*range(len(images))]
    for result in results:
        assert len(result.masks) == len(result.scores) > 0
        assert set(result.classes) <= set(range(len(images.class_names)))
    first = load_run(whole, 0, **OWN)
    assert not np.any(first.extras["mean"])
    assert not np.array_equal(predictor.params["head"]["kernel"], first.params["head"]["kernel"])
    assert "annotations" in predictor.metadata["boxes"]


def test_interrupted_and_resumed_it_ends_bit_for_bit_the_same(whole, tiny_set, tmp_path):
    Attention.calls, Attention.kill_at = 0, 5  # in the host stage of the third update
    try:
        with pytest.raises(Interrupted):
            runs.train(config(tiny_set[0]), tmp_path)
    finally:
        Attention.kill_at = None
    stopped = load_run(tmp_path, **OWN)
    assert stopped.metadata["step"] == 3
    runs.train(config(tiny_set[0]), tmp_path)
    one, other = (load_run(folder, **OWN) for folder in (whole, tmp_path))
    assert one.metadata["step"] == other.metadata["step"] == 6
    same = jax.tree.map(np.array_equal, (one.params, one.extras), (other.params, other.extras))
    assert all(jax.tree.leaves(same))


def test_cues_reach_the_loss_and_their_time_is_logged(whole):
    from wsod_jax.train.logging import read_jsonl

    entries = read_jsonl(whole / "metrics.jsonl")
    assert [entry["step"] for entry in entries] == [1, 2, 3, 4, 5, 6]
    assert all(entry["cue"] > 0 and entry["cues_s"] >= 0 for entry in entries)
    assert entries[0]["cue"] != entries[-1]["cue"]  # asked anew with the parameters of each update


def test_commands_know_it_by_a_line_in_the_tables(whole, tmp_path, monkeypatch):
    for table, own in (("METHODS", OWN["methods"]), ("CUES", OWN["cues"])):
        for name, cls in own.items():
            monkeypatch.setitem(getattr(build, table), name, cls)
    report = tmp_path / "evaluation"
    arguments = ["--workdir", str(whole), "--out", str(report), "--figures", "1"]
    assert evaluate.main(arguments) == 0
    content = json.loads((report / "6" / "report.json").read_text())
    summary = content["summary"]
    assert None not in (summary["mAP50"], summary["mAP75"], summary["ABO"])
    assert summary["mask AP25"] >= summary["mask AP50"] >= summary["mask AP75"] >= 0
    assert 0 < summary["ABO"] < 1
    found = json.loads((report / "6" / "predictions.json").read_text())
    assert all({"bbox", "segmentation", "row", "view"} <= set(entry) for entry in found)
    assert "annotations" in content["settings"]["boxes"]
    assert (report / "6" / "predictions.json").is_file()
    images = Path(content["settings"]["data"]["root"]) / "JPEGImages"
    arguments = ["--workdir", str(whole), "--images", str(images), "--out", str(tmp_path / "p")]
    assert predict.main([*arguments, "--max_figures", "1"]) == 0
    found = json.loads((tmp_path / "p" / "predictions.json").read_text())
    assert found and all("segmentation" in entry for entry in found)


def test_what_does_not_fit_is_refused(tiny_set):
    with pytest.raises(ConfigError, match=r"method\.sid.*side"):
        config(tiny_set[0], method=dict(sid=1.0))
    with pytest.raises(ConfigError, match=r"method\.momentum.*1\.5"):
        config(tiny_set[0], method=dict(momentum=1.5))
    with pytest.raises(ConfigError, match=r"cues.*None.*cells"):
        config(tiny_set[0], cues=None)
    with pytest.raises(ConfigError, match=r"image_interval.*cells"):
        config(tiny_set[0], log=dict(image_interval=3))
    with pytest.raises(ConfigError, match=r"merge.*union"):
        config(tiny_set[0], eval=dict(merge="mean"))
    with pytest.raises(ConfigError, match="cells.*wsddn"):
        build.read_config(values(tiny_set[0]))  # the library's own tables know no such method


def test_a_method_that_is_not_hashable_is_refused(tiny_set):
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Unhashable(CellClassifier):
        steps: list = dataclasses.field(default_factory=list)

    with pytest.raises(ConfigError, match="cells.*hash"):
        build.read_config(values(tiny_set[0]), methods={"cells": Unhashable}, cues=OWN["cues"])
