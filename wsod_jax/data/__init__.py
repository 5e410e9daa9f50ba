"""Readers, proposals, the synthetic set and the input pipeline; the only room that imports TensorFlow."""
