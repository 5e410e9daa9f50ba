"""Playing cards on EfficientNet-Lite0, whose weights pip brings; data and variants as in cards6.py.

wsod-jax train --config cards6_lite0:pcl --workdir runs/cards6_lite0/pcl
"""

from wsod_jax import presets


def get_config(variant: str = "pcl"):
    """Return the configuration of one method: wsddn, oicr, oicr_reg, pcl, mist, mist_reg, oim or oim_ir."""
    # as long as it takes until pseudo boxes hold whole cards, not their corners
    num_steps = 1200 if variant == "pcl" else 2400
    return presets.on_lite0(presets.on_cards6(presets.small_set(variant, num_steps)))
