"""MIST with VGG16 on VOC 2007: mAP 54.9 with its drop block and regression (Ren et al. 2020, Table 3; model zoo).

Batch 8, learning rate 0.01, decay 1e-4, warm-up 200, steps at 20k and 26.7k of 30k, six scales in training and,
mirrored too, at test, three heads that regress boxes, the best 100 boxes of an image over all classes, as in the
released V_16_voc07.yaml. The published number stands for more than runs here:

- Concrete DropBlock is not built;
- the release has two streams with C + 1 outputs where the others and this file have C, and draws new layers from
  N(0, 0.001), here N(0, 0.01) but for the regression;
- it leaves out the last ReLU before RoI pooling; its authors saw little effect.
"""

from wsod_jax import presets


def get_config():
    """Return the configuration."""
    return presets.on_voc(
        presets.mist_vgg16(
            batch_size=8,
            learning_rate=0.01,
            num_steps=30_000,
            decay_steps=(20_000, 26_700),
            warmup_steps=200,
        )
    )
