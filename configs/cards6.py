"""Playing cards: six classes, 363 photographs, SqueezeNet 1.1; one method per variant.

    wsod-jax train --config cards6:oim_ir --workdir runs/cards6/oim_ir

Data: the photographs of EdjeElectronics/TensorFlow-Object-Detection-API-Tutorial-Train-Multiple-Objects-Windows-10
in VOC layout under data/cards6. Scales, schedule and proposal sizes were chosen on its train/val split alone;
docs/results.md has the table and the command that makes it.
"""

from wsod_jax import presets


def get_config(variant: str = "oim_ir"):
    """Return the configuration of one method: wsddn, oicr, oicr_reg, pcl, mist, mist_reg, oim or oim_ir."""
    config = presets.on_cards6(presets.small_set(variant, num_steps=900))
    config.method.roi_size = 4
    return config
