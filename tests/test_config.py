"""From configuration to objects: what is wrong is named, with what is allowed and the likely intention."""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from configs.debug_tiny import get_config
from configs.spn_synthetic import get_config as get_spn_config
from tests.data.readers.voc_tree import write_voc
from wsod_jax import build
from wsod_jax.config import overrides
from wsod_jax.config.eval_options import EvalOptions
from wsod_jax.config.parsing import Chosen, described, parse, plain, to_values
from wsod_jax.config.run_config import RunConfig
from wsod_jax.data.records import BoxSet, ImageBoxes, ImageRecord, ImageSet
from wsod_jax.errors import ConfigError, DataError
from wsod_jax.methods.base import Method
from wsod_jax.methods.oim import Oim
from wsod_jax.methods.wsddn import Wsddn
from wsod_jax.nn.tiny import TinyNet
from wsod_jax.options import (
    BELOW_ONE,
    COUNT,
    POSITIVE,
    SHARE,
    Mark,
    Range,
    members,
    option_hints,
)
from wsod_jax.runs import training as runs
from wsod_jax.runs import training_data
from wsod_jax.runs.training_data import TrainingData, check_labels, check_streams
from wsod_jax.train.identity import compare_runs
from wsod_jax.train.weights import save_weights


def read(config) -> RunConfig:
    return build.read_config(config)


def make_method(config: RunConfig):
    return build.method(config, num_classes=3, max_classes=2, max_targets=1)


def with_value(config, key, value):
    """Return a configuration with the value at a dotted key, sections made where they are missing."""
    values = config.to_dict()
    *sections, last = key.split(".")
    node = values
    for section in sections:
        node = node.setdefault(section, {})
    node[last] = value
    return values


def refusal(values, **tables) -> str:
    with pytest.raises(ConfigError) as error:
        build.read_config(values, **tables)
    return str(error.value)


WHOLE = described(int)


# -- the parser, on classes of its own


class Head(nn.Module):
    dims: Annotated[tuple[int, ...], COUNT] = (8,)
    dtype: jnp.dtype = jnp.float32


@dataclass(frozen=True)
class Rule:
    pattern: str
    factor: Annotated[float, Range(0)] = 1.0


@dataclass(frozen=True, kw_only=True)
class Everything:
    flag: bool = False
    count: Annotated[int, COUNT] = 1
    share: Annotated[float | None, SHARE] = None
    text: str | None = None
    folder: Path = Path("a")
    kind: Literal["one", "two", 3] = "one"
    pair: tuple[int, str] = (1, "a")
    pairs: tuple[tuple[int, float], ...] = ()
    limits: Annotated[tuple[float, ...], SHARE] | Literal["all"] = (0.5,)
    head: Head = Head()
    maybe: Head | None = None
    rules: tuple[Rule, ...] = ()


GOOD = [
    ("flag", True, True),
    ("count", 2, 2),
    ("count", np.int64(2), 2),
    ("share", 1, 1.0),
    ("share", None, None),
    ("share", np.float32(0.5), 0.5),
    ("text", "x", "x"),
    ("folder", "/b", Path("/b")),
    ("kind", 3, 3),
    ("pair", [1, "b"], (1, "b")),
    ("pairs", [[0, 1], (2, 3.5)], ((0, 1.0), (2, 3.5))),
    ("limits", np.array([0.0, 1.0]), (0.0, 1.0)),
    ("limits", "all", "all"),
    ("head", {"dims": [3], "dtype": "bfloat16"}, Head((3,), jnp.bfloat16)),
    ("head", Head((4,)), Head((4,))),
    ("maybe", {}, Head()),
    ("rules", [("a", 2), {"pattern": "b"}], (Rule("a", 2.0), Rule("b"))),
]
BAD = [
    ("flag", 1, "True, False"),
    ("count", True, "whole numbers from 1 up"),
    ("count", 1.0, "whole numbers"),
    ("count", 0, str(COUNT)),
    ("share", True, "numbers from 0 to 1, None"),
    ("share", 1.01, "numbers from 0 to 1"),
    ("share", float("nan"), "numbers from 0 to 1"),
    ("text", 3, "text, None"),
    ("folder", 3, "text"),
    ("kind", "on", "'one', 'two', 3. Did you mean 'one'"),
    ("kind", 3.0, "'one', 'two', 3"),
    ("pair", (1,), "tuples (whole numbers; text)"),
    ("pairs", ((0, 1), (2,)), "tuples of tuples (whole numbers; numbers)"),
    ("limits", (0.5, 2.0), "tuples of numbers from 0 to 1, 'all'"),
    ("limits", "al", "Did you mean 'all'"),
    ("head", 3, "a section of dims, dtype"),
    ("head", None, "a section of"),
    ("rules", (("a", 1.0, 3),), "tuples of a section of pattern, factor"),
]


@pytest.mark.parametrize(("key", "value", "wanted"), GOOD)
def test_values_that_fit_become_the_annotated_type(key, value, wanted):
    found = getattr(parse(Everything, plain({key: value}), {}), key)
    assert found == wanted and type(found) is type(wanted)


@pytest.mark.parametrize(("key", "value", "allowed"), BAD)
def test_values_that_do_not_fit_are_refused_with_what_is_allowed(key, value, allowed):
    with pytest.raises(ConfigError) as error:
        parse(Everything, plain({key: value}), {})
    message = str(error.value)
    assert message.startswith(f"config.{key} ")
    assert allowed in message


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"head": {"dims": (0,)}}, "config.head.dims is (0,)"),
        ({"head": {"dtype": "float16"}}, "'float32', 'bfloat16'"),
        ({"head": {"name": "x"}}, "config.head.name"),
        ({"head": {"dim": (1,)}}, "'dims'"),
        ({"maybe": {"dims": (0,)}}, "config.maybe.dims is (0,)"),
        ({"rules": ({"pattern": "a"}, {"factor": 1})}, "config.rules[1] lacks pattern"),
        ({"rules": (("a", -1),)}, "config.rules[0].factor is -1"),
    ],
)
def test_what_is_wrong_inside_a_section_is_named_there(values, message):
    with pytest.raises(ConfigError) as error:
        parse(Everything, values, {})
    assert message in str(error.value)


def test_every_value_survives_json():
    for key, value, _ in GOOD:
        made = parse(Everything, plain({key: value}), {})
        told = json.loads(json.dumps(to_values(made, Everything, {})))
        assert set(told) == {field.name for field in dataclasses.fields(Everything)}
        assert parse(Everything, plain(told), {}) == made


