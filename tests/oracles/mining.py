"""Miners as their papers and released codes tell them: NumPy scalars, Python lists, one loop per sentence."""

import numpy as np

from tests.oracles.boxes import iou
from tests.oracles.kmeans import top_cluster


def first_max(values):
    """Position of the largest value, the first of equals."""
    best = 0
    for position in range(1, len(values)):
        if values[position] > values[best]:
            best = position
    return best


class Box:
    """A mined box: the proposal's index, its class and weight, and how its graph is used.

    `corners` are set where it is no proposal but a regressed one.
    """

    def __init__(self, index, cls, weight, is_seed=True, spreads=True):
        self.index, self.cls, self.weight = index, cls, weight
        self.is_seed, self.spreads = is_seed, spreads
        self.corners = None

    def of(self, boxes):
        """The box itself."""
        return boxes[self.index] if self.corners is None else self.corners


def assign(mined, scores, boxes, fg_iou_thr=0.5, ignore_iou_thr=0.0):
    """Label each proposal by the mined box it overlaps most."""
    count = len(boxes)
    labels, weights = np.zeros(count, int), np.zeros(count)
    assigned, is_pseudo_box, source = np.full(count, -1), np.zeros(count, bool), np.zeros(count)
    for r in range(count):
        if not mined:
            continue
        overlaps = [iou(boxes[r], box.of(boxes)) for box in mined]
        slot = first_max(overlaps)
        box = mined[slot]
        assigned[r] = slot
        weights[r] = box.weight if overlaps[slot] >= ignore_iou_thr else 0.0
        is_mined = r in [other.index for other in mined]
        if overlaps[slot] >= fg_iou_thr and (box.spreads or is_mined):
            labels[r] = box.cls + 1
            is_pseudo_box[r] = box.index == r
            source[r] = scores[r, box.cls]
        else:
            source[r] = weights[r]
    return {
        "labels": labels,
        "weights": weights,
        "matched_idx": assigned,
        "is_pseudo_box": is_pseudo_box,
        "source_scores": source,
    }


def oicr(scores, boxes, labels):
    left = scores.copy()
    mined = []
    for c in range(len(labels)):
        if labels[c] == 1:
            top = first_max(left[:, c])
            mined.append(Box(top, c, left[top, c]))
            left[top, :] = 0
    return mined


def oim(
    scores,
    boxes,
    labels,
    features,
    alpha,
    graphs="both",
    node_neighbors="paper",
    fg_iou_thr=0.5,
    davg_includes_core=True,
):
    left = scores.copy()
    mined = []
    core_spreads = graphs in ("spatial", "both")
    node_spreads = graphs == "both" and node_neighbors == "paper"
    for c in range(len(labels)):
        if labels[c] != 1:
            continue
        core = first_max(left[:, c])
        snapshot = left[:, c].copy()
        mined.append(Box(core, c, snapshot[core], spreads=core_spreads))
        distances = np.array([np.sqrt(np.sum((features[core] - f) ** 2)) for f in features])
        near = []
        for j in range(len(boxes)):
            if j == core:
                if davg_includes_core:
                    near.append(0.0)
            elif iou(boxes[core], boxes[j]) >= fg_iou_thr:
                near.append(distances[j])
        average = sum(near) / len(near) if near else 0.0
        chosen = [core]
        if graphs != "spatial":
            for j in np.argsort(distances, kind="stable"):
                if distances[j] >= alpha * average:
                    break
                if j in chosen or any(iou(boxes[j], boxes[q]) >= 1e-6 for q in chosen):
                    continue
                chosen.append(j)
                mined.append(Box(j, c, snapshot[j], is_seed=False, spreads=node_spreads))
                left[j, :] = 0
        left[core, :] = 0
    return mined


def pcl(scores, boxes, labels, graph_iou_thr=0.4, max_centers=5, num_kmeans_clusters=3):
    pool = list(range(len(boxes)))
    mined = []
    for c in range(len(labels)):
        if labels[c] != 1 or not pool:
            continue
        is_top = top_cluster([scores[r, c] for r in pool], num_kmeans_clusters)
        kept = [r for r, top in zip(pool, is_top, strict=True) if top]
        found = []
        while True:
            graph = {
                r: [q for q in kept if q == r or iou(boxes[r], boxes[q]) > graph_iou_thr]
                for r in kept
            }
            center = max(kept, key=lambda r: (len(graph[r]), r))
            found.append((max(float(scores[q, c]) for q in graph[center]), center))
            kept = [r for r in kept if r not in graph[center]]
            if len(kept) <= 5:
                break
        found = sorted(found, key=lambda pair: (-pair[0], pair[1]))[:max_centers]
        for score, center in found:
            mined.append(Box(center, c, score))
            pool.remove(center)
    return mined


def mist(scores, boxes, labels, top_fraction=0.15, overlap_thr=0.2):
    mined = []
    count = max(1, int(len(boxes) * top_fraction))
    for c in range(len(labels)):
        if labels[c] != 1:
            continue
        ranked = np.argsort(-scores[:, c], kind="stable")[:count]
        for position, j in enumerate(ranked):
            if all(iou(boxes[j], boxes[q]) < overlap_thr for q in ranked[:position]):
                mined.append(Box(j, c, scores[j, c], is_seed=position == 0))
    return mined
