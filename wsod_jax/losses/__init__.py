"""Losses on an image's class scores, and on its boxes."""
