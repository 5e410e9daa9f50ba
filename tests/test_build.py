"""From configuration to objects: what is wrong is named, with what is allowed and the likely intention."""

import inspect

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs.debug_tiny import get_config
from configs.spn_synthetic import get_config as get_spn_config
from tests.data.voc_tree import write_voc
from wsod_jax import build
from wsod_jax.config_values import RANGES
from wsod_jax.data.records import ImageRecord, ImageSet
from wsod_jax.errors import ConfigError, DataError
from wsod_jax.experiment import change_settings
from wsod_jax.methods.refinement import RefinedDetector
from wsod_jax.methods.wsddn import Wsddn
from wsod_jax.nn.tiny import TinyNet
from wsod_jax.weights.npz import save_weights


def make_method(config):
    return build.method(config, num_classes=3, max_classes=2)


BUILDERS = {
    "method": make_method,
    "network": make_method,
    "neck": make_method,
    "backbone": build.backbone,
    "data": lambda config: build.images(config, "trainval"),
    "proposals": build.proposal_rules,
    "train": build.train_settings,
    "optim": build.optimizer,
    "log": build.log_settings,
    "eval": build.eval_settings,
}


@pytest.mark.parametrize(
    ("section", "key", "meant"),
    [
        ("method", "betta", "beta"),
        ("network", "num_stage", "num_stages"),
        ("neck", "dropout", "dropout_rate"),
        ("backbone", "strides", "stride"),
        ("data", "rot", "root"),
        ("proposals", "max_proposal", "max_proposals"),
        ("train", "num_step", "num_steps"),
        ("optim", "learning_rat", "learning_rate"),
        ("optim", "moment", "momentum"),
        ("log", "evry", "every"),
        ("eval", "nms_threshold", "nms_thr"),
    ],
)
def test_unknown_key_suggests_the_closest(section, key, meant):
    config = get_config()
    config[section] = {**config[section], key: 1}
    with pytest.raises(ConfigError, match=rf"config\.{section}\.{key} does not exist") as error:
        BUILDERS[section](config)
    assert f"Did you mean {meant!r}?" in str(error.value)