def test_options_with_annotations_that_no_configuration_can_hold_are_refused():
    @dataclass(frozen=True)
    class Odd:
        values: dict = dataclasses.field(default_factory=dict)

    Odd.__annotations__["values"] = dict
    with pytest.raises(TypeError, match="values .*dict"):
        parse(Odd, {"values": {"a": 1}}, {})


@pytest.mark.parametrize(
    ("key", "text", "wanted"),
    [
        ("flag", "False", False),
        ("flag", "true", True),
        ("count", "3", 3),
        ("share", "None", None),
        ("share", "1e-3", 1e-3),
        ("text", "7", "7"),
        ("text", "None", None),
        ("folder", "/data/VOC", "/data/VOC"),
        ("kind", "two", "two"),
        ("kind", "3", 3),
        ("pairs", "((0,5),(7,2))", ((0, 5), (7, 2))),
        ("count", "1e3", 1000),
        ("pairs", "((0, 5), (7e4, 2.5))", ((0, 5), (7e4, 2.5))),
        ("count", "1.5", 1.5),
        ("limits", "0.25", (0.25,)),
        ("limits", "0.25,0.5", (0.25, 0.5)),
        ("limits", "all", "all"),
        ("limits", "()", ()),
        ("head", "{'dims': [2]}", {"dims": (2,)}),
        ("rules", "[('a', 2.0)]", (("a", 2.0),)),
        ("count", "many", "many"),
    ],
)
def test_text_is_read_as_the_option_takes_it(key, text, wanted):
    found = overrides.from_text(text, option_hints(Everything)[key], {})
    assert found == wanted and type(found) is type(wanted)


# -- real configurations


SECTIONS = {"oim_ir": get_config("oim_ir"), "spn": get_spn_config()}


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("method.betta", "beta"),
        ("method.num_stage", "num_stages"),
        ("method.box_head.dropout", "dropout_rate"),
        ("backbone.strides", "stride"),
        ("data.rot", "root"),
        ("proposals.max_proposal", "max_proposals"),
        ("train.num_step", "num_steps"),
        ("optim.learning_rat", "learning_rate"),
        ("optim.moment", "momentum"),
        ("log.log_intervl", "log_interval"),
        ("eval.nms_threshold", "nms_thr"),
        ("eval.maps.treshold", "threshold"),
        ("evals", "eval"),
    ],
)
def test_unknown_key_suggests_the_closest(key, meant):
    message = refusal(with_value(SECTIONS["oim_ir"], key, 1))
    assert message.startswith(f"config.{key} ")
    assert repr(meant) in message


def test_option_of_another_method_names_its_owners():
    message = refusal(with_value(SECTIONS["oim_ir"], "method.top_fraction", 0.2))
    assert "config.method.top_fraction" in message and "mist" in message
    message = refusal(with_value(get_config("wsddn"), "method.num_stages", 3))
    assert "config.method.num_stages" in message and "oicr" in message


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("method.iou_thrs", ("abc", 0.5), "numbers"),
        ("method.iou_thrs", (0.5, 1.5), str(SHARE)),
        ("method.iou_thrs", (0.6, 0.5), "background"),
        ("method.num_stages", 0, str(COUNT)),
        ("method.max_nodes", -3, str(Range(0))),
        ("method.beta", -0.1, str(Range(0))),
        ("method.alpha", ((0, "5"),), "tuples"),
        ("method.davg_includes_core", 1, "True, False"),
        ("method.release_core_sign", True, "-1, 1"),
        ("method.det_temperature", 0.0, str(POSITIVE)),
        ("method.box_head.dims", (64, 0), str(COUNT)),
        ("method.box_head.dropout_rate", 1, "0.999"),
        ("backbone.mean", (1.0, 2.0), "tuples"),
        ("data.root", 7, "text"),
        ("proposals.max_proposals", "64", WHOLE),
        ("proposals.max_proposals", 0, str(COUNT)),
        ("train.num_steps", -5, str(Range(0))),
        ("train.micro_batch", 2.5, WHOLE),
        ("train.flip", "no", "True, False"),
        ("train.crop_margin", -1, str(Range(0))),
        ("train.crop", (0.0, 0.9), "above 0 up to 1"),
        ("train.crop", (0.9, 1.1), "above 0 up to 1"),
        ("train.crop", (0.9,), "None"),
        ("train.jitter", "HSV", "'none', 'hsv', 'rgb'"),
        ("train.ema_decay", "abc", "None"),
        ("train.ema_decay", 1.0, str(BELOW_ONE)),
        ("optim.learning_rate", float("nan"), str(Range(0))),
        ("optim.groups", (("bias", 2.0),), "tuples"),
        ("log.num_images", -1, str(Range(0))),
        ("log.log_interval", 0, str(COUNT)),
        ("log.checkpoint_interval", 0, str(COUNT)),
        ("log.best", "mAP", "'mAP50'"),
        ("eval.top_k", 0, str(COUNT)),
        ("eval.iou_thrs", (0.5, 75), str(SHARE)),
        ("eval.iou_thrs", "swep", "'sweep'"),
        ("seed", -1, str(Range(0))),
    ],
)
def test_value_of_another_kind_or_out_of_range(key, value, allowed):
    message = refusal(with_value(SECTIONS["oim_ir"], key, value))
    assert message.startswith(f"config.{key} ")
    assert allowed in message.partition("allowed")[2]


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("method.extra_channels", 0, str(COUNT)),
        ("method.extra_groups", 0, str(COUNT)),
        ("method.dropout_rate", 1.0, "0.999"),
        ("method.soft_proposal.solver", "walks", "'walk'"),
        ("method.soft_proposal.solver", "cam", "'walk', 'stationary', 'uniform'"),
        ("method.soft_proposal.epsilon_factor", 0, str(POSITIVE)),
        ("method.soft_proposal.num_steps", -1, str(Range(0))),
        ("method.soft_proposal.tolerance", -1e-4, str(Range(0))),
        ("method.soft_proposal.block_nodes", 0, str(COUNT)),
        ("eval.maps.threshold", -0.5, str(Range(0))),
        ("eval.maps.connectivity", 6, "4, 8"),
        ("eval.maps.boxes", "component", "'components'"),
        ("eval.maps.nms_thr", 1.1, str(SHARE)),
        ("eval.maps.min_side_px", -1.0, str(Range(0))),
        ("eval.maps.predicted_thr", 50, str(SHARE)),
        ("eval.maps.pointing_px", -15, str(Range(0))),
        ("eval.maps.prediction_px", -18, str(Range(0))),
    ],
)
def test_value_of_spn_out_of_range(key, value, allowed):
    message = refusal(with_value(SECTIONS["spn"], key, value))
    assert message.startswith(f"config.{key} ") and allowed in message


