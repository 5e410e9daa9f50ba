"""The synthetic set at its default difficulty, with a tiny backbone; one method per variant. Minutes on two cores.

    make demo                                      # renders, finds proposals, pretrains, trains, evaluates
    wsod-jax train --config synthetic:oicr --workdir runs/synthetic/oicr

The backbone's weights come from configs/pretrain_tiny.py, trained on separately rendered one-object images.
"""

from wsod_jax import presets


def get_config(variant: str = "oim_ir"):
    """Return the configuration of one method: wsddn, oicr, oicr_reg, pcl, mist, mist_reg, oim or oim_ir."""
    return presets.on_synthetic(presets.small_set(variant, num_steps=600))
