"""Weakly supervised object detection and segmentation in JAX: boxes and masks from image-level labels."""

__version__ = "0.2.0.dev0"
