"""OIM without the instance-reweighted loss, VGG16, VOC 2007: mAP 48.2 (Lin et al. 2020, Table 1).

Rows of the paper's tables as overrides. Table 5, alpha pairs: --config.method.alpha="((0,1.0),(70000,1.0))" (42.9),
"((0,2.0),(70000,2.0))" (48.1), "((0,10.0),(70000,5.0))" (46.8); this file is 5, 2 (48.2). Table 6:
--config.method.graphs=spatial                                   the spatial graph alone (42.2)
--config.method.graphs=appearance                                the appearance graph alone (46.7)
--config.method.graphs=spatial --config.method.reweight=paper    the reweighted loss alone (43.4)
--config.method.reweight=paper                                   all (50.1): configs/oim_ir_vgg16_voc07.py
With one spatial graph per class, nodes have none: that is OICR's assignment, so these rows differ in nothing but what
they name.
Figures 1 and 6 show epochs 1, 2, 3 and 6. One epoch is 2 506 updates; to keep a checkpoint of each:
--config.log.checkpoint_interval=2500 --config.log.keep_period=2500
"""

from wsod_jax import presets


def get_config():
    """Return the configuration."""
    return presets.on_voc(presets.oim_vgg16(reweight="off"))