@pytest.mark.parametrize(
    ("key", "value", "meant"),
    [
        ("method.reweight", "papr", "paper"),
        ("method.mining_feature", "fc7_drop", "fc7_dropout"),
        ("method.pooling", "mx", "max"),
        ("backbone.stride", 16, None),
        ("data.difficult", "dropp", "drop"),
        ("train.loader", "thread", "threads"),
        ("train.resize", "shorter", "short"),
        ("optim.update_rule", "torch", "pytorch"),
        ("optim.shape", "step", "steps"),
        ("eval.ap", "11points", "11point"),
        ("method.name", "oirc", "oicr"),
        ("method.name", None, None),
        ("backbone.name", "vgg", "vgg16"),
        ("data.reader", "vok", "voc"),
        ("backbone.dtype", "float16", None),
        ("method.box_head.dtype", "half", None),
    ],
)
def test_value_outside_its_choices(key, value, meant):
    message = refusal(with_value(SECTIONS["oim_ir"], key, value))
    assert message.startswith(f"config.{key} ") and repr(value) in message
    assert meant is None or repr(meant) in message


def test_error_of_a_constructor_passes_through():
    message = refusal(with_value(SECTIONS["oim_ir"], "method.alpha", ((3, 5.0),)))
    assert "method.alpha" in message and "ascending" in message
    message = refusal(with_value(SECTIONS["spn"], "method.insert_after", "conv4_1"))
    assert "insert_after" in message and "unit_mean" in message


@pytest.mark.parametrize("key", ["num_classes", "max_classes", "backbone", "network"])
def test_what_the_code_itself_decides_cannot_be_configured(key):
    message = refusal(with_value(SECTIONS["oim_ir"], f"method.{key}", 3))
    assert f"config.method.{key}" in message and "classifier" not in message


@pytest.mark.parametrize(
    "section", ["seed", "method", "backbone", "data", "train", "optim", "log", "eval"]
)
def test_missing_section(section):
    values = SECTIONS["oim_ir"].to_dict()
    del values[section]
    assert re.search(rf"config .*\b{section}\b", refusal(values))


@pytest.mark.parametrize(
    "key",
    [
        "proposals.max_proposals",
        "proposals.path",
        "train.num_steps",
        "optim.learning_rate",
        "data.root",
    ],
)
def test_missing_key(key):
    values = SECTIONS["oim_ir"].to_dict()
    section, name = key.split(".")
    del values[section][name]
    message = refusal(values)
    assert re.search(rf"config\.{section} .*\b{name}\b", message)
    assert (key == "proposals.path") == ("wsod-jax make_proposals" in message)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("oim_ir", "network.roi_size", "config.method.roi_size"),
        ("oim_ir", "neck.dims", "config.method.box_head.dims"),
        ("spn", "soft_proposal.num_steps", "config.method.soft_proposal.num_steps"),
        ("spn", "localization.threshold", "config.eval.maps.threshold"),
        ("spn", "localization.solver", "config.method.soft_proposal.solver"),
        ("spn", "backbone.weights", "config.train.init_from"),
        ("oim_ir", "method.fg_iou_thr", "config.method.iou_thrs"),
        ("oim_ir", "method.normaliser", "config.method.normalizer"),
        ("oim_ir", "method.node_neighbours", "config.method.node_neighbors"),
        ("oim_ir", "backbone.pixels", "config.backbone.preprocessing"),
        ("oim_ir", "train.cache_features", "config.train.cache"),
        ("spn", "log.every", "config.log.log_interval"),
        ("spn", "log.milestones_every", "config.log.keep_period"),
        ("oim_ir", "network.extra_groups", "config.method.extra_groups"),
        ("oim_ir", "soft_proposal.num_steps", "config.method.soft_proposal.num_steps"),
        ("oim_ir", "localization.threshold", "config.eval.maps.threshold"),
        ("oim_ir", "localization.solver", "config.method.soft_proposal.solver"),
        ("spn", "network.num_stages", "config.method.num_stages"),
        ("spn", "neck.dims", "config.method.box_head.dims"),
        ("wsddn", "network.num_stages", "config.method.num_stages"),
        ("wsddn", "method.fg_iou_thr", "config.method.iou_thrs"),
    ],
)
def test_key_of_version_0_1_is_refused_with_where_it_went(name, old, new):
    values = get_config("wsddn") if name == "wsddn" else SECTIONS[name]
    told = refusal(with_value(values, old, None))
    assert re.search(rf"\n  config\.{old} .*{new}", told) and "0.1" in told
    for refuse in (
        lambda: build.override(values, [f"{old}=1"]),
        lambda: build.change(read(values), [f"{old}=1"]),
    ):
        with pytest.raises(ConfigError, match=rf"0\.1.*config\.{old} .*{new}"):
            refuse()


@pytest.mark.parametrize("key", ["network.depth", "localization.treshold", "neck.dim"])
def test_a_key_that_never_was_does_not_exist(key):
    message = refusal(with_value(SECTIONS["spn"], key, 1))
    assert message.startswith(f"config.{key.partition('.')[0]} does not exist")


@pytest.mark.parametrize("key", ["method.reweight", "method.beta", "method.release_core_sign"])
def test_reweighting_of_oicr_is_oim_with_the_spatial_graph(key):
    values = get_config("oicr")
    message = refusal(with_value(values, key, "off"))
    assert f"config.{key} of oicr" in message and "0.1" in message
    assert "config.method.name=oim config.method.graphs=spatial" in message
    with pytest.raises(ConfigError, match="config.method.graphs=spatial"):
        build.override(values, [f"{key}=1"])
    values.method = {"name": "pcl"}
    assert refusal(with_value(values, key, 1)).startswith(f"config.{key} does not exist")


def test_all_old_keys_are_named_at_once():
    values = with_value(SECTIONS["oim_ir"], "network", {"roi_size": 7, "pooling": "max"})
    values["neck"] = {}
    message = refusal(values)
    for line in ("network.roi_size", "network.pooling", "neck"):
        assert f"config.{line} " in message


def test_scales_are_checked_before_the_first_image():
    for section in ("train", "eval"):
        message = refusal(with_value(SECTIONS["oim_ir"], f"{section}.scales", (96, 96)))
        assert message.startswith(f"config.{section}.scales=(96, 96)")
        message = refusal(with_value(SECTIONS["oim_ir"], f"{section}.scales", ()))
        assert message.startswith(f"config.{section}.scales=()")


