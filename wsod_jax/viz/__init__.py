"""Figures and charts: NumPy arrays in, [H, W, 3] uint8 RGB arrays out; `save_image` writes them."""

from wsod_jax.viz.canvas import Canvas, class_color, save_image
from wsod_jax.viz.charts import (
    metric_series,
    plot_energy_by_size,
    plot_energy_over_training,
    plot_instances,
    plot_precision_recall,
    plot_training,
    plot_walks,
)
from wsod_jax.viz.drawing import (
    contact_sheet,
    draw_boxes,
    draw_detections,
    draw_graphs,
    draw_label_map,
    draw_masks,
    draw_proposals,
    draw_pseudo_labels,
)
from wsod_jax.viz.fonts import legend, shown_names
from wsod_jax.viz.objectness import (
    add_color_key,
    draw_cam,
    draw_evolution,
    draw_objectness,
    draw_seeds,
)

__all__ = [
    "Canvas",
    "add_color_key",
    "class_color",
    "contact_sheet",
    "draw_boxes",
    "draw_detections",
    "draw_evolution",
    "draw_graphs",
    "draw_label_map",
    "draw_masks",
    "draw_objectness",
    "draw_proposals",
    "draw_pseudo_labels",
    "draw_seeds",
    "draw_cam",
    "legend",
    "metric_series",
    "plot_energy_by_size",
    "plot_energy_over_training",
    "plot_instances",
    "plot_precision_recall",
    "plot_training",
    "plot_walks",
    "save_image",
    "shown_names",
]
