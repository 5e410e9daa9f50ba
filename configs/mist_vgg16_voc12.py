"""MIST with VGG16 on VOC 2012: mAP 52.1 with its drop block and regression (Ren et al. 2020, as cited in Table 1 of
Sui et al. 2022).

Batch 16, learning rate 0.02, warm-up 200, steps at 20k and 26.7k of 30k, as in the released V_16_voc12.yaml, which
trains on trainval. Test boxes are not public: evaluation writes the predictions for the challenge server.
configs/mist_vgg16_voc07.py lists what of the release is not here.
"""

from wsod_jax import presets


def get_config():
    """Return the configuration."""
    config = presets.mist_vgg16(
        batch_size=16,
        learning_rate=0.02,
        num_steps=30_000,
        decay_steps=(20_000, 26_700),
        warmup_steps=200,
    )
    return presets.on_voc(config, year="2012")
