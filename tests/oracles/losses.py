"""Losses as printed: float64 loops over proposals and classes."""

import numpy as np

from tests.oracles.boxes import encode


def softmax(logits):
    logits = np.asarray(logits, np.float64)
    exponent = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponent / exponent.sum(axis=-1, keepdims=True)


def mil(phi, labels, reduction="mean", scale=1.0):
    total, known = 0.0, 0
    for p, y in zip(phi, labels, strict=True):
        if y == -1:
            continue
        p = min(max(float(p), 1e-6), 1 - 1e-6)
        total -= np.log(p) if y == 1 else np.log(1 - p)
        known += 1
    if reduction == "mean":
        total /= max(known, 1)
    return scale * total


def refinement(logits, labels, weights, multiplier, normalizer="weighted"):
    probs = softmax(logits)
    total = 0.0
    for j in range(len(probs)):
        total -= weights[j] * multiplier[j] * np.log(probs[j, labels[j]])
    count = sum(w > 1e-12 for w in weights) if normalizer == "weighted" else len(probs)
    return total / max(count, 1)


def regression(deltas, proposals, mined_boxes, targets, beta):
    """Box regression of one head; `targets` as `oracles.mining.assign` returns them."""
    total = 0.0
    for r in range(len(proposals)):
        if targets["labels"][r] == 0:
            continue
        wanted = encode(proposals[r], mined_boxes[targets["matched_idx"][r]])
        for found, aim in zip(deltas[r, targets["labels"][r] - 1], wanted, strict=True):
            size = abs(found - aim)
            distance = size**2 / (2 * beta) if size < beta else size - beta / 2
            total += targets["weights"][r] * distance
    return total / max(len(proposals), 1)


def cluster(logits, labels, weights, assigned):
    probs = softmax(logits)
    total = 0.0
    for j in range(len(probs)):
        if labels[j] == 0:
            total += weights[j] * np.log(probs[j, 0])
    for slot in set(assigned):
        members = [j for j in range(len(probs)) if labels[j] > 0 and assigned[j] == slot]
        if members:
            mean = sum(probs[j, labels[j]] for j in members) / len(members)
            total += sum(weights[j] for j in members) * np.log(mean)
    return -total / max(len(probs), 1)


def spatial(scores, boxes, labels, features, iou, iou_thr=0.6, num_best=10):
    total = 0.0
    for c in range(len(labels)):
        if labels[c] != 1:
            continue
        ranked = np.argsort(-scores[:, c], kind="stable")[:num_best]
        best = ranked[0]
        for k in ranked[1:]:
            if iou(boxes[k], boxes[best]) > iou_thr:
                total += 0.5 * np.sum((scores[k, c] * (features[k] - features[best])) ** 2)
    return total


def multiplier(targets, mode, beta=0.2, core_sign=-1):
    """Factors of the instance-reweighted loss, proposal by proposal."""
    factors = []
    for j in range(len(targets["labels"])):
        foreground, center = targets["labels"][j] > 0, targets["is_pseudo_box"][j]
        if mode == "off":
            factors.append(1.0)
        elif mode == "paper":
            factors.append(1.0 if not foreground else beta if center else 1 + beta)
        else:
            own = targets["source_scores"][j] if foreground else targets["weights"][j]
            ratio = own / (targets["weights"][j] + 1e-5)
            if ratio > 0.999 and center:
                factors.append(core_sign * beta)
            elif ratio > 0.999 or ratio <= 0.299:
                factors.append(1.0)
            else:
                factors.append(1 + beta)
    return np.array(factors)


def classification(logits, labels, activation):
    """Cross-entropy of one image, class by class, without ever taking the exponential of a large number."""
    logits = [float(y) for y in logits]
    if activation == "softmax":
        peak = max(logits)
        normalizer = peak + np.log(sum(np.exp(y - peak) for y in logits))
        return sum(normalizer - y for y, t in zip(logits, labels, strict=True) if t == 1)
    total, known = 0.0, 0
    for y, t in zip(logits, labels, strict=True):
        if t == -1:
            continue
        against = -y if t == 1 else y
        total += max(against, 0.0) + np.log1p(np.exp(-abs(y)))
        known += 1
    return total / max(known, 1)
