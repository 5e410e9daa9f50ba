"""Test set-up: CPU, four virtual devices, no silent rank promotion, a persistent compilation cache."""

import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
cache_home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))

import jax  # noqa: E402

jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_compilation_cache_dir", str(cache_home / "wsod_jax" / "jax"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
