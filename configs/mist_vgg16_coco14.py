"""MIST with VGG16 on COCO 2014, train to val: AP 11.7, mAP 24.0 at IoU 0.5 with regression (Ren et al. 2020, model
zoo; the released model is slightly better than the paper's).

    wsod-jax train --config mist_vgg16_coco14 --workdir runs/mist_coco14
    wsod-jax evaluate --workdir runs/mist_coco14 --coco

Batch 8, learning rate 0.01, warm-up 500, steps at 90k and 120k of 130k, MCG proposals, no drop block, as in the
released V_16_coco14.yaml. configs/mist_vgg16_voc07.py lists what else of the release is not here.
"""

from wsod_jax import presets


def get_config():
    """Return the configuration."""
    config = presets.mist_vgg16(
        batch_size=8,
        learning_rate=0.01,
        num_steps=130_000,
        decay_steps=(90_000, 120_000),
        warmup_steps=500,
    )
    return presets.on_coco(config, "2014", "train2014", "val2014")
