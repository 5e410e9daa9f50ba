"""MIST with VGG16 on COCO 2017, train to val: AP 13.0, mAP 25.8 at IoU 0.5 with regression (Ren et al. 2020, model
zoo; the released model is slightly better than the paper's).

The zoo names the same images by COCO 2014's splits, train and valminusminival to minival. Sui et al. 2022, Table 2,
cite AP 12.4, mAP 25.8, AP75 10.5. Schedule and proposals as in configs/mist_vgg16_coco14.py, and as in the released
V_16_coco17.yaml; evaluate.py --coco gives these numbers.
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
    return presets.on_coco(config, "2017", "train2017", "val2017")
