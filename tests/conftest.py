"""Test set-up: CPU, four virtual devices, no silent rank promotion, a persistent compilation cache."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("MPLBACKEND", "Agg")

import jax  # noqa: E402

cache_home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_compilation_cache_dir", str(cache_home / "wsod_jax" / "jax"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


@pytest.fixture(scope="module", autouse=True)
def release_compiled_code():
    """Drop a module's executables when it is done; a whole suite of them would fill the memory."""
    yield
    jax.clear_caches()
