"""OIM with the instance-reweighted loss, VGG16, VOC 2007: mAP 50.1, CorLoc 67.2 (Lin et al. 2020, Tables 1 and 2).

Table 5, beta: --config.method.beta=0.5 (48.0), 0.8 (46.3). Users of the released code report 46 to 47.3 mAP.
Figures 1 and 6 show epochs 1, 2, 3 and 6. One epoch is 2 506 updates; to keep a checkpoint of nearly each:
--config.log.checkpoint_interval=2500 --config.log.keep_period=2500
"""

from wsod_jax import presets


def get_config():
    """Return the configuration."""
    return presets.on_voc(presets.oim_vgg16(reweight="paper"))