def test_sweep_of_iou_thresholds():
    config = get_config()
    config.eval.iou_thrs = "sweep"
    settings = build.eval_settings(config)
    assert settings.iou_thrs == (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
    assert change_settings(build.EvalSettings(), ["iou_thrs=sweep"]).iou_thrs == settings.iou_thrs
    for section, value in (("eval", "swep"), ("log", "mAP")):
        key = {"eval": "iou_thrs", "log": "best"}[section]
        config[section] = {key: value}
        with pytest.raises(ConfigError, match=f"config.{section}.{key} is '{value}'; allowed are"):
            BUILDERS[section](config)


def test_changed_test_settings():
    settings = build.EvalSettings()
    assert change_settings(settings, ["scales=480"]).scales == (480,)
    assert change_settings(settings, ["average_per_image=40"]).average_per_image == 40
    settings = change_settings(settings, ["average_per_image=40"])
    assert change_settings(settings, ["average_per_image=None"]).average_per_image is None
    for change, message in (
        ("scales=large", "eval.scales is 'large'; allowed are tuples of whole numbers"),
        ("micro_batch=2.5", r"eval.micro_batch is 2.5; allowed are whole numbers"),
        ("top_k=True", "eval.top_k is True; allowed are whole numbers"),
        ("iou_thrs=()", r"eval.iou_thrs is empty; it needs at least one, as in \(0.5,\)"),
    ):
        with pytest.raises(ConfigError, match=message):
            change_settings(settings, [change])


@pytest.mark.parametrize(
    ("section", "key", "value", "allowed"),
    [
        ("method", "fg_iou_thr", "abc", "numbers"),
        ("method", "fg_iou_thr", 1.5, "numbers from 0 to 1"),
        ("method", "max_nodes", -3, "numbers from 0 up"),
        ("method", "alpha", ((0, "5"),), r"tuples of tuples \(whole numbers; numbers\)"),
        ("method", "davg_includes_core", 1, "True, False"),
        ("method", "release_core_sign", True, "-1, 1"),
        ("network", "det_temperature", 0.0, "numbers from 1e-12 up"),
        ("neck", "dims", (64, 0), "numbers from 1 up"),
        ("neck", "dropout_rate", 1, "numbers from 0 to 0.999"),
        ("backbone", "mean", (1.0, 2.0), r"tuples \(numbers; numbers; numbers\)"),
        ("data", "root", 7, "text"),
        ("proposals", "max_proposals", "64", "whole numbers"),
        ("train", "num_steps", -5, "numbers from 0 up"),
        ("train", "micro_batch", 2.5, "whole numbers"),
        ("train", "flip", "no", "True, False"),
        ("train", "crop_margin", -1, "numbers from 0 up"),
        ("train", "ema_decay", "abc", "numbers, None"),
        ("train", "ema_decay", 1.0, "numbers from 0 to"),
        ("optim", "learning_rate", float("nan"), "numbers from 0 up"),
        ("log", "num_pictures", -1, "numbers from 0 up"),
        ("eval", "top_k", 0, "numbers from 1 up"),
        ("eval", "iou_thrs", (0.5, 75), "numbers from 0 to 1"),
    ],
)
def test_value_of_another_kind_or_out_of_range(section, key, value, allowed):
    config = get_config("oim_ir")
    config[section] = {**config[section], key: value}
    with pytest.raises(
        ConfigError, match=rf"config\.{section}\.{key} is .*; allowed are {allowed}"
    ):
        BUILDERS[section](config)


@pytest.mark.parametrize(
    ("section", "key", "value", "allowed"),
    [
        ("network", "extra_channels", 0, "numbers from 1 up"),
        ("network", "extra_groups", 0, "numbers from 1 up"),
        ("network", "dropout_rate", 1.0, "numbers from 0 to 0.999"),
        ("soft_proposal", "solver", "walks", "'walk', 'stationary', 'uniform'.*mean 'walk'"),
        ("soft_proposal", "epsilon_factor", 0, "numbers from 1e-12 up"),
        ("soft_proposal", "num_steps", -1, "numbers from 0 up"),
        ("soft_proposal", "tolerance", -1e-4, "numbers from 0 up"),
        ("soft_proposal", "block_nodes", 0, "numbers from 1 up"),
        ("localization", "solver", "cam", "'walk', 'stationary', 'uniform', None"),
        ("localization", "threshold", -0.5, "numbers from 0 up"),
        ("localization", "connectivity", 6, "4, 8"),
        ("localization", "boxes", "component", "Did you mean 'components'"),
        ("localization", "nms_thr", 1.1, "numbers from 0 to 1"),
        ("localization", "min_side_px", -1.0, "numbers from 0 up"),
        ("localization", "predicted_thr", 50, "numbers from 0 to 1"),
        ("localization", "pointing_px", -15, "numbers from 0 up"),
        ("localization", "prediction_px", -18, "numbers from 0 up"),
    ],
)
def test_value_of_spn_out_of_range(section, key, value, allowed):
    config = get_spn_config()
    builder = {"localization": build.localization_settings}.get(section, make_method)
    builder(config)
    config[section] = {**config[section], key: value}
    with pytest.raises(
        ConfigError, match=rf"config\.{section}\.{key} is .*; allowed are .*{allowed}"
    ):
        builder(config)


def test_scales_are_checked_before_the_first_image():
    config = get_config()
    config.train.scales = config.eval.scales = (96, 96)
    for builder in (build.train_settings, build.eval_settings):
        with pytest.raises(ConfigError, match="distinct side lengths"):
            builder(config)


def test_windows_of_images_and_cached_features_exclude_each_other():
    config = get_config()
    config.train.resize, config.train.crop_margin, config.train.cache_features = "warp", 8, False
    assert build.train_settings(config).canvases.crop_margin == 8
    config.train.cache_features = True
    with pytest.raises(ConfigError, match=r"crop_margin is 8.*cache_features"):
        build.train_settings(config)


def labelled(*rows):
    records = (ImageRecord(f"i{n}", bytes, 4, 4, row) for n, row in enumerate(rows))
    return ImageSet("set", ("cat", "dog"), tuple(records))


@pytest.mark.parametrize("options", [{}, {"activation": "softmax"}])
def test_softmax_is_refused_where_an_image_shows_two_classes(options, caplog):
    config = get_config()
    config.method = {"name": "classifier", **options}
    build.check_labels(config, labelled((1, 0), (0, 1)))
    with pytest.raises(DataError, match="'i1', with cat, dog"):
        build.check_labels(config, labelled((1, 0), (1, 1)))
    assert not caplog.records


def test_sigmoid_where_every_image_shows_one_class_is_logged(caplog):
    config = get_config()
    config.method = {"name": "classifier", "activation": "sigmoid"}
    build.check_labels(config, labelled((1, 0), (1, 1)))
    assert not caplog.records
    build.check_labels(config, labelled((1, 0), (0, 1)))
    assert "activation='softmax'" in caplog.text


def test_labels_of_methods_without_an_activation_are_free(caplog):
    build.check_labels(get_config("oim_ir"), labelled((1, 0), (1, 1)))
    build.check_labels(get_config("oim_ir"), labelled((1, 0), (0, 1)))
    assert not caplog.records


def test_whole_numbers_are_numbers():
    config = get_config("oim_ir")
    config.method.beta, config.train.ema_decay = 1, 0
    config.optim.name, config.optim.momentum = "sgd", 0
    make_method(config), build.optimizer(config)
    assert build.train_settings(config).ema_decay == 0


def test_settings_used_tell_defaults_too():
    used = build.settings_used(get_config("oim_ir"))
    assert used["method"]["mil_reduction"] == "mean" and used["method"]["beta"] == 0.2
    assert used["network"]["det_temperature"] == 1.0 and used["data"]["difficult"] == "drop"
    assert used["train"]["resize"] == "short" and used["train"]["micro_batch"] == 2
    assert used["optim"]["momentum"] == 0.9 and used["optim"]["groups"]
    assert used["backbone"]["dtype"] == "float32"
    config = get_config()
    config.method = {"name": "classifier"}
    del config["network"], config["neck"], config["proposals"]
    assert build.settings_used(config)["method"] == {"name": "classifier", "activation": "softmax"}


@pytest.mark.parametrize(
    ("section", "key"),
    [("network", "num_classes"), ("network", "name"), ("method", "network"), ("neck", "parent")],
)
def test_what_the_code_itself_decides_cannot_be_configured(section, key):
    config = get_config()
    config[section] = {**config[section], key: 3}
    with pytest.raises(ConfigError, match=f"config.{section}.{key} does not exist"):
        BUILDERS[section](config)


@pytest.mark.parametrize(
    ("section", "key", "value", "meant"),
    [
        ("method", "reweight", "papr", "paper"),
        ("method", "mining_feature", "fc7_drop", "fc7_dropout"),
        ("network", "pooling", "mx", "max"),
        ("backbone", "stride", 16, None),
        ("data", "difficult", "dropp", "drop"),
        ("train", "loader", "thread", "threads"),
        ("train", "resize", "shorter", "short"),
        ("optim", "update_rule", "torch", "pytorch"),
        ("optim", "shape", "step", "steps"),
        ("eval", "ap", "11points", "11point"),
    ],
)
def test_value_outside_its_choices(section, key, value, meant):
    config = get_config()
    config[section] = {**config[section], key: value}
    with pytest.raises(ConfigError, match=rf"config\.{section}\.{key} is {value!r}; allowed") as e:
        BUILDERS[section](config)
    if meant:
        assert f"Did you mean {meant!r}?" in str(e.value)


@pytest.mark.parametrize(
    ("section", "key", "value", "meant"),
    [
        ("method", "name", "oirc", "oicr"),
        ("method", "name", None, None),
        ("backbone", "name", "vgg", "vgg16"),
        ("data", "reader", "vok", "voc"),
        ("backbone", "dtype", "float16", None),
        ("neck", "dtype", "half", None),
    ],
)
def test_unknown_names(section, key, value, meant):
    config = get_config()
    config[section] = {k: v for k, v in config[section].items() if k != key} | {key: value}
    with pytest.raises(ConfigError, match=f"config.{section}.{key}.*{value!r}; allowed are") as e:
        BUILDERS[section](config)
    if meant:
        assert f"Did you mean {meant!r}?" in str(e.value)


def test_unknown_section():
    config = get_config()
    config.evals = ConfigDict()
    with pytest.raises(ConfigError, match=r"config\.evals is no section.*Did you mean 'eval'"):
        make_method(config)
    with pytest.raises(ConfigError, match=r"config\.evals is no section"):
        build.from_dict(config.to_dict())


@pytest.mark.parametrize("section", ["seed", "method", "backbone", "neck", "network", "optim"])
def test_missing_section(section):
    config = get_config()
    del config[section]
    with pytest.raises(ConfigError, match=f"config lacks .*{section}"):
        build.check_sections(config)


@pytest.mark.parametrize(
    ("section", "key"),
    [("proposals", "max_proposals"), ("train", "num_steps"), ("optim", "learning_rate")],
)
def test_missing_key(section, key):
    config = get_config()
    del config[section][key]
    with pytest.raises(ConfigError, match=f"config.{section} lacks {key}"):
        BUILDERS[section](config)


@pytest.mark.parametrize(("variant", "num_stages"), [("wsddn", 3), ("oicr", 0), ("oim", 0)])
def test_number_of_stages_must_fit_the_method(variant, num_stages):
    config = get_config(variant)
    config.network.num_stages = num_stages
    with pytest.raises(ConfigError, match=f"num_stages is {num_stages} for method {variant!r}"):
        make_method(config)


@pytest.mark.parametrize(
    ("variant", "kind", "stages"), [("wsddn", Wsddn, 0), ("oim_ir", RefinedDetector, 3)]
)
def test_method_is_what_its_sections_say(variant, kind, stages):
    config = get_config(variant)
    config.network.roi_size, config.neck.dims = 5, [6, 7]
    method = make_method(config)
    assert isinstance(method, kind)
    assert (method.network.num_stages, method.network.roi_size) == (stages, 5)
    assert method.network.neck.dims == (6, 7)  # lists in a stored configuration become tuples
    assert isinstance(method.network.backbone, TinyNet)
    assert method.network.backbone.frozen == ("conv",)


def test_stored_configuration_builds_the_same_method(tmp_path):
    config = get_config("oim_ir")
    path = tmp_path / "config.json"
    path.write_text(config.to_json(), encoding="utf-8")
    assert make_method(build.load_config(path)).network == make_method(config).network
    assert build.eval_settings(build.load_config(path)) == build.eval_settings(config)
    assert build.train_settings(build.load_config(path)) == build.train_settings(config)


def test_missing_weights_say_how_to_get_them(tmp_path):
    config = get_config()
    config.backbone.weights = str(tmp_path / "vgg16.npz")
    with pytest.raises(DataError, match=r"No weights at .*vgg16.npz.*scripts/convert_weights.py"):
        build.warm_start(config)
    config.backbone.weights = None
    assert build.warm_start(config) is None


def test_weights_reach_backbone_and_neck_and_those_of_another_network_do_not(tmp_path, capsys):
    config = get_config()
    path = tmp_path / "tiny.npz"
    config.backbone.weights = str(path)
    kernel = np.full((3, 3, 3, 16), 0.25, np.float32)
    fc6 = np.full((4, 32), 0.5, np.float32)
    loaded = {"conv1_1": {"kernel": kernel}, "fc6": {"kernel": fc6}, "cls": {"kernel": fc6}}
    meta = {**build.backbone(config).description, "source": "a test"}
    save_weights(path, loaded, meta)
    drawn = {
        "backbone": {"conv1_1": {"kernel": np.zeros_like(kernel), "bias": np.ones(16, np.float32)}},
        "neck": {"fc6": {"kernel": np.zeros_like(fc6)}},
        "midn": {"cls": {"kernel": np.zeros_like(fc6)}},
    }
    merged, extras = build.warm_start(config)(drawn, {})
    assert extras == {}
    assert (merged["backbone"]["conv1_1"]["kernel"] == 0.25).all()
    assert (merged["backbone"]["conv1_1"]["bias"] == 1).all()
    assert (merged["neck"]["fc6"]["kernel"] == 0.5).all()
    assert not merged["midn"]["cls"]["kernel"].any()
    assert str(path) in capsys.readouterr().out

    config.backbone.name = "vgg16"
    del config.backbone["stride"]
    with pytest.raises(DataError, match="architecture is 'tiny' in the file and 'vgg16'"):
        build.warm_start(config)


def test_test_split_may_be_of_another_year(tmp_path):
    cat = [("cat", (1, 1, 9, 9), False)]
    for year, split, names in (
        ("2007", "trainval", "ab"),
        ("2012", "trainval", "cd"),
        ("2007", "test", "e"),
    ):
        write_voc(tmp_path / f"VOC{year}", {name: ((16, 16), cat) for name in names}, split=split)
    config = get_config()
    config.data = ConfigDict(
        dict(
            reader="voc",
            root=str(tmp_path),
            class_names=("cat",),
            year="07+12",
            train_split="trainval",
            test_split="test",
            test_year="2007",
        )
    )
    assert build.images(config, "trainval").image_ids == tuple("abcd")
    assert build.images(config, "test").image_ids == ("e",)
    assert set(build.ground_truth(config, "test").boxes) == {"e"}
    del config.data.test_year
    with pytest.raises(DataError, match="VOC2012"):
        build.images(config, "test")


def test_data_without_boxes_cannot_be_measured(tmp_path):
    config = get_config()
    config.data = {"reader": "folder", "folder": str(tmp_path), "labels_csv": "labels.csv"}
    assert not build.has_boxes(config)
    with pytest.raises(ConfigError, match=r"'folder' has no boxes.*scripts/predict.py"):
        build.ground_truth(config, "trainval")
    assert build.has_boxes(get_config())


def test_proposals_need_a_path_and_a_file(tmp_path):
    config = get_config()
    config.proposals.path = str(tmp_path / "none.npz")
    with pytest.raises(DataError, match="none.npz"):
        build.proposals(config)
    del config.proposals["path"]
    with pytest.raises(
        ConfigError, match=r"config.proposals lacks path; scripts/make_proposals.py"
    ):
        build.proposals(config)
    del config["proposals"]
    assert build.proposals(config) is None and build.proposal_rules(config) is None


def test_frozen_layers_get_no_update_whatever_the_decay():
    config = get_config("oicr")
    config.backbone.frozen = ("conv1",)
    config.optim.weight_decay, config.optim.warmup_steps = 0.5, 0
    config.optim.learning_rate, config.optim.decay_steps = 1e-4, (4,)
    tx, schedule = build.optimizer(config)
    params = {"backbone": {"conv1_1": np.ones(2), "conv2_1": np.ones(2)}, "midn": np.ones(2)}
    params = jax.tree.map(lambda x: np.asarray(x, np.float32), params)
    updates, _ = tx.update(params, tx.init(params), params)
    assert not np.any(updates["backbone"]["conv1_1"])
    assert np.all(updates["backbone"]["conv2_1"]) and np.all(updates["midn"])
    rates = [float(schedule(step)) for step in (0, 3, 4)]
    np.testing.assert_allclose(rates, [1e-4, 1e-4, 1e-5], rtol=1e-6)


def test_groups_of_parameters_are_tuples_or_dicts():
    config = get_config()
    config.backbone.frozen = ()
    config.optim = {"learning_rate": 0.1, "momentum": 0.0, "groups": [["bias", 2.0, 0.0]]}
    config.optim.groups += ({"pattern": "mask", "decay_steps": [1], "decay_factor": 3.0},)
    tx, _ = build.optimizer(config)
    params = {"head": {"bias": np.ones(1, np.float32)}, "mask": np.ones(1, np.float32)}
    state = tx.init(params)
    first, state = tx.update(params, state, params)
    second, _ = tx.update(params, state, params)
    np.testing.assert_allclose([first["head"]["bias"][0], first["mask"][0]], [-0.2, -0.1])
    np.testing.assert_allclose([second["head"]["bias"][0], second["mask"][0]], [-0.2, -0.3])


@pytest.mark.parametrize(
    ("group", "message"),
    [
        (("bias", "fast"), r"config\.optim\.groups\.lr is 'fast'; allowed are numbers"),
        (("bias", 1.0, -1.0), r"config\.optim\.groups\.decay is -1\.0; allowed are numbers from 0"),
        (("bias", 1.0, 1.0, (), 1.0, 0, 7), r"config\.optim\.groups.*up to 6 values \(pattern, lr"),
        ("bias", "a group is a tuple"),
        ((), r"config\.optim\.groups lacks pattern"),
        ({"pattern": "bias", "rate": 2.0}, r"config\.optim\.groups\.rate does not exist.*lr"),
        ({"pattern": "("}, "no.* regular expression"),
    ],
)
def test_groups_that_are_none_are_refused(group, message):
    config = get_config()
    config.optim = {**config.optim, "groups": (group,)}
    with pytest.raises(ConfigError, match=message):
        build.optimizer(config)


def test_cosine_with_warm_up():
    config = get_config()
    config.optim = {"learning_rate": 0.2, "shape": "cosine", "warmup_steps": 2, "warmup_factor": 0}
    config.train.num_steps = 8
    _, schedule = build.optimizer(config)
    rates = [float(schedule(step)) for step in (0, 2, 4, 8)]
    halfway = 0.2 * 0.5 * (1 + np.cos(np.pi / 4))
    np.testing.assert_allclose(rates, [0, halfway, 0.1, 0], atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"every": 0}, r"config\.log\.every is 0; .* from 1 up"),
        ({"checkpoint_every": 0}, r"config\.log\.checkpoint_every is 0; .* from 1 up"),
        ({"milestones_every": 4}, r"milestones_every is 4, .* every 3 updates; .* a multiple"),
    ],
)
def test_intervals_that_cannot_be_kept_are_refused(changes, message):
    config = get_config()
    config.log.update(changes)
    with pytest.raises(ConfigError, match=message):
        build.log_settings(config)
    config.log.update(every=1, checkpoint_every=3, milestones_every=0)
    build.log_settings(config)