def test_bad_regular_expressions_are_found_when_the_configuration_is_read():
    groups = (("bias", 2.0, 1.0), ("(", 1.0, 1.0))
    message = refusal(with_value(SECTIONS["oim_ir"], "optim.groups", groups))
    assert message.startswith("config.optim.groups[1].pattern ") and "'('" in message
    message = refusal(with_value(SECTIONS["oim_ir"], "train.reinit", ("[",)))
    assert message.startswith("config.train.reinit[0] ") and "'['" in message
    message = refusal(with_value(SECTIONS["oim_ir"], "optim.decay_steps", (5, 5)))
    assert message.startswith("config.optim.decay_steps ")
    group = {"pattern": "bias", "decay_steps": (5, 5)}
    message = refusal(with_value(SECTIONS["oim_ir"], "optim.groups", (group,)))
    assert message.startswith("config.optim.groups[0], 'bias': config.optim.decay_steps ")


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("spn", "crop_margin", 8),
        ("oim_ir", "crop_margin", 8),
        ("oim_ir", "crop", (0.9, 1.0)),
        ("oim_ir", "jitter", "hsv"),
    ],
)
def test_images_that_differ_in_every_epoch_exclude_a_cache(name, option, value):
    values = with_value(SECTIONS[name], f"train.{option}", value)
    values["train"]["cache"] = "none"
    found = read(values).train
    assert getattr(found, option) == value
    assert found.canvases.crop_margin == (8 if option == "crop_margin" else 0)
    values["train"]["cache"] = "features"
    message = refusal(values)
    assert message.startswith(f"config.train.{option} is {value!r}") and "train.cache" in message
    assert f"or {option} to " in message


def test_an_image_has_one_window_of_a_possible_size():
    values = with_value(SECTIONS["oim_ir"], "train.crop", (0.9, 0.9))
    values["train"]["cache"] = "none"
    assert read(values).train.crop == (0.9, 0.9)
    values["train"]["crop_margin"] = 8
    message = refusal(values)
    assert "config.train.crop is (0.9, 0.9)" in message and "crop_margin to 0" in message
    values["train"] |= dict(crop_margin=0, crop=(1.0, 0.9))
    message = refusal(values)
    assert message.startswith("config.train.crop is (1.0, 0.9)") and "in this order" in message


def test_cached_features_need_a_frozen_backbone():
    values = with_value(SECTIONS["oim_ir"], "train.cache", "features")
    assert read(values).train.cache == "features"
    values["backbone"]["frozen"] = ("conv1",)
    message = refusal(values)
    assert "config.train.cache" in message and "conv4_2" in message


def test_sections_must_suit_the_method():
    message = refusal(with_value(SECTIONS["oim_ir"], "proposals", None))
    assert "proposals" in message and "oim" in message
    message = refusal(with_value(SECTIONS["spn"], "proposals", {"path": "p", "max_proposals": 3}))
    assert "config.proposals" in message and "'spn'" in message
    message = refusal(with_value(SECTIONS["spn"], "log.image_interval", 2))
    assert "config.log.image_interval is 2" in message and "spn" in message
    message = refusal(with_value(SECTIONS["spn"], "eval.merge", "sum"))
    assert 'config.eval.merge is "sum"' in message and "union" in message
    message = refusal(with_value(SECTIONS["oim_ir"], "eval.maps.threshold", 2.0))
    assert "config.eval.maps" in message and "oim" in message
    message = refusal(with_value(SECTIONS["oim_ir"], "log.best", "mAP50"))
    assert "config.log.best" in message and "config.data.val_split" in message
    values = with_value(SECTIONS["spn"], "log.best", "mAP50")
    values["data"]["val_split"] = "val"
    message = refusal(values)
    assert "config.log.best" in message and "spn" in message


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"keep_period": 4}, ("keep_period is 4", " 3 ")),
        ({"log_interval": 0}, ("config.log.log_interval is 0", str(COUNT))),
    ],
)
def test_intervals_that_cannot_be_kept_are_refused(changes, named):
    values = SECTIONS["oim_ir"].to_dict()
    values["log"] |= {"checkpoint_interval": 3, **changes}
    message = refusal(values)
    assert all(words in message for words in named)


def test_whole_numbers_are_numbers():
    values = with_value(SECTIONS["oim_ir"], "train.ema_decay", 0)
    values["method"]["beta"], values["optim"]["momentum"] = 1, 0
    values["optim"] |= {"name": "sgd", "update_rule": "caffe"}
    config = read(values)
    assert config.train.ema_decay == 0 and make_method(config).beta == 1.0


# -- what comes out


def test_configuration_tells_every_option_and_reads_back_as_itself(tmp_path):
    for values in SECTIONS.values():
        config = read(values)
        path = tmp_path / "config.json"
        path.write_text(config.to_json(), encoding="utf-8")
        stored = json.loads(path.read_text(encoding="utf-8"))
        assert read(stored) == config and make_method(read(stored)) == make_method(config)
    told = read(SECTIONS["oim_ir"]).to_dict()
    assert told["method"]["mil_reduction"] == "mean" and told["method"]["beta"] == 0.2
    assert told["method"]["det_temperature"] == 1.0 and told["data"]["difficult"] == "drop"
    assert told["train"]["resize"] == "short" and told["train"]["micro_batch"] == 2
    assert told["optim"]["momentum"] == 0.9 and told["optim"]["groups"]
    assert told["backbone"]["dtype"] == "float32" and told["cues"] is None


def test_method_is_what_its_sections_say():
    for variant, kind, stages in (("wsddn", Wsddn, 0), ("oim_ir", Oim, 3)):
        values = get_config(variant).to_dict()
        values["method"]["roi_size"], values["method"]["box_head"]["dims"] = 5, [6, 7]
        method = make_method(read(values))
        assert type(method) is kind and (method.num_stages, method.roi_size) == (stages, 5)
        assert method.box_head.dims == (6, 7)  # lists in a stored configuration become tuples
        assert isinstance(method.backbone, TinyNet) and method.backbone.frozen == ("conv",)
        assert (method.num_classes, method.max_classes) == (3, 2)


def test_the_mapping_that_is_read_is_left_alone():
    values = get_config("oim_ir")
    before = values.to_dict()
    build.override(values, ["train.num_steps=9", "method.name=pcl"])
    read(values)
    assert values.to_dict() == before


