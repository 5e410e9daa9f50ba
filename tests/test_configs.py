"""Every file in configs/ loads from anywhere, is read whole, and is traced at its full size; none of it is run."""

import ast
import functools
import importlib.util
import inspect
import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from wsod_jax import build, presets
from wsod_jax.config.run_config import RunConfig
from wsod_jax.data.input.transforms import Canvases
from wsod_jax.errors import ConfigError
from wsod_jax.methods.regression import Regression
from wsod_jax.train.sharding import make_mesh
from wsod_jax.train.state import TrainState
from wsod_jax.train.step import TrainStep
from wsod_jax.types import Batch, Views

ROOT = Path(__file__).resolve().parents[1]
FILES = {path.stem: path for path in sorted((ROOT / "configs").glob("[!_]*.py"))}
MAX_PROGRAMS = 24
PUBLISHED_MAPS = ("spn", "cam")
VARIANTS = {  # of files whose variants are not the detectors of the small sets
    "spn_cards6": presets.SOLVERS,
    "spn_synthetic": presets.SOLVERS,
    "spn_vgg16_voc07": ("112", "224", "560"),
    "spn_googlenet_voc07": PUBLISHED_MAPS,
    "spn_googlenet_coco14": PUBLISHED_MAPS,
    "spn_googlenet_ilsvrc": PUBLISHED_MAPS,
    **{stem: presets.WS_JDS for stem in FILES if stem.startswith("ws_jds_")},
}


def load(path: Path):
    """Return a configuration file as a module, without looking at `sys.path`."""
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def default_variant(stem: str) -> str | None:
    """Return the variant that a file's `get_config` has without being told, or `None` if it has no variants."""
    parameters = inspect.signature(load(FILES[stem]).get_config).parameters
    return parameters["variant"].default if parameters else None


def all_configs() -> dict:
    """Return "file" or "file:variant" -> configuration."""
    found = {}
    for stem, path in FILES.items():
        get_config = load(path).get_config
        if default_variant(stem) is None:
            found[stem] = get_config()
            continue
        for variant in VARIANTS.get(stem, presets.DETECTORS):
            found[f"{stem}:{variant}"] = get_config(variant)
    return found


CONFIGS = all_configs()
PUBLISHED = [name for name in CONFIGS if re.search("voc|coco|ilsvrc", name)]
WITH_VARIANTS = [stem for stem in FILES if default_variant(stem) is not None]


@functools.cache
def run_config(name: str) -> RunConfig:
    """Return a configuration as a command reads it."""
    return build.read_config(CONFIGS[name])


# ---------------------------------------------------------------- files


def imported(path: Path) -> set[str]:
    """Return the dotted names that a file imports, "a.b" for `from a import b`."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("stem", list(FILES))
def test_a_file_imports_the_presets_and_nothing_else_of_ours(stem):
    assert imported(FILES[stem]) <= {"wsod_jax.presets", "ml_collections.ConfigDict"}


def test_presets_need_no_accelerator_library():
    code = "import sys, wsod_jax.presets; print([m for m in ('jax', 'flax', 'tensorflow') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


ELSEWHERE = """
import importlib.util, json, sys
from pathlib import Path
import wsod_jax.presets
root, folder = sys.argv[1:]
sys.path[:] = [entry for entry in sys.path if entry and Path(entry).resolve() != Path(root).resolve()]
assert importlib.util.find_spec("configs") is None, sys.path
digests = {}
for path in sorted(Path(folder).glob("[!_]*.py")):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    digests[path.stem] = json.loads(module.get_config().to_json())
print(json.dumps(digests))
"""


def test_files_work_from_another_folder_without_the_repository_on_the_path(tmp_path):
    folder, elsewhere = tmp_path / "copied", tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copytree(ROOT / "configs", folder, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-c", ELSEWHERE, str(ROOT), str(folder)]
    done = subprocess.run(command, cwd=elsewhere, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found) == set(FILES)
    for stem, values in found.items():
        variant = default_variant(stem)
        here = CONFIGS[stem if variant is None else f"{stem}:{variant}"]
        assert values == json.loads(here.to_json()), stem


@pytest.mark.parametrize("stem", WITH_VARIANTS)
def test_an_unknown_variant_is_refused_with_those_that_exist(stem):
    with pytest.raises(ConfigError, match="'nothing'") as caught:
        load(FILES[stem]).get_config("nothing")
    assert all(name in str(caught.value) for name in VARIANTS.get(stem, presets.DETECTORS))


@pytest.mark.parametrize("stem", WITH_VARIANTS)
def test_configurations_share_no_state(stem):
    """Editing one configuration leaves the next one as it was."""
    variant = default_variant(stem)
    config = load(FILES[stem]).get_config(variant)
    for section in config.values():
        if hasattr(section, "clear"):
            section.clear()
    assert load(FILES[stem]).get_config(variant) == CONFIGS[f"{stem}:{variant}"]


# ---------------------------------------------------------------- values


@pytest.mark.parametrize("name", list(CONFIGS))
def test_every_value_is_known_and_survives_json(name):
    config = run_config(name)
    assert build.read_config(json.loads(config.to_json())) == config
    told = config.to_dict()
    for section, values in CONFIGS[name].items():
        if hasattr(values, "items"):
            assert set(values) <= set(told[section]), section


@pytest.mark.parametrize("name", list(CONFIGS))
def test_number_of_programs_is_bounded(name):
    """One per scale and orientation, of the training step and of the prediction for mAP and CorLoc."""
    train, tests = run_config(name).train, run_config(name).eval
    programs = len(train.canvases.shapes()) + len(predicted_shapes(tests))
    assert programs <= 2 * (len(train.scales) + len(tests.scales)) <= MAX_PROGRAMS


def predicted_shapes(tests) -> set[tuple[int, int]]:
    """Return the canvases of all passes of an evaluation."""
    passes = [tests, *map(tests.of_pass, tests.passes)]
    return {shape for one in passes for shape in one.canvases.shapes()}


def test_five_scales_and_ten_views_take_twenty_programs():
    config = run_config("oim_ir_vgg16_voc07")
    assert len(config.train.scales) == 5 and config.eval.num_views == 10
    assert (config.eval.resize, config.eval.passes["corloc"].resize) == ("short", "long")
    assert len(config.train.canvases.shapes()) == len(predicted_shapes(config.eval)) == 10


OVERRIDE = re.compile(r'--config\.(\w+(?:\.\w+)+)=("[^"]*"|[^\s,;()]*[^\s,;().])')


def override_lines(name: str) -> list[list[str]]:
    """Return the overrides of every line of a file's docstring that has some, as settings."""
    lines = load(FILES[name.partition(":")[0]]).__doc__.splitlines()
    found = [[f"{key}=" + value.strip('"') for key, value in OVERRIDE.findall(x)] for x in lines]
    return [settings for settings in found if settings]


