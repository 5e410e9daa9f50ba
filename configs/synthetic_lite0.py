"""The rendered set of `make demo` on EfficientNet-Lite0, whose weights pip brings; variants as in synthetic.py.

wsod-jax train --config synthetic_lite0:pcl --workdir runs/synthetic_lite0/pcl
"""

from wsod_jax import presets


def get_config(variant: str = "pcl"):
    """Return the configuration of one method: wsddn, oicr, oicr_reg, pcl, mist, mist_reg, oim or oim_ir."""
    return presets.on_lite0(presets.on_synthetic(presets.small_set(variant, num_steps=1200)))
