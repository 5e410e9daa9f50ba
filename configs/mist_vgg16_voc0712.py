"""MIST with VGG16 trained on VOC 2007 and 2012, tested on 2007: mAP 58.1 with its drop block and regression (Ren et
al. 2020, Table 3; model zoo).

Batch 16, learning rate 0.02, warm-up 200, steps at 30k and 35k of 40k, as in the released V_16_voc0712.yaml.
configs/mist_vgg16_voc07.py lists what of the release is not here.
"""

from wsod_jax import presets


def get_config():
    """Return the configuration."""
    config = presets.mist_vgg16(
        batch_size=16,
        learning_rate=0.02,
        num_steps=40_000,
        decay_steps=(30_000, 35_000),
        warmup_steps=200,
    )
    return presets.on_voc(config, year="07+12")