def test_sweep_of_iou_thresholds():
    config = read(with_value(SECTIONS["oim_ir"], "eval.iou_thrs", "sweep"))
    assert config.eval.iou_thrs == (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
    changed = build.change(read(SECTIONS["oim_ir"]), ["iou_thrs=sweep"])
    assert changed.eval.iou_thrs == config.eval.iou_thrs


def test_frozen_layers_get_no_update_whatever_the_decay():
    values = with_value(get_config("oicr"), "backbone.frozen", ("conv1",))
    values["train"]["cache"] = "none"
    values["optim"] |= {"weight_decay": 0.5, "warmup_steps": 0}
    values["optim"] |= {"learning_rate": 1e-4, "decay_steps": (4,)}
    tx, schedule = build.optimizer(read(values))
    params = {"backbone": {"conv1_1": np.ones(2), "conv2_1": np.ones(2)}, "midn": np.ones(2)}
    params = jax.tree.map(lambda x: np.asarray(x, np.float32), params)
    updates, _ = tx.update(params, tx.init(params), params)
    assert not np.any(updates["backbone"]["conv1_1"])
    assert np.all(updates["backbone"]["conv2_1"]) and np.all(updates["midn"])
    rates = [float(schedule(step)) for step in (0, 3, 4)]
    np.testing.assert_allclose(rates, [1e-4, 1e-4, 1e-5], rtol=1e-6)


def test_cosine_with_warm_up():
    values = with_value(SECTIONS["oim_ir"], "train.num_steps", 8)
    values["optim"] = {
        "learning_rate": 0.2,
        "shape": "cosine",
        "warmup_steps": 2,
        "warmup_factor": 0,
    }
    _, schedule = build.optimizer(read(values))
    rates = [float(schedule(step)) for step in (0, 2, 4, 8)]
    halfway = 0.2 * 0.5 * (1 + np.cos(np.pi / 4))
    np.testing.assert_allclose(rates, [0, halfway, 0.1, 0], atol=1e-6)


# -- overrides


def overridden(*settings, config=SECTIONS["oim_ir"]):
    values, notes = build.override(config, settings)
    return read(values), notes


def test_override_by_the_type_of_the_option():
    config, notes = overridden(
        "method.alpha=((0,5),(7,2))",
        "method.box_head.dims=16",
        "train.scales=64,96",
        "train.init_from=weights/1.npz",
        "data.root=2012",
        "train.ema_decay=0.9",
        "optim.clip_norm=None",
        "eval.score_thr=1e-3",
        "data.year=2007",
    )
    assert notes == []
    assert config.method.options["alpha"] == ((0, 5.0), (7, 2.0))
    assert config.method.options["box_head"].dims == (16,)
    assert config.train.scales == (64, 96) and config.train.init_from == ("weights/1.npz",)
    assert config.data.root == "2012" and config.data.year == "2007"
    assert config.train.ema_decay == 0.9 and config.optim.clip_norm is None
    assert config.eval.score_thr == 1e-3


def test_override_of_a_missing_section_and_of_none_makes_it():
    values = SECTIONS["oim_ir"].to_dict()
    del values["proposals"]
    for missing in (values, {**values, "proposals": None}):
        config, _ = overridden("proposals.path=p.npz", "proposals.max_proposals=5", config=missing)
        assert (config.proposals.path, config.proposals.max_proposals) == ("p.npz", 5)
    config, _ = overridden("eval.maps.threshold=2", config=SECTIONS["spn"])
    assert config.eval.maps.threshold == 2.0


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("train.num_step=3", ("config.train.num_step", "'num_steps'")),
        ("evals.nms_thr=3", ("config.evals", "'eval'")),
        ("method.top_fraction=0.1", ("config.method.top_fraction", "mist")),
        ("method.beta.x=0.1", ("config.method.beta", "'x'", "numbers")),
        ("cues.seed=1", ("config.cues.name is None", "config.cues")),
        ("cues.name=cut", ("name is 'cut'", "config.cues")),
        ("train.init_from=a.npz,b.npz", ("\"train.init_from=('a.npz', 'b.npz')\"", "is 'a.npz,b")),
        ("backbone.frozen=conv1, conv2", ("\"backbone.frozen=('conv1', 'conv2')\"",)),
        ("method.name=oirc", ("config.method.name is 'oirc'", "'oicr'")),
        ("train.num_steps=2.5", ("config.train.num_steps is 2.5", WHOLE)),
        ("train.num_steps=many", ("config.train.num_steps is 'many'", WHOLE)),
        ("train.num_steps", ("'train.num_steps'", "=")),
        ("proposals=None", ("config ", "proposals")),
        ("seed=True", ("config.seed is True", WHOLE)),
    ],
)
def test_override_that_is_not_possible(setting, named):
    with pytest.raises(ConfigError) as error:
        overridden(setting)
    assert all(words in str(error.value) for words in named), str(error.value)


def test_another_method_keeps_the_options_that_it_has_and_names_those_it_drops():
    config, notes = overridden("method.top_fraction=0.3", "method.roi_size=5", "method.name=mist")
    assert config.method.name == "mist" and config.method.options["top_fraction"] == 0.3
    assert config.method.options["box_head"].dims == (32, 32)
    assert config.method.options["roi_size"] == 5
    (note,) = notes
    assert "method.name=mist" in note and "alpha" in note and "beta" in note
    assert "roi_size" not in note and "box_head" not in note
    assert overridden("method.name=oim")[1] == []


# -- trained runs


def test_changed_test_settings():
    config = read(SECTIONS["oim_ir"])
    assert build.change(config, ["scales=480"]).eval.scales == (480,)
    changed = build.change(config, ["average_per_image=40", "eval.nms_thr=0.4"])
    assert changed.eval == dataclasses.replace(config.eval, average_per_image=40, nms_thr=0.4)
    assert build.change(changed, ["average_per_image=None"]).eval.average_per_image is None
    assert build.change(config, []) == config
    assert build.change(config, ["config.eval.nms_thr=0.4"]).eval.nms_thr == 0.4


def test_a_further_pass_changes_what_it_says_and_keeps_the_rest():
    values = SECTIONS["oim_ir"].to_dict()
    values["eval"] = {"nms_thr": 0.4, "passes": {"corloc": {"evaluators": ("corloc",)}}}
    config = read(values)
    changes = [
        "passes.corloc.scales=320",
        "eval.passes.corloc.resize=long",
        "passes.coco.merge=sum",
    ]
    tests = build.change(config, changes).eval
    assert list(tests.passes) == ["corloc", "coco"]
    expected = dict(scales=(320,), resize="long", evaluators=("corloc",), passes={})
    assert tests.of_pass("corloc") == dataclasses.replace(config.eval, **expected)
    assert tests.of_pass("coco") == dataclasses.replace(config.eval, merge="sum", passes={})
    with pytest.raises(ConfigError, match="'corlok'.*corloc"):
        config.eval.of_pass("corlok")
    with pytest.raises(ConfigError, match="'corloc'.*none"):
        EvalOptions().of_pass("corloc")


