"""SPN and CAM on the synthetic set with the tiny backbone, frozen; the data and weights are those of `make demo`.

python scripts/train.py --config configs/spn_synthetic.py:spn --workdir runs/spn_synthetic/spn
python scripts/evaluate.py --workdir runs/spn_synthetic/spn --compare
"""

from configs.spn_small_sets import spn_small_set


def get_config(variant: str = "spn"):
    """Return the configuration of one variant: spn, spn_stationary or cam."""
    config = spn_small_set(variant, num_steps=400)
    config.backbone = dict(
        name="tiny",
        weights="demo/weights/tiny.npz",
        pixels="torchvision",
        stride=4,
        frozen=("conv",),
    )
    config.data.root = "demo/data/synthetic"

    config.train.micro_batch = 8
    config.train.scales = (160,)
    config.train.aspect = 1.0
    config.train.flip = True
    config.eval.scales = (160,)
    config.eval.aspect = 1.0
    config.eval.flips = (False,)
    config.eval.micro_batch = 8
    return config
