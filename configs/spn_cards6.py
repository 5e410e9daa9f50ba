"""SPN and CAM on playing cards: six classes, 363 photographs, SqueezeNet 1.1 with one new convolution.

    python scripts/train.py --config configs/spn_cards6.py:spn --workdir runs/spn_cards6/spn
    python scripts/evaluate.py --workdir runs/spn_cards6/spn --compare

Data as in configs/cards6.py, which also says where they come from; no proposals are needed.
"""

from configs.spn_small_sets import spn_small_set


def get_config(variant: str = "spn"):
    """Return the configuration of one variant: spn, spn_stationary or cam."""
    config = spn_small_set(variant, num_steps=600)
    config.backbone = dict(
        name="squeezenet",
        weights="weights/squeezenet1_1.npz",
        pixels="caffe",
        mean=(103.939, 116.779, 123.68),
        stride=16,
        frozen=("conv", "fire"),
    )
    config.data.root = "data/cards6/VOCdevkit/VOC2007"
    config.data.class_names = ("nine", "ten", "jack", "queen", "king", "ace")

    config.train.micro_batch = 4
    config.train.scales = (448,)
    config.train.max_long = 1000
    config.train.flip = False  # a mirrored rank is another shape
    config.eval.scales = (448,)
    config.eval.flips = (False,)
    config.eval.max_long = 1000
    config.eval.micro_batch = 4
    return config