def test_files_of_a_trained_run_may_have_moved():
    config = read(SECTIONS["oim_ir"])
    changed = build.change(config, ["data.root=/new", "proposals.path=/p"])
    assert (changed.data.root, changed.proposals.path) == ("/new", "/p")
    assert build.change(config, ["data.on_bad=skip_all"]).data.on_bad == "skip_all"
    assert "data.on_bad" not in overrides.may_differ(config)  # another training set
    with pytest.raises(ConfigError, match="train.init_from"):
        build.change(config, ["train.init_from=w"])  # it has started
    files = ("data.root", "proposals.path", "train.init_from", "train.cache_folder")
    assert overrides.locations(config) == files


def test_solver_and_maps_of_a_trained_run_may_change():
    config = read(SECTIONS["spn"])
    changed = build.change(config, ["method.soft_proposal.solver=uniform", "maps.threshold=2"])
    assert make_method(changed).soft_proposal.solver == "uniform"
    assert changed.eval.maps.threshold == 2.0


@pytest.mark.parametrize(
    ("name", "change", "named"),
    [
        ("oim_ir", "scales=large", ("eval.scales is 'large'", WHOLE)),
        ("oim_ir", "micro_batch=2.5", ("eval.micro_batch is 2.5", WHOLE)),
        ("oim_ir", "top_k=True", ("eval.top_k is True", WHOLE)),
        ("oim_ir", "iou_thrs=()", ("eval.iou_thrs", "(0.5,)")),
        ("oim_ir", "nms=0.4", ("eval.nms ", "'nms_thr'")),
        ("oim_ir", "method.beta=1", ("method.beta", "nms_thr", "data.root")),
        ("oim_ir", "nms_thr", ("'nms_thr'", "nms_thr=0.4")),
        ("oim_ir", "seed=1", ("seed", "trained run")),
        ("oim_ir", "method=mist", ("method", "trained run")),
        ("oim_ir", "num_steps=1", ("train.num_steps", "trained run")),
        ("oim_ir", "root=/data", ("root ", "data.root")),
        ("spn", "solver=walk", ("method.soft_proposal.solver",)),
        ("spn", "threshold=2", ("eval.maps.threshold",)),
        ("oim_ir", "eval=1", ("config.eval.eval",)),
        ("oim_ir", "train.num_steps=1", ("train.num_steps", "trained run")),
        ("oim_ir", "data.labels_csv=x", ("data.labels_csv", "folder")),
        ("oim_ir", "maps.threshold=2", ("eval.maps.threshold", "oim")),
        ("spn", "nms_thr=0.4", ("nms_thr", "spn", "eval.maps.nms_thr")),
        ("spn", "top_k=4", ("top_k", "boxes", "spn")),
        ("spn", "score_thr=0.1", ("score_thr", "boxes", "spn")),
        ("spn", "average_per_image=4", ("average_per_image", "boxes", "spn")),
        ("spn", "proposals.path=x", ("proposals.path", "spn")),
        ("spn", "maps.treshold=2", ("eval.maps.treshold", "'threshold'")),
        ("spn", "merge=sum", ("config.eval.merge", "sum")),
        ("oim_ir", "corloc_split=val", ("config.eval.passes.corloc.split",)),
        ("oim_ir", "passes=1", ("eval.passes is 1", "evaluators")),
        ("oim_ir", "passes.corloc=1", ("eval.passes is {'corloc': 1}",)),
        ("oim_ir", "passes.corloc.resiz=long", ("resiz", "'resize'")),
        ("oim_ir", "passes.corloc.loader=tf", ("passes.corloc.loader",)),
        ("oim_ir", "passes.corloc.scales=()", ("config.eval.passes.corloc", "scales")),
        ("oim_ir", "passes.corloc.evaluators=corlo", ("'corloc'",)),
    ],
)
def test_change_that_is_not_possible(name, change, named):
    with pytest.raises(ConfigError) as error:
        build.change(read(SECTIONS[name]), [change])
    assert all(words in str(error.value) for words in named), str(error.value)


def test_what_a_resumed_run_may_change():
    may = overrides.may_differ(read(SECTIONS["oim_ir"]))
    assert {"log", "eval", "data.root", "data.val_split", "train.num_steps"} <= set(may)
    assert {"train.loader", "proposals.path", "train.init_from"} <= set(may)
    assert not any(name.startswith(("method", "optim", "seed", "backbone")) for name in may)
    assert not any(n.startswith("method") for n in overrides.may_differ(read(SECTIONS["spn"])))
    values = SECTIONS["oim_ir"].to_dict()
    values["optim"] = {"learning_rate": 0.2, "shape": "cosine"}
    assert "train.num_steps" not in overrides.may_differ(read(values))


# -- methods that are handed in


@dataclass(frozen=True, kw_only=True)
class Toy(Method):
    backbone: Any
    num_classes: int
    sharpness: Annotated[float, SHARE] = 0.5

    outputs: ClassVar = frozenset({"image_scores"})


@dataclass(frozen=True, kw_only=True)
class AskingToy(Toy):
    def propose(self, params, extras, batch, key, step):
        return batch.image_index, batch


@dataclass(frozen=True, kw_only=True)
class Cutter:
    images: Any
    proposals: Any
    margin: Annotated[int, COUNT] = 2


def without_maps(method):
    """Return a configuration of a method that predicts neither boxes nor maps."""
    values = get_spn_config().to_dict()
    values["eval"].pop("maps", None)
    return {**values, "method": method}


def toy_values(**changes):
    return without_maps({"name": "toy", **changes})


def test_method_that_is_handed_in_is_read_like_any_other():
    config = build.read_config(toy_values(sharpness=1), methods={"toy": Toy})
    assert config.method == Chosen("toy", Toy, {"sharpness": 1.0})
    assert make_method(config) == Toy(backbone=config.backbone, num_classes=3, sharpness=1.0)
    assert "sharpness" in refusal(toy_values(sharpnes=1), methods={"toy": Toy})
    assert "config.method.name is 'toy'" in refusal(toy_values())


def test_method_that_cannot_be_hashed_is_refused_by_name():
    @dataclass(frozen=True, kw_only=True)
    class ListToy(Toy):
        extra: Any = dataclasses.field(default_factory=list)

    @dataclass(kw_only=True)
    class MutableToy(Method):
        backbone: Any

    class BareToy(Toy):
        pass

    @dataclass(frozen=True, kw_only=True)
    class GreedyToy(Toy):
        teacher: Any

    assert "ListToy" in refusal(toy_values(), methods={"toy": ListToy})
    for cls in (MutableToy, BareToy):
        message = refusal(toy_values(), methods={"toy": cls})
        assert cls.__name__ in message and "frozen" in message
    message = refusal(toy_values(), methods={"toy": GreedyToy})
    assert "teacher" in message and "default" in message


