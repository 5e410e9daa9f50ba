"""Every file in configs/ loads, uses all it says, and is traced at its full size; none of it is run."""

import ast
import contextlib
import dataclasses
import importlib
import inspect
import re
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from configs.small_sets import METHODS
from configs.spn import SOLVERS as PUBLISHED_SOLVERS
from configs.spn_small_sets import SOLVERS
from configs.spn_vgg16_voc07 import MICRO_BATCHES as IMAGE_SIZES
from wsod_jax import build
from wsod_jax.data.transforms import Canvases
from wsod_jax.errors import DataError
from wsod_jax.train.sharding import make_mesh
from wsod_jax.train.state import TrainState
from wsod_jax.train.step import make_train_step
from wsod_jax.types import Batch

FOLDER = Path(__file__).resolve().parents[1] / "configs"
MAX_PROGRAMS = 24
VARIANTS = {  # of files whose variants are not the methods of the small sets
    "spn_cards6": SOLVERS,
    "spn_synthetic": SOLVERS,
    "spn_vgg16_voc07": IMAGE_SIZES,
    "spn_googlenet_voc07": PUBLISHED_SOLVERS,
    "spn_googlenet_coco14": PUBLISHED_SOLVERS,
    "spn_googlenet_ilsvrc": PUBLISHED_SOLVERS,
}


def all_configs() -> dict:
    """Return "file" or "file:variant" -> configuration, for every file that gives one."""
    found = {}
    for path in sorted(FOLDER.glob("*.py")):
        get_config = getattr(importlib.import_module(f"configs.{path.stem}"), "get_config", None)
        if get_config is None:
            continue
        if "variant" in inspect.signature(get_config).parameters:
            default = inspect.signature(get_config).parameters["variant"].default
            variants = VARIANTS.get(path.stem, METHODS)
            found |= {f"{path.stem}:{name}": get_config(name) for name in variants}
            assert get_config() == found[f"{path.stem}:{default}"]
        else:
            found[path.stem] = get_config()
    return found


CONFIGS = all_configs()
PUBLISHED = [name for name in CONFIGS if re.search("voc|coco|ilsvrc", name)]


@pytest.fixture(params=list(CONFIGS))
def config(request):
    return CONFIGS[request.param].copy_and_resolve_references()


def abstract_batch(config, canvases: Canvases, num_images: int, num_classes: int) -> Batch:
    """Return the shapes of a batch on the largest canvas."""
    height, width = max(canvases.shapes(), key=lambda shape: shape[0] * shape[1])
    rows = config.proposals.max_proposals if "proposals" in config else None

    def of(shape, dtype):
        return None if None in shape else jax.ShapeDtypeStruct((num_images, *shape), dtype)

    return Batch(
        image=of((height, width, 3), jnp.uint8),
        image_size=of((2,), jnp.int32),
        image_mask=of((), bool),
        image_index=of((), jnp.int32),
        labels=of((num_classes,), jnp.int32),
        proposals=of((rows, 4), jnp.float32),
        proposal_mask=of((rows,), bool),
        representative=of((rows,), jnp.int32),
        scale=of((2,), jnp.float32),
        flipped=of((), bool),
    )


@dataclasses.dataclass
class Traced:
    """A configuration's programs, their arguments as shapes, and one device to lay them out on."""

    config: object
    num_classes: int = 20

    def __post_init__(self):
        self.method = build.method(self.config, num_classes=self.num_classes, max_classes=6)
        self.settings = build.train_settings(self.config)
        self.tests = build.eval_settings(self.config)
        tx, schedule = build.optimizer(self.config)
        self.step = make_train_step(
            self.method,
            tx,
            seed=self.config.seed,
            mesh=make_mesh(1),
            accumulate=self.settings.accumulate,
            schedule=schedule,
        )
        images = self.settings.micro_batch
        self.batch = abstract_batch(self.config, self.settings.canvases, images, self.num_classes)
        self.params, self.extras = jax.eval_shape(
            lambda batch: self.method.init(jax.random.key(0), batch), self.batch
        )
        count = jax.ShapeDtypeStruct((), jnp.int32)
        opt_state = jax.eval_shape(tx.init, self.params)
        self.state = TrainState(count, self.params, self.extras, opt_state)

    def view(self, purpose: str) -> Batch:
        return abstract_batch(
            self.config, self.tests.canvases(purpose), self.tests.micro_batch, self.num_classes
        )


def test_config_is_traced_at_full_size(config):
    traced = Traced(config)
    state, metrics = jax.eval_shape(traced.step.fused, traced.state, traced.batch)
    assert jax.tree.map(np.shape, state.params) == jax.tree.map(np.shape, traced.params)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
    num_stages = config.get("network", {}).get("num_stages", 0)
    assert sum(name.startswith("loss/refine_") for name in metrics) == num_stages
    assert {"loss", "lr", "grad_norm"} <= set(metrics)
    assert all(value.shape == () for value in metrics.values())

    batch = traced.view("map")
    found = jax.eval_shape(traced.method.predict, traced.params, traced.extras, batch)
    assert found.image_scores.shape == (traced.tests.micro_batch, 20)
    if "proposals" in config:
        rows = (traced.tests.micro_batch, config.proposals.max_proposals)
        assert found.scores.shape == (*rows, 20) and found.boxes.shape == (*rows, 4)
    assert (found.maps is not None) == ("localization" in config)


