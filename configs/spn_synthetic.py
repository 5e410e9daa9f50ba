"""SPN and CAM on the synthetic set with the tiny backbone, frozen; the data and weights are those of `make demo`.

wsod-jax train --config spn_synthetic:spn --workdir runs/spn_synthetic/spn
wsod-jax evaluate --workdir runs/spn_synthetic/spn --compare
"""

from wsod_jax import presets


def get_config(variant: str = "spn"):
    """Return the configuration of one variant: spn, spn_stationary or cam."""
    return presets.on_synthetic(presets.spn_small_set(variant, num_steps=400))