def test_cues_are_there_if_and_only_if_the_method_asks():
    tables = {"methods": {"toy": AskingToy}, "cues": {"cutter": Cutter}}
    assert "config.cues" in refusal(toy_values(), **tables)
    values = {**toy_values(), "cues": {"name": "cutter", "margin": 3}}
    config = build.read_config(values, **tables)
    assert build.cue_source(config, "images", None) == Cutter(
        images="images", proposals=None, margin=3
    )
    assert build.read_config(config.to_dict(), **tables) == config
    assert "config.cues.margin is 0" in refusal(
        {**values, "cues": {"name": "cutter", "margin": 0}}, **tables
    )
    tables["methods"] = {"toy": Toy}
    message = refusal(values, **tables)
    assert "config.cues is 'cutter'" in message and "toy" in message


def test_rows_that_are_other_regions_in_every_view_are_joined():
    class OwnBoxes(Toy):
        outputs = frozenset({"boxes"})
        aligned_rows = False

    cls = dataclass(frozen=True, kw_only=True)(OwnBoxes)
    values = toy_values()
    values["eval"]["merge"] = "mean"
    message = refusal(values, methods={"toy": cls})
    assert "config.eval.merge is 'mean'" in message and "'union'" in message
    values["eval"]["merge"] = "union"
    build.read_config(values, methods={"toy": cls})


def test_method_that_needs_the_pixels_does_without_a_cache():
    class Pixels(Toy):
        requires_image = True

    cls = dataclass(frozen=True, kw_only=True)(Pixels)
    values = toy_values()
    values["train"]["cache"] = "features"
    message = refusal(values, methods={"toy": cls})
    assert "config.train.cache" in message and "pixels" in message


# -- data


def labeled(*rows):
    records = (ImageRecord(f"i{n}", bytes, 4, 4, row) for n, row in enumerate(rows))
    return ImageSet("set", ("cat", "dog"), tuple(records))


def boxed(*rows) -> BoxSet:
    images = labeled(*rows)
    box = ImageBoxes(np.ones((1, 4), np.float32), np.zeros(1, np.int32), np.zeros(1, bool))
    return BoxSet(images, (box,) * len(images), "annotations")


def supervised(**streams):
    return dataclass(frozen=True, kw_only=True)(type("Streams", (Toy,), {"supervision": streams}))(
        backbone=None, num_classes=2
    )


def test_streams_of_the_data_are_those_of_the_method():
    images, boxes = labeled((1, 0)), boxed((1, 0))
    check_streams(supervised(train="image"), {"train": images})
    check_streams(supervised(train="image", more="boxes"), {"train": images, "more": boxes})
    for method, streams, named in (
        (supervised(train="image", more="image"), {"train": images}, ("more", "train")),
        (supervised(train="image"), {"train": images, "more": images}, ("more", "never")),
        (supervised(train="image"), {"train": boxes}, ("'train'", "annotations", "labels")),
        (supervised(train="boxes"), {"train": images}, ("'train'", "boxes", "reader")),
    ):
        with pytest.raises(ConfigError) as error:
            check_streams(method, streams)
        assert all(words in str(error.value) for words in ("Streams", *named))


def classifier(**options):
    return make_method(read(without_maps({"name": "classifier", **options})))


@pytest.mark.parametrize("options", [{}, {"activation": "softmax"}])
def test_softmax_is_refused_where_an_image_shows_two_classes(options, caplog):
    check_labels(classifier(**options), labeled((1, 0), (0, 1)))
    with pytest.raises(DataError, match="'i1'.*cat, dog"):
        check_labels(classifier(**options), labeled((1, 0), (1, 1)))
    assert not caplog.records


def test_sigmoid_where_every_image_shows_one_class_is_logged(caplog):
    method = classifier(activation="sigmoid")
    check_labels(method, labeled((1, 0), (1, 1)))
    assert not caplog.records
    check_labels(method, labeled((1, 0), (0, 1)))
    assert "activation='softmax'" in caplog.text


def test_labels_of_methods_without_an_activation_are_free(caplog):
    method = make_method(read(SECTIONS["oim_ir"]))
    check_labels(method, labeled((1, 0), (1, 1)))
    check_labels(method, labeled((1, 0), (0, 1)))
    assert not caplog.records


def one_class(*labels):
    records = (ImageRecord(f"i{n}", bytes, 4, 4, (label,)) for n, label in enumerate(labels))
    return ImageSet("set", ("cat",), tuple(records))


@pytest.mark.parametrize("name", ["wsddn", "oicr", "pcl", "mist", "oim"])
def test_a_softmax_over_one_class_learns_nothing(name):
    method = make_method(read({**SECTIONS["oim_ir"].to_dict(), "method": {"name": name}}))
    check_labels(method, labeled((1, 0), (0, 1)))
    with pytest.raises(ConfigError) as refusal:
        check_labels(method, one_class(1, 0))
    assert all(word in str(refusal.value) for word in (f"'{name}'", "'cat'", "'spn'", "'sigmoid'"))


def test_a_sigmoid_learns_from_one_class_and_images_without_it(tmp_path, caplog):
    check_labels(classifier(activation="sigmoid"), one_class(1, 1))
    assert not caplog.records
    with pytest.raises(ConfigError, match="one class"):
        check_labels(classifier(activation="softmax"), one_class(1, 1))
    for number in range(4):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{number}.png")
    (tmp_path / "labels.csv").write_text("image,labels\n0,cat\n1,\n2,cat\n3,\n")
    data = {
        "reader": "folder",
        "folder": str(tmp_path),
        "labels_csv": str(tmp_path / "labels.csv"),
    }
    values = without_maps({"name": "classifier", "activation": "sigmoid"})
    found = TrainingData.read(read({**values, "data": data})).image_set
    assert found.labels.ravel().tolist() == [1, 0, 1, 0]


def test_data_without_boxes_cannot_be_measured(tmp_path):
    data = {"reader": "folder", "folder": str(tmp_path), "labels_csv": "labels.csv"}
    config = read({**SECTIONS["oim_ir"].to_dict(), "data": data})
    with pytest.raises(ConfigError, match=r"boxes.*wsod-jax predict"):
        training_data.read_annotated_boxes(config, "trainval")


