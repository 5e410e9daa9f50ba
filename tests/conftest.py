"""Test set-up: CPU, four virtual devices, no silent rank promotion, a persistent compilation cache.

`trained_run` and `spn_run` are whole tiny runs that end-to-end tests share, with and without proposals.
"""

import dataclasses
import os
from pathlib import Path

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("MPLBACKEND", "Agg")

import jax  # noqa: E402
from hypothesis import settings  # noqa: E402

cache_home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_compilation_cache_dir", str(cache_home / "wsod_jax" / "jax"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


@pytest.fixture(scope="module", autouse=True)
def release_compiled_code():
    """Drop a module's executables when it is done; a whole suite of them would fill the memory."""
    yield
    jax.clear_caches()


@dataclasses.dataclass(frozen=True)
class TrainedRun:
    """A finished run on `tiny_set`. Read it, write elsewhere.

    Attributes:
      workdir: of the run: checkpoints of steps 0, 2 and 4, metrics.jsonl, config.json.
      data: folder in VOC layout; 8 images in trainval, 4 in test, of 64 to 96 pixels.
      proposals: of all of them, whether the run uses them or not.
      config: the ConfigDict it ran with.
    """

    workdir: Path
    data: Path
    proposals: Path
    config: object


@pytest.fixture(scope="session")
def tiny_set(tmp_path_factory) -> tuple[Path, Path]:
    """Render a synthetic set and search proposals in all of its images; return the two paths."""
    from wsod_jax.data.proposals.selective_search import SearchOptions, run_selective_search
    from wsod_jax.data.readers.voc import Voc
    from wsod_jax.data.records import ImageSet
    from wsod_jax.data.synthetic.dataset import SyntheticSpec, write_synthetic

    root = tmp_path_factory.mktemp("tiny_set")
    data, proposals = root / "data", root / "proposals.npz"
    spec = SyntheticSpec(num_trainval=8, num_test=4, size=96, aspects=(1.0, 0.75, 4 / 3))
    write_synthetic(data, spec)
    splits = [Voc(root=data).images(split) for split in ("trainval", "test")]
    records = splits[0].records + splits[1].records
    images = ImageSet("all", splits[0].class_names, records)
    run_selective_search(images, proposals, options=SearchOptions(min_side=6.0))
    return data, proposals


@pytest.fixture(scope="session")
def trained_run(tiny_set, tmp_path_factory) -> TrainedRun:
    """Train OIM with the reweighted loss for four steps, as the command does."""
    from configs.debug_tiny import get_config

    config = get_config("oim_ir")
    config.proposals.path = str(tiny_set[1])
    config.log.image_interval, config.log.num_images = 2, 1
    return four_steps(config, tiny_set, tmp_path_factory.mktemp("trained_run"))


@pytest.fixture(scope="session")
def spn_run(tiny_set, tmp_path_factory) -> TrainedRun:
    """Train SPN from random weights for four steps, as the command does."""
    from configs.spn_synthetic import get_config

    config = get_config("spn")
    config.train.init_from, config.backbone.frozen = (), ()
    config.method.extra_channels = 16
    config.optim.warmup_steps, config.optim.decay_steps, config.log.log_interval = 2, (), 1
    return four_steps(config, tiny_set, tmp_path_factory.mktemp("spn_run"))


def four_steps(config, tiny_set: tuple[Path, Path], workdir: Path) -> TrainedRun:
    """Run a configuration on `tiny_set` in batches of 4 images of 64 pixels."""
    from tests.commands import train

    data, proposals = tiny_set
    config.data.root = str(data)
    config.train.num_steps, config.train.micro_batch = 4, 4
    config.train.scales = config.eval.scales = (64,)
    config.train.loader = "threads"
    config.train.cache = "none"
    config.log.checkpoint_interval = config.log.keep_period = 2
    config.log.tensorboard = False
    train(config, workdir)
    return TrainedRun(workdir, data, proposals, config)
