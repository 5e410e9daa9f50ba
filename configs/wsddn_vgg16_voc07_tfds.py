"""`wsddn_vgg16_voc07` on VOC 2007 as tensorflow-datasets prepares it: the same images, labels, boxes and proposals.

docs/data.md says how to prepare it; where it lies: --config.data.data_dir=FOLDER.
"""

from wsod_jax import presets


def get_config():
    """Return the configuration."""
    config = presets.on_voc(presets.vgg16_detector("wsddn"))
    config.data = dict(
        reader="tfds",
        name="voc/2007",
        data_dir=None,  # ~/tensorflow_datasets
        train_split="trainval",
        test_split="test",
        difficult="drop",
    )
    return config