def test_every_range_is_of_a_setting_that_exists():
    takers = {
        "method": list(build.METHODS.values()),
        "network": [build.ProposalNetwork, build.SpnNetwork],
        "soft_proposal": [build.SoftProposal],
        "backbone": list(build.BACKBONES.values()),
        "neck": [build.FcNeck],
        "train": [build.TrainSettings],
        "optim": [build.Optimizer],
        "optim.groups": [build.Group],
        "log": [build.LogSettings],
        "eval": [build.EvalSettings],
        "localization": [build.LocalizationSettings],
    }
    known = {
        f"{section}.{key}"
        for section, functions in takers.items()
        for function in functions
        for key in inspect.signature(function).parameters
    }
    assert set(RANGES) <= known


def test_options_of_the_labels_alone_are_not_asked_of_the_boxes(tmp_path):
    config = get_config()
    config.data = {"reader": "voc", "root": str(tmp_path), "difficult": "keep"}
    config.data.class_names = ("cat", "dog")
    write_voc(tmp_path, {"a": ((9, 9), [("cat", (1, 1, 5, 5), True)])})
    assert len(build.ground_truth(config, "trainval").boxes["a"].boxes) == 1
    config.data = {"reader": "image_folder", "root": str(tmp_path / "images")}
    config.data.annotations = str(tmp_path / "boxes")
    (tmp_path / "images" / "val").mkdir(parents=True)
    (tmp_path / "boxes").mkdir()
    (tmp_path / "JPEGImages").rename(tmp_path / "images" / "val" / "cat")
    (tmp_path / "Annotations").rename(tmp_path / "boxes" / "val")
    assert build.images(config, "val").image_ids == ("cat/a",)
    assert list(build.ground_truth(config, "val").boxes) == ["cat/a"]
    config.data.dificult = "keep"
    with pytest.raises(ConfigError, match=r"config\.data\.dificult does not exist"):
        build.ground_truth(config, "trainval")
