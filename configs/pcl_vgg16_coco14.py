"""PCL with VGG16 on COCO 2014, train to val: AP 8.5, mAP 19.4 at IoU 0.5 (Tang et al. 2018, as cited in Table 2 of
Sui et al. 2022, which does not name the split).

    wsod-jax train --config pcl_vgg16_coco14 --workdir runs/pcl_coco14
    wsod-jax evaluate --workdir runs/pcl_coco14 --coco

The code was released for VOC alone. The image loss counts four times, as its author advises for 80 classes: averaged
over the classes it would weigh a quarter of what it does with VOC's 20. Batch 4 with a drop at 85k of 105k updates and
MCG proposals are what this file runs; it could not be checked against the paper. The rest is as on VOC.
"""

from wsod_jax import presets


def get_config():
    """Return the configuration."""
    config = presets.on_coco(presets.vgg16_detector("pcl"), "2014", "train2014", "val2014")
    config.method.mil_scale = 4.0
    config.train.num_steps = 105_000
    config.train.accumulate = 4
    config.optim.decay_steps = (85_000,)
    config.eval.resize = "long"
    return config
