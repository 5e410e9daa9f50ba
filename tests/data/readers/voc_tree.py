"""Writes small VOC-layout trees for the tests."""

from pathlib import Path

import numpy as np
from PIL import Image

OBJECT = """<object><name>{name}</name><pose>Left</pose><truncated>0</truncated><difficult>{difficult}</difficult>{part}
<bndbox><xmin>{box[0]}</xmin><ymin>{box[1]}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox>
</object>"""
PART = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"


def pixels(seed: int, height: int, width: int) -> np.ndarray:
    """Return smooth colored noise, so that JPEG and resizing keep its looks."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR))


def write_voc(root: Path, images: dict, *, split: str = "trainval", classes=("cat", "dog")) -> Path:
    """Write a tree; `images` maps id -> ((height, width), [(class, box, difficult), ...])."""
    for name in ("ImageSets/Main", "JPEGImages", "Annotations"):
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{i}\n" for i in images))
    if classes:
        (root / "classes.txt").write_text("\n".join(classes) + "\n")
    for seed, (image_id, ((height, width), objects)) in enumerate(images.items()):
        Image.fromarray(pixels(seed, height, width)).save(root / "JPEGImages" / f"{image_id}.jpg")
        write_xml(root, image_id, (height, width), objects)
    return root


def write_xml(root: Path, image_id: str, size: tuple, objects: list) -> None:
    body = "".join(
        OBJECT.format(name=name, box=box, difficult=int(hard), part=PART)
        for name, box, hard in objects
    )
    height, width = size
    (root / "Annotations" / f"{image_id}.xml").write_text(
        f"<annotation><size><width>{width}</width><height>{height}</height></size>{body}</annotation>"
    )
