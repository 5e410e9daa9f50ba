"""Objectness maps, the summed scores of the boxes that cover a pixel: of one checkpoint, and over training.

Every `image` is [H, W, 3] uint8 RGB, and so is every figure that is returned; small ones are enlarged, see `Canvas`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from wsod_jax.viz.canvas import CORE, HIT, INK, PAPER, TRUTH, Canvas
from wsod_jax.viz.drawing import contact_sheet
from wsod_jax.viz.fonts import font

HEAT_ALPHA = 0.6  # weight of a map's colors over its image


def draw_objectness(
    image: np.ndarray,
    objectness: np.ndarray,
    *,
    boxes: np.ndarray = (),
    scores: np.ndarray = (),
    highest: float | None = None,
) -> np.ndarray:
    """Lay an objectness map over its image as colors, with boxes on top.

    Args:
      objectness: [H, W] >= 0.
      boxes, scores: [n, 4], [n] detections: red where score >= 0.5, else blue and dashed.
      highest: the value of the hottest color; the map's own maximum if not given.
    """
    top = float(objectness.max(initial=0.0)) if highest is None else highest
    canvas = _heated(image, objectness, top)
    boxes = np.reshape(boxes, (-1, 4))
    for row in np.argsort(np.asarray(scores), kind="stable"):
        sure = scores[row] >= 0.5
        canvas.boxes(
            boxes[row],
            HIT if sure else CORE,
            labels=[f"{scores[row]:.2f}"],
            style="solid" if sure else "dashed",
        )
    return canvas.array()


def draw_cam(
    image: np.ndarray,
    cam: np.ndarray,
    point: tuple[float, float],
    tightest: np.ndarray,
    components: np.ndarray,
) -> np.ndarray:
    """Lay a class's activation over its image as colors, with what is read off it.

    Args:
      cam: [H, W] >= 0.
      point: (x, y) of the strongest activation, a ring.
      tightest: [4] the box around all foreground, red.
      components: [n, 4] the boxes of its components, blue and dashed.
    """
    canvas = _heated(image, cam, float(cam.max(initial=0.0)))
    canvas.boxes(components, CORE, style="dashed").boxes(tightest, HIT)
    return canvas.points(np.array(point), PAPER).array()


def draw_seeds(image: np.ndarray, values: np.ndarray, thrs: tuple[float, float]) -> np.ndarray:
    """Color a map's foreground red, its background blue, and what is neither green.

    Args:
      values: [H, W] in [0, 1].
      thrs: background up to the first, foreground from the second.
    """
    colors = np.where((values >= thrs[1])[..., None], np.float32(HIT), np.float32(TRUTH))
    colors = np.where((values <= thrs[0])[..., None], np.float32(CORE), colors)
    return Canvas(image).blend(colors, HEAT_ALPHA).array()


def _heated(image: np.ndarray, values: np.ndarray, top: float) -> Canvas:
    """Return an image under colors from blue, 0, to red, `top`."""
    share = np.clip(values / top, 0, 1) if top > 0 else np.zeros_like(values)
    return Canvas(image).blend(_heat(share), HEAT_ALPHA)


def _heat(share: np.ndarray) -> np.ndarray:
    """Return the colors of values in [0, 1], with an axis [3] added, float32 in [0, 255]."""
    from matplotlib import colormaps

    return (colormaps["turbo"](share)[..., :3] * 255).astype(np.float32)


def add_color_key(figure: np.ndarray, low: str, high: str, note: str = "") -> np.ndarray:
    """Put a line below a figure that says what the colors of its maps mean.

    Args:
      low, high: what blue and red stand for.
      note: a second line of text.
    """
    width = figure.shape[1]
    text_px = int(np.clip(width // 110, 11, 20))
    strip = Image.new("RGB", (width, (5 if note else 3) * text_px), PAPER)
    draw = ImageDraw.Draw(strip)
    bar_px = min(12 * text_px, width // 4)
    start, middle = (width - bar_px) // 2, 3 * text_px // 2
    bar = _heat(np.broadcast_to(np.linspace(0, 1, bar_px), (text_px, bar_px)))
    strip.paste(Image.fromarray(np.round(bar).astype(np.uint8)), (start, text_px))
    texts = [(start - text_px, middle, low, "rm"), (start + bar_px + text_px, middle, high, "lm")]
    for x, y, text, anchor in [*texts, (width // 2, middle + 2 * text_px, note, "mm")]:
        draw.text((x, y), text, fill=INK, font=font(text_px), anchor=anchor)
    return np.concatenate([figure, np.asarray(strip)])


def draw_evolution(
    image: np.ndarray,
    maps: Sequence[np.ndarray],
    titles: Sequence[str],
    *,
    boxes: Sequence[np.ndarray] | None = None,
    scores: Sequence[np.ndarray] | None = None,
) -> np.ndarray:
    """Show one image's objectness at several checkpoints side by side, the image itself first.

    Args:
      maps: [H, W] each, in the order of training.
      titles: such as "step 0", one per map.
      boxes, scores: per map, the detections of that checkpoint.
    Returns:
      The figure; `contact_sheet(rows, columns=1)` stacks those of several images or methods.
    """
    figures = [
        draw_objectness(
            image,
            objectness,
            boxes=() if boxes is None else boxes[i],
            scores=() if scores is None else scores[i],
        )
        for i, objectness in enumerate(maps)
    ]
    captions = ["image", *titles]
    return contact_sheet([image, *figures], captions=captions, columns=len(captions))
