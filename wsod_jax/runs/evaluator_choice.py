"""Which evaluators measure a pass: those that its predictions and its annotations allow, or those that are named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from wsod_jax.config.eval_options import EvalOptions
from wsod_jax.errors import ConfigError
from wsod_jax.evaluation.evaluators import BoxAp, CocoAp, CorLoc, Evaluator, MaskAp, PseudoBoxes
from wsod_jax.evaluation.image_evaluators import Classification, Energy, Ilsvrc, MeanIou, Pointing
from wsod_jax.runs.annotated_images import AnnotatedImages
from wsod_jax.runs.mask_baselines import MaskBaseline
from wsod_jax.runs.predictor import Predictor

# Measured of whatever has them; the others where they are named.
USUAL = ("boxes", "classification", "pointing", "energy", "ilsvrc", "masks", "miou")


def all_evaluators(
    settings: EvalOptions, num_classes: int, blacklist: Sequence[int] = ()
) -> dict[str, Evaluator]:
    """Return every evaluator by name, as the settings have it."""
    return {
        "boxes": BoxAp(num_classes, iou_thrs=settings.iou_thrs, ap_mode=settings.ap),
        "coco": CocoAp(num_classes),
        "corloc": CorLoc(num_classes, include_difficult=settings.corloc_difficult),
        "masks": MaskAp(num_classes, iou_thrs=settings.masks.iou_thrs),
        "coco_masks": CocoAp(num_classes, "masks"),
        "miou": MeanIou(num_classes),
        "classification": Classification(settings.classification_ap or settings.ap),
        "pointing": Pointing(
            num_classes, settings.maps.pointing_px, settings.maps.prediction_px, settings.ap
        ),
        "energy": Energy(),
        "ilsvrc": Ilsvrc(num_classes, blacklist),
        "pseudo": PseudoBoxes(num_classes),
    }


def outputs_with(outputs: frozenset[str], masks: MaskBaseline | None) -> frozenset[str]:
    """Return what is measured where masks are made of boxes: what is predicted, and masks.

    Raises:
      ConfigError: no boxes are predicted.
    """
    if masks is None:
        return outputs
    if not outputs & {"boxes", "maps"}:
        raise ConfigError(
            f"--masks makes masks of boxes, but what is predicted are {', '.join(sorted(outputs))}; leave it out"
        )
    return outputs | {"masks"}


def check_passes(
    predictor: Predictor, names: Sequence[str], masks: MaskBaseline | None = None
) -> None:
    """Raise `ConfigError` for passes that do not exist, or whose evaluators need what is not predicted."""
    outputs = outputs_with(predictor.method.outputs, masks)
    for name in names:
        settings = predictor.settings.of_pass(name)
        known = all_evaluators(settings, len(predictor.class_names))
        for evaluator in settings.evaluators or ():
            _check_needs(evaluator, known[evaluator], outputs)


def _check_needs(name: str, evaluator: Evaluator, outputs: frozenset[str]) -> None:
    if not evaluator.needs & outputs:
        raise ConfigError(
            f"evaluator {name!r} needs {' or '.join(sorted(evaluator.needs))}, but what is predicted are "
            f"{', '.join(sorted(outputs))}; take it out of eval.evaluators"
        )


def choose_evaluators(
    settings: EvalOptions,
    known: Mapping[str, Evaluator],
    outputs: frozenset[str],
    data: AnnotatedImages,
    *,
    extra: Sequence[str] = (),
    is_single_label: bool = False,
) -> tuple[dict[str, Evaluator], list[str]]:
    """Return the evaluators of a pass by name, and sentences about those that the annotations do not allow.

    Args:
      settings: of the pass.
      known: every evaluator by name.
      outputs: what is predicted.
      data: what it is compared with.
      extra: names of further evaluators, measured if what is predicted allows it.
      is_single_label: one class per image is predicted.

    Raises:
      ConfigError: an evaluator is named that needs another output.
    """
    names, notes, chosen = settings.evaluators, [], {}
    if names is None:
        usual = [name for name in USUAL if name != "ilsvrc" or is_single_label]
        names = [name for name in (*usual, *extra) if known[name].needs & outputs]
    for name in names:
        evaluator = known[name]
        _check_needs(name, evaluator, outputs)
        missing = evaluator.reads - data.known()
        if not missing:
            chosen[name] = evaluator
        elif name in (settings.evaluators or ("boxes", "pointing", "masks", "miou")):
            notes.append(
                f"{data.images.name} has no {' or '.join(sorted(missing))} to compare with: {name} not measured"
            )
    return chosen, notes


def reads_of(settings: EvalOptions, outputs: frozenset[str]) -> frozenset[str]:
    """Return what a pass reads of annotations."""
    if settings.evaluators is None:
        return outputs
    known = all_evaluators(settings, num_classes=1)
    return frozenset().union(*(known[name].reads for name in settings.evaluators))
