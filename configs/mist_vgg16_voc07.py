"""MIST with VGG16 on VOC 2007: mAP 54.9 with its dropout block (Ren et al. 2020, released model zoo).

Schedule as released: batch 8, learning rate 0.01, decay 1e-4, warm-up 200, steps at 20k and 26.7k of 30k. The
concrete drop block and the box regression branch of the release are not part of this configuration.
"""

from configs.voc_vgg16 import voc_vgg16


def get_config():
    """Return the configuration."""
    config = voc_vgg16()
    config.method.name = "mist"
    config.method.first_stage_scale = 3.0
    config.train.num_steps = 30_000
    config.train.accumulate = 8
    config.train.scales = (480, 576, 688, 864, 1000, 1200)
    config.optim.learning_rate = 0.01
    config.optim.decay_steps = (20_000, 26_700)
    config.optim.warmup_steps = 200
    config.optim.weight_decay = 1e-4
    config.optim.update_rule = "pytorch"
    config.optim.groups = ((r"bias", 2.0, 0.0),)
    config.eval.average_per_image = None
    return config
