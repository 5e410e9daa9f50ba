"""SPN and CAM on the synthetic set with the tiny backbone, frozen; the data and weights are those of `make demo`.

python scripts/train.py --config configs/spn_synthetic.py:spn --workdir runs/spn_synthetic/spn
python scripts/evaluate.py --workdir runs/spn_synthetic/spn --compare
"""

from wsod_jax import presets


def get_config(variant: str = "spn"):
    """Return the configuration of one variant: spn, spn_stationary or cam."""
    return presets.on_synthetic(presets.spn_small_set(variant, num_steps=400))