def test_nothing_in_a_config_is_ignored(config, tmp_path):
    build.check_sections(config)
    build.log_settings(config)
    config.data.root = str(tmp_path / "data")
    with pytest.raises(DataError, match="data"):  # every key was accepted, then nothing was found
        build.images(config, config.data.train_split)
    with pytest.raises(DataError, match="data"):
        build.ground_truth(config, config.data.test_split)
    if "proposals" in config:
        config.proposals.path = str(tmp_path / "proposals.npz")
        with pytest.raises(DataError, match="proposals.npz"):
            build.proposals(config)
    config.backbone.weights = str(tmp_path / "weights.npz")
    with pytest.raises(DataError, match="convert_weights.py"):
        build.warm_start(config)


def predicted_shapes(tests: build.EvalSettings) -> set[tuple[int, int]]:
    """Return the canvases of all that an evaluation predicts, for mAP and for CorLoc."""
    return {shape for use in ("map", "corloc") for shape in tests.canvases(use).shapes()}


def test_number_of_programs_is_bounded(config):
    """One per scale and orientation, of the training step and of the prediction for mAP and CorLoc."""
    settings, tests = build.train_settings(config), build.eval_settings(config)
    programs = len(settings.canvases.shapes()) + len(predicted_shapes(tests))
    assert programs <= 2 * (len(settings.scales) + len(tests.scales)) <= MAX_PROGRAMS


def test_five_scales_and_ten_views_take_twenty_programs():
    config = CONFIGS["oim_ir_vgg16_voc07"]
    settings, tests = build.train_settings(config), build.eval_settings(config)
    assert len(settings.scales) == 5 and tests.num_views == 10
    assert (tests.resize, tests.corloc_resize) == ("short", "long")
    assert len(settings.canvases.shapes()) == len(predicted_shapes(tests)) == 10


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_number_and_its_source_are_cited(name):
    path = FOLDER / f"{name.partition(':')[0]}.py"
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert re.search(r"(mAP|pointing|error) \d\d\.\d\b", text)
    assert re.search(r"\b(et al\.|and [A-Z]\w+) 20\d\d\b", text)
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 120


OVERRIDE = re.compile(r'--config\.(\w+)\.(\w+)=("[^"]*"|[^\s,;()]*[^\s,;().])')


@pytest.mark.parametrize("name", PUBLISHED)
def test_overrides_in_a_docstring_build(name):
    path = FOLDER / f"{name.partition(':')[0]}.py"
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    for section, key, value in OVERRIDE.findall(text):
        config = CONFIGS[name].copy_and_resolve_references()
        value = value.strip('"')
        with contextlib.suppress(ValueError, SyntaxError):
            value = ast.literal_eval(value)
        config[section].update({key: value})
        build.method(config, num_classes=20, max_classes=6)
        build.proposal_rules(config), build.train_settings(config), build.eval_settings(config)
        assert key in build.settings_used(config).get(section, {}) or section == "eval"


def test_wsddn_as_released_merges_no_more_than_its_map_does():
    text = ast.get_docstring(ast.parse((FOLDER / "wsddn_vgg16_voc07.py").read_text("utf-8")))
    found = {f"{section}.{key}": value for section, key, value in OVERRIDE.findall(text)}
    assert found["backbone.dilated"] == "False" and found["proposals.dedup_stride"] == "1"
    assert len(found) == 16


PUBLISHED_SCHEDULES = {  # updates, learning rate, first drop, batch
    "wsddn_vgg16_voc07": (70_000, 1e-3, 40_000, 2),
    "oicr_vgg16_voc07": (70_000, 1e-3, 40_000, 2),
    "pcl_vgg16_voc07": (50_000, 1e-3, 40_000, 2),
    "mist_vgg16_voc07": (30_000, 1e-2, 20_000, 8),
    "oim_vgg16_voc07": (90_000, 1e-3, 40_000, 2),
    "oim_ir_vgg16_voc07": (90_000, 1e-3, 40_000, 2),
    "oim_ir_vgg16_voc12": (90_000, 1e-3, 40_000, 2),
}


@pytest.mark.parametrize("name", list(PUBLISHED_SCHEDULES))
def test_schedule_is_the_published_one(name):
    num_steps, rate, drop, batch_size = PUBLISHED_SCHEDULES[name]
    config = CONFIGS[name]
    settings = build.train_settings(config)
    _, schedule = build.optimizer(config)
    assert settings.num_steps == num_steps
    assert settings.micro_batch * settings.accumulate == batch_size
    assert float(schedule(drop - 1)) == pytest.approx(rate)
    assert float(schedule(drop)) == pytest.approx(rate / 10)


def lowered(traced: Traced) -> list[str]:
    """Export a configuration's training and prediction step for both accelerators; return their text."""
    programs = [
        (traced.step.fused, (traced.state, traced.batch)),
        (traced.method.predict, (traced.params, traced.extras, traced.view("map"))),
    ]
    texts = []
    for function, arguments in programs:
        exported = jax.export.export(jax.jit(function), platforms=["tpu", "cuda"])(*arguments)
        assert exported.platforms == ("tpu", "cuda")
        texts.append(exported.mlir_module())
    return texts


SMALL = [
    *(f"debug_tiny:{name}" for name in METHODS if name != "oim_ir"),
    *(f"spn_synthetic:{name}" for name in SOLVERS if name != "spn"),
    "pretrain_tiny",
]


@pytest.mark.parametrize(
    "name",
    [
        "debug_tiny:oim_ir",
        "spn_synthetic:spn",
        *(pytest.param(name, marks=pytest.mark.slow) for name in SMALL),
    ],
)
def test_steps_lower_for_accelerators(name):
    for text in lowered(Traced(CONFIGS[name], num_classes=3)):
        assert "callback" not in text  # nothing waits for the host


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_steps_lower_for_accelerators(name):
    for text in lowered(Traced(CONFIGS[name])):
        assert "callback" not in text