def documented_overrides(name: str) -> list[str]:
    """Return all overrides of a file's docstring."""
    return [setting for settings in override_lines(name) for setting in settings]


def overridden(name: str, settings: list[str]) -> RunConfig:
    """Return a configuration with settings in place, as the command line puts them there."""
    values, dropped = build.override(CONFIGS[name], settings)
    assert not dropped
    return build.read_config(values)


@pytest.mark.parametrize("name", [name for name in PUBLISHED if documented_overrides(name)])
def test_overrides_in_a_docstring_change_what_they_name(name):
    before = run_config(name).to_dict()
    for settings in override_lines(name):
        after = overridden(name, settings).to_dict()
        for setting in settings:
            section, *path = setting.partition("=")[0].split(".")
            old, new = before[section], after[section]
            for key in path:
                old, new = old[key], new[key]
            assert new != old, setting


# Schedules, where a count of epochs or a rate per image says the same in another way.


def num_epochs(config: RunConfig, num_steps: int, num_images: int) -> float:
    return num_steps * config.train.micro_batch * config.train.accumulate / num_images


def test_wsddn_as_released_sees_every_image_ten_times_at_each_rate():
    config = overridden("wsddn_vgg16_voc07", documented_overrides("wsddn_vgg16_voc07"))
    (drop,) = config.optim.decay_steps
    assert num_epochs(config, drop, presets.VOC07_TRAINVAL) == 10
    assert num_epochs(config, config.train.num_steps, presets.VOC07_TRAINVAL) == 20
    assert config.optim.learning_rate == 1e-5 and config.optim.decay_factor == 0.1
    assert (
        config.proposals.dedup_stride == 1 and not config.backbone.dilated
    )  # a map of its own stride


@pytest.mark.parametrize("name", ["oim_vgg16_voc07", "oim_ir_vgg16_voc07"])
def test_oim_can_keep_a_checkpoint_of_every_epoch(name):
    settings = [text for text in documented_overrides(name) if text.startswith("log.")]
    config = overridden(name, settings)
    assert config.log.checkpoint_interval == config.log.keep_period
    every = num_epochs(config, config.log.keep_period, presets.VOC07_TRAINVAL)
    assert every == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("name", [name for name in CONFIGS if name.startswith("mist_vgg16")])
def test_mist_learns_at_one_rate_per_image(name):
    """As the release scales its rate with the batch; both drops divide by ten, the second shortly before the end."""
    config = run_config(name)
    assert config.optim.learning_rate == pytest.approx(0.00125 * num_epochs(config, 1, 1))
    first, last = config.optim.decay_steps
    assert 2 / 3 <= first / config.train.num_steps <= 3 / 4
    assert 7 / 8 <= last / config.train.num_steps <= 12 / 13
    assert config.eval.scales == config.train.scales and config.eval.num_views == 12
    assert config.eval.max_per_image == 100 and config.method.options["regression"] == Regression()


