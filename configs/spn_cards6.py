"""SPN and CAM on playing cards: six classes, 363 photographs, SqueezeNet 1.1 with one new convolution.

    wsod-jax train --config spn_cards6:spn --workdir runs/spn_cards6/spn
    wsod-jax evaluate --workdir runs/spn_cards6/spn --compare

Data as in configs/cards6.py, which also says where they come from; no proposals are needed.
"""

from wsod_jax import presets


def get_config(variant: str = "spn"):
    """Return the configuration of one variant: spn, spn_stationary or cam."""
    return presets.on_cards6(presets.spn_small_set(variant, num_steps=600))
