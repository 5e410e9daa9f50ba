"""What tests of training share."""

import numpy as np
import pytest


@pytest.fixture
def weights():
    """Layers of a backbone and a box head, named as converted files name them."""
    rng = np.random.default_rng(0)
    return {
        "conv1": {
            "kernel": rng.standard_normal((3, 3, 3, 4), np.float32),
            "bias": np.ones(4, np.float32),
        },
        "fc6": {"kernel": rng.standard_normal((8, 5), np.float32)},
    }