@pytest.mark.parametrize(
    "name, num_images, epochs",
    [
        ("spn_vgg16_voc07:224", presets.VOC07_TRAINVAL, 20),
        ("spn_vgg16_voc07:560", presets.VOC07_TRAINVAL, 20),
        ("spn_googlenet_coco14:spn", presets.COCO14_TRAIN, 50),
        ("spn_googlenet_ilsvrc:cam", presets.ILSVRC_TRAIN, 90),
    ],
)
def test_spn_sees_its_images_as_often_as_published(name, num_images, epochs):
    config = run_config(name)
    assert num_epochs(config, config.train.num_steps, num_images) == pytest.approx(epochs, rel=1e-3)


# ---------------------------------------------------------------- programs


def abstract_batch(
    canvases: Canvases, num_images: int, num_classes: int, rows: int | None
) -> Batch:
    """Return the shapes of a batch on the largest canvas."""
    height, width = max(canvases.shapes(), key=lambda shape: shape[0] * shape[1])

    def of(shape, dtype):
        return None if None in shape else jax.ShapeDtypeStruct((num_images, *shape), dtype)

    return Batch(
        image=of((height, width, 3), jnp.uint8),
        image_size=of((2,), jnp.int32),
        image_mask=of((), bool),
        image_index=of((), jnp.int32),
        views=Views(
            scale=of((2,), jnp.float32),
            offset=of((2,), jnp.int32),
            flipped=of((), bool),
            original_size=of((2,), jnp.int32),
        ),
        labels=of((num_classes,), jnp.int32),
        proposals=of((rows, 4), jnp.float32),
        proposal_mask=of((rows,), bool),
        representative=of((rows,), jnp.int32),
    )


@dataclass
class Traced:
    """A configuration's programs, their arguments as shapes, and one device to lay them out on."""

    config: RunConfig
    num_classes: int = 20

    def __post_init__(self):
        config = self.config
        self.rows = None if config.proposals is None else config.proposals.max_proposals
        self.method = build.method(
            config, num_classes=self.num_classes, max_classes=6, max_targets=1
        )
        tx, schedule = build.optimizer(config)
        self.step = TrainStep(
            self.method,
            tx,
            seed=config.seed,
            mesh=make_mesh(1),
            accumulate=config.train.accumulate,
            schedule=schedule,
        )
        images, canvases = config.train.micro_batch, config.train.canvases
        self.batch = abstract_batch(canvases, images, self.num_classes, self.rows)
        self.params, self.extras = jax.eval_shape(
            lambda batch: self.method.init(jax.random.key(0), batch), self.batch
        )
        count = jax.ShapeDtypeStruct((), jnp.int32)
        opt_state = jax.eval_shape(tx.init, self.params)
        self.state = TrainState(count, self.params, self.extras, opt_state)

    def view(self) -> Batch:
        tests = self.config.eval
        return abstract_batch(tests.canvases, tests.micro_batch, self.num_classes, self.rows)

    def predict(self, params, extras, batch):
        return self.method.predict(params, extras, batch, self.method.outputs)


@pytest.mark.parametrize("name", list(CONFIGS))
def test_config_is_traced_at_full_size(name):
    traced = Traced(run_config(name))
    state, metrics = jax.eval_shape(traced.step.fused, traced.state, traced.batch)
    assert jax.tree.map(np.shape, state.params) == jax.tree.map(np.shape, traced.params)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
    num_stages = getattr(traced.method, "num_stages", 0)
    assert sum(key.startswith("loss/refine_") for key in metrics) == num_stages
    regresses = getattr(traced.method, "regression", None) is not None
    assert sum(key.startswith("loss/regress_") for key in metrics) == num_stages * regresses
    assert {"loss", "lr", "grad_norm"} <= set(metrics)
    assert all(value.shape == () for value in metrics.values())

    found = jax.eval_shape(traced.predict, traced.params, traced.extras, traced.view())
    images = run_config(name).eval.micro_batch
    assert found.image_scores.shape == (images, 20)
    if "boxes" in traced.method.outputs:
        assert found.scores.shape == (images, traced.rows, 20)
        of_classes = (20,) if regresses else ()
        assert found.boxes.shape == (images, traced.rows, *of_classes, 4)
    assert (found.maps is not None) == ("maps" in traced.method.outputs)


def lowered(traced: Traced) -> list[str]:
    """Export a configuration's training and prediction step for both accelerators; return their text."""
    programs = [
        (traced.step.fused, (traced.state, traced.batch)),
        (traced.predict, (traced.params, traced.extras, traced.view())),
    ]
    texts = []
    for function, arguments in programs:
        exported = jax.export.export(jax.jit(function), platforms=["tpu", "cuda"])(*arguments)
        assert exported.platforms == ("tpu", "cuda")
        texts.append(exported.mlir_module())
    return texts


SMALL = [
    *(f"debug_tiny:{name}" for name in presets.DETECTORS if name != "oim_ir"),
    *(f"spn_synthetic:{name}" for name in presets.SOLVERS if name != "spn"),
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
    for text in lowered(Traced(run_config(name), num_classes=3)):
        assert "callback" not in text  # nothing waits for the host


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_steps_lower_for_accelerators(name):
    for text in lowered(Traced(run_config(name))):
        assert "callback" not in text