def test_test_split_may_be_of_another_year(tmp_path):
    cat = [("cat", (1, 1, 9, 9), False)]
    for year, split, names in (
        ("2007", "trainval", "ab"),
        ("2012", "trainval", "cd"),
        ("2007", "test", "e"),
    ):
        write_voc(tmp_path / f"VOC{year}", {name: ((16, 16), cat) for name in names}, split=split)
    data = dict(reader="voc", root=str(tmp_path), class_names=("cat",), year="07+12")
    values = {**SECTIONS["oim_ir"].to_dict(), "data": {**data, "test_year": "2007"}}
    config = read(values)
    assert config.data.images("trainval").image_ids == tuple("abcd")
    assert config.data.images("test").image_ids == ("e",)
    assert set(training_data.read_annotated_boxes(config, "test").boxes) == {"e"}


def test_proposals_are_read_from_their_file(tmp_path):
    path = str(tmp_path / "none.npz")
    with pytest.raises(DataError, match="none.npz"):
        training_data.read_proposals(read(with_value(SECTIONS["oim_ir"], "proposals.path", path)))
    assert training_data.read_proposals(read(SECTIONS["spn"])) is None


# -- runs that are there already


def compared(before, now) -> str:
    with pytest.raises(ConfigError) as error:
        compare_runs(before, now, (), "runs/one")
    return str(error.value)


def test_what_differs_between_runs_is_told_once():
    def run(method, config, seed=0):
        return {"method": method, "seed": seed, "config": {"seed": seed, **config}}

    message = compared(run("oim", {"alpha": 1}), run("oicr", {"beta": 2}, seed=1))
    assert message.splitlines()[1] == "  method: 'oim' there, 'oicr' now"
    assert "alpha" not in message and "seed" not in message
    message = compared(run("oim", {"alpha": 1}), run("oim", {"beta": 2}, seed=1))
    assert message.splitlines()[1:-1] == [
        "  config.alpha: 1 there, absent now",
        "  config.beta: absent there, 2 now",
        "  config.seed: 0 there, 1 now",
    ]


# -- weights to start from


def test_missing_weights_say_how_to_get_them(tmp_path):
    path = str(tmp_path / "vgg16.npz")
    config = read(with_value(SECTIONS["oim_ir"], "train.init_from", (path,)))
    with pytest.raises(DataError, match=r"vgg16.npz.*wsod-jax convert_weights"):
        runs.warm_start(config, Method())
    unset = read(with_value(SECTIONS["oim_ir"], "train.init_from", ()))
    assert runs.warm_start(unset, Method()) is None


def test_weights_reach_backbone_and_box_head_and_those_of_another_network_do_not(tmp_path, capsys):
    path = tmp_path / "tiny.npz"
    values = with_value(SECTIONS["oim_ir"], "train.init_from", (str(path),))
    kernel = np.full((3, 3, 3, 16), 0.25, np.float32)
    fc6 = np.full((4, 32), 0.5, np.float32)
    loaded = {"conv1_1": {"kernel": kernel}, "fc6": {"kernel": fc6}, "cls": {"kernel": fc6}}
    save_weights(path, loaded, {**read(values).backbone.description, "source": "a test"})
    drawn = {
        "backbone": {"conv1_1": {"kernel": np.zeros_like(kernel), "bias": np.ones(16, np.float32)}},
        "box_head": {"fc6": {"kernel": np.zeros_like(fc6)}},
        "midn": {"cls": {"kernel": np.zeros_like(fc6)}},
    }
    merged, extras = runs.warm_start(read(values), Method())(drawn, {})
    assert (merged["backbone"]["conv1_1"]["kernel"] == 0.25).all()
    assert (merged["backbone"]["conv1_1"]["bias"] == 1).all()
    assert (merged["box_head"]["fc6"]["kernel"] == 0.5).all()
    assert not merged["midn"]["cls"]["kernel"].any() and extras == {}
    assert str(path) in capsys.readouterr().out

    values["backbone"] = {"name": "vgg16", "frozen": ("conv1",)}
    values["train"]["cache"] = "none"
    with pytest.raises(DataError, match="architecture .*'tiny'.*'vgg16'"):
        runs.warm_start(read(values), Method())


# -- the classes themselves


def test_nothing_below_the_commands_knows_a_configdict():
    folder = Path(build.__file__).parent
    for path in sorted(folder.rglob("*.py")):
        if path.relative_to(folder).parts[0] not in ("commands", "presets"):
            assert "ml_collections" not in path.read_text(encoding="utf-8"), path


def option_classes():
    """Return every class of options that a configuration can hold."""
    found, tables = [], build.union_tables()
    queue = [RunConfig, *(cls for table in tables.values() for cls in table.values())]
    while queue:
        cls = queue.pop()
        if cls in found:
            continue
        found.append(cls)
        for hint in option_hints(cls, cls not in build.METHODS.values()).values():
            for member in members(hint):
                if dataclasses.is_dataclass(member) and member is not Chosen:
                    queue.append(member)
    return found


def test_every_default_is_a_value_that_its_option_may_have():
    for cls in option_classes():
        with_parts = cls not in build.METHODS.values()
        for key, hint in option_hints(cls, with_parts).items():
            field = next(f for f in dataclasses.fields(cls) if f.name == key)
            default = field.default
            if default is not dataclasses.MISSING and not isinstance(hint, Mark):
                assert overrides.fits(default, hint, build.union_tables()), (cls, key)


@pytest.mark.parametrize(
    ("bounds", "words", "inside", "outside"),
    [
        (Range(), "", (-1e9, 0.5), ()),
        (Range(0), " from 0 up", (0, 1e9), (-1e-9,)),
        (SHARE, " from 0 to 1", (0, 1), (-1e-9, 1.1)),
        (POSITIVE, " above 0", (1e-15, 3), (0, -1)),
        (BELOW_ONE, " from 0 to below 1", (0, 1 - 1e-12), (1, -1)),
        (Range(0, 1, is_low_in=False), " above 0 up to 1", (1e-15, 1), (0, 1.1)),
    ],
)
def test_ranges_with_and_without_their_ends(bounds, words, inside, outside):
    assert str(bounds) == words
    assert all(value in bounds for value in inside)
    assert not any(value in bounds for value in (*outside, float("nan")))


def test_what_is_allowed_can_be_said_of_every_option():
    for cls in option_classes():
        for key, hint in option_hints(cls, cls not in build.METHODS.values()).items():
            words = described(hint)
            assert words and "<class" not in words and "typing" not in words, (cls, key, words)


def test_test_settings_are_the_same_whether_set_or_not():
    assert (
        build.change(read(SECTIONS["oim_ir"]), ["nms_thr=0.3"]).eval.nms_thr
        == EvalOptions().nms_thr
    )


def test_a_configdict_is_read_with_its_references_resolved():
    values = ConfigDict(get_config("oim_ir").to_dict())
    values.optim.warmup_steps = values.train.get_ref("num_steps")
    assert read(values).optim.warmup_steps == read(values).train.num_steps
