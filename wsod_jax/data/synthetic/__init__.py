"""A rendered data set in VOC layout, deterministic from a seed."""
