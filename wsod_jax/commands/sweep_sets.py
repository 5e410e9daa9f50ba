"""The sets that `sweep` runs over: configurations, their variants, and what their tables show."""

from __future__ import annotations

import dataclasses

DETECTORS = {
    "wsddn": "WSDDN",
    "oicr": "OICR",
    "oicr_reg": "OICR, regressing boxes",
    "pcl": "PCL",
    "mist": "MIST",
    "mist_reg": "MIST, regressing boxes",
    "oim": "OIM",
    "oim_ir": "OIM+IR",
}
PAIRS = (
    ("oicr", "wsddn"),
    ("oim", "oicr"),
    ("oim_ir", "oim"),
    ("oim_ir", "wsddn"),
    ("pcl", "oicr"),
    ("mist", "oicr"),
    ("oicr_reg", "oicr"),
    ("mist_reg", "mist"),
)
TABLE_1 = {  # of WS-JDS
    "wsddn": "WSDDN*",
    "parallel": "WSOD ∥ WSSS",
    "to_segmentation": "WSOD → WSSS",
    "to_detection": "WSOD ← WSSS",
    "ws_jds": "WSOD ⇋ WSSS (WS-JDS)",
}
LOCALIZERS = {"spn": "SPN", "cam": "CAM, trained alike"}


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Runs over one configuration file and the table they make.

    Attributes:
      title: of the table.
      methods: variant of the configuration -> its name in the table.
      columns: names of the numbers in reports.
      compare: variants whose evaluation also makes a table of baselines.
      baselines: start of a row's name in that table -> its name in this one.
      pairs: (variant, the one it is compared with), run with the same seeds.
      weights: file of the pretrained backbone of a seed, with "{suffix}" for "" or "-seed1", as the demo names
        them; "" for one that no seed changes.
    """

    title: str
    methods: dict[str, str]
    columns: tuple[str, ...] = ("mAP50", "CorLoc", "classification mAP", "top box size ratio")
    compare: tuple[str, ...] = ()
    baselines: dict[str, str] = dataclasses.field(default_factory=dict)
    pairs: tuple[tuple[str, str], ...] = PAIRS
    weights: str = ""


def localizers(title: str, weights: str = "") -> Sweep:
    """Return the sweep of SPN and its baselines."""
    return Sweep(
        title,
        LOCALIZERS,
        ("classification mAP", "pointing", "pointing difficult", "CorLoc", "CorLoc any", "energy"),
        compare=("spn",),
        baselines={
            "M uniform": "SPN's weights, M uniform",
            "M stationary": "SPN's weights, M stationary",
            "Grad": "SPN's weights, gradient",
            "Center": "image center",
            "proposals": "selective search",
        },
        pairs=(("spn", "cam"),),
        weights=weights,
    )


TINY = "demo/weights/tiny{suffix}.npz"
SETS = {
    "cards6": Sweep("cards6 (SqueezeNet 1.1)", DETECTORS),
    "cards6_lite0": Sweep(
        "cards6 (EfficientNet-Lite0)",
        {method: DETECTORS[method] for method in ("wsddn", "oicr", "pcl", "oim_ir")},
        pairs=(("oicr", "wsddn"), ("oim_ir", "wsddn"), ("pcl", "oicr")),
    ),
    "synthetic": Sweep("synthetic set (tiny backbone)", DETECTORS, weights=TINY),
    "ws_jds_synthetic": Sweep(
        "WS-JDS on the synthetic set (tiny backbone, its last stage trained)",
        TABLE_1,
        ("mAP50", "CorLoc", "mIoU", "mask AP50"),
        pairs=tuple((method, "wsddn") for method in TABLE_1 if method != "wsddn"),
        weights=TINY,
    ),
    "ws_jds_cards6": Sweep(
        "WS-JDS on cards6 (SqueezeNet 1.1)",
        {method: TABLE_1[method] for method in ("wsddn", "ws_jds")},
        ("mAP50", "CorLoc"),
        pairs=(("ws_jds", "wsddn"),),
    ),
    "spn_cards6": localizers("cards6 without proposals (SqueezeNet 1.1)"),
    "spn_synthetic": localizers("synthetic set without proposals (tiny backbone)", TINY),
}
