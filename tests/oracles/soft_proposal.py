"""Soft proposals literally: node by node, edge by edge (Zhu et al. 2017, section 3.1, and the released kernels)."""

import numpy as np


def weight_matrix(features: np.ndarray, epsilon: float) -> np.ndarray:
    """Return D' [n, n] of a map [h, w, d]."""
    height, width, depth = features.shape
    nodes = features.reshape(-1, depth).astype(np.float64)
    cells = [(i, j) for i in range(height) for j in range(width)]
    matrix = np.zeros((len(cells), len(cells)))
    for a, (i, j) in enumerate(cells):
        for b, (p, q) in enumerate(cells):
            near = np.exp(-((i - p) ** 2 + (j - q) ** 2) / (2 * epsilon**2))
            matrix[a, b] = np.sqrt(np.sum((nodes[a] - nodes[b]) ** 2)) * near
    return matrix


def walk(matrix: np.ndarray, num_steps: int = 20, tolerance: float = 1e-4) -> np.ndarray:
    """Return M [n] after the released walk: stop before a step shorter than the tolerance, else renormalize."""
    count = len(matrix)
    sums = matrix.sum(axis=0)
    if sums.sum() == 0:
        return np.full(count, 1 / count)
    transfer = matrix / sums[None, :]
    mass = np.full(count, 1 / count)
    for _ in range(num_steps):
        change = transfer @ mass - mass
        if np.sqrt(np.sum(change**2)) < tolerance:
            break
        mass = mass + change
        mass = mass / mass.sum()
    return mass


def damped_walk(matrix: np.ndarray, num_steps: int = 4000) -> np.ndarray:
    """Return what M <- (M + D M) / 2 converges to: half of the mass waits, so nothing hops back and forth."""
    transfer = matrix / matrix.sum(axis=0)[None, :]
    mass = np.full(len(matrix), 1 / len(matrix))
    for _ in range(num_steps):
        mass = 0.5 * (mass + transfer @ mass)
    return mass
