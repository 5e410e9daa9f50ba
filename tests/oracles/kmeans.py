"""k-means of numbers: all ways to cut the sorted values, in float64; and Lloyd's algorithm from given means."""

import itertools

import numpy as np


def inertias(values, num_clusters):
    """Return {size of the highest cluster: the least inertia with it}, equal values never divided."""
    ranked = np.sort(np.asarray(values, np.float64))[::-1]
    places = [n for n in range(1, len(ranked)) if ranked[n - 1] > ranked[n]]
    found = {}
    for cuts in itertools.combinations(places, min(num_clusters - 1, len(places))):
        edges = [0, *cuts, len(ranked)]
        total = sum(inertia(ranked[a:b]) for a, b in itertools.pairwise(edges))
        found[edges[1]] = min(total, found.get(edges[1], np.inf))
    return found


def inertia(values):
    """Return the sum of squared distances from the mean."""
    return np.sum((values - np.mean(values)) ** 2)


def top_cluster(values, num_clusters):
    """Return which values the highest cluster of the best clustering has."""
    found = inertias(values, num_clusters)
    size = min(found, key=found.get)
    return np.asarray(values) >= np.sort(values)[::-1][size - 1]


def lloyd(values, means, rounds=1000):
    """Return the inertia at which Lloyd's algorithm on numbers ends."""
    values = np.asarray(values, np.float64)
    for _ in range(rounds):
        cluster = [int(np.argmin([abs(v - m) for m in means])) for v in values]
        moved = list(means)
        for n in set(cluster):
            moved[n] = np.mean([v for v, own in zip(values, cluster, strict=True) if own == n])
        if moved == list(means):
            break
        means = moved
    return sum((v - means[own]) ** 2 for v, own in zip(values, cluster, strict=True))
