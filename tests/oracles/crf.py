"""Dense CRF literally: pair by pair, label by label (Krähenbühl and Koltun 2011, algorithm 1)."""

import numpy as np


def kernel(
    image: np.ndarray, sigma_xy: float, sigma_rgb: float | None, normalization: str = "symmetric"
) -> np.ndarray:
    """Return the normalized kernel [n, n] of an image [h, w, 3]; without σ_rgb, colors do not count."""
    height, width = image.shape[:2]
    nodes = [(i, j) for i in range(height) for j in range(width)]
    matrix = np.zeros((len(nodes), len(nodes)))
    for a, (i, j) in enumerate(nodes):
        for b, (p, q) in enumerate(nodes):
            exponent = ((i - p) ** 2 + (j - q) ** 2) / (2 * sigma_xy**2)
            if sigma_rgb is not None:
                difference = image[i, j].astype(float) - image[p, q].astype(float)
                exponent += np.sum(difference**2) / (2 * sigma_rgb**2)
            matrix[a, b] = np.exp(-exponent)
    degree = matrix.sum(axis=1)
    for a in range(len(nodes)):
        for b in range(len(nodes)):
            if normalization == "symmetric":
                matrix[a, b] /= np.sqrt(degree[a]) * np.sqrt(degree[b])
            elif normalization == "rows":
                matrix[a, b] /= degree[a]
    return matrix


def dense_crf(
    probabilities: np.ndarray,
    image: np.ndarray,
    *,
    gaussian_weight: float = 3.0,
    gaussian_xy: float = 3.0,
    bilateral_weight: float = 10.0,
    bilateral_xy: float = 80.0,
    bilateral_rgb: float = 13.0,
    num_iterations: int = 10,
    include_self: bool = True,
    normalization: str = "symmetric",
    floor: float = 0.0,
) -> np.ndarray:
    """Return q [h, w, k]; distances are in pixels of the image whose longer side is 500."""
    height, width, num_labels = probabilities.shape
    scale = 500 / max(height, width)
    smooth = kernel(image, gaussian_xy / scale, None, normalization)
    sharp = kernel(image, bilateral_xy / scale, bilateral_rgb, normalization)
    p = np.maximum(probabilities.astype(float), 1e-6).reshape(-1, num_labels)
    q = p / p.sum(axis=1, keepdims=True)
    for _ in range(num_iterations):
        new = np.zeros_like(q)
        for i in range(len(q)):
            message = np.zeros(num_labels)
            for j in range(len(q)):
                if i != j or include_self:
                    message += gaussian_weight * smooth[i, j] * q[j]
                    message += bilateral_weight * sharp[i, j] * q[j]
            weight = p[i] * np.exp(message - message.max())
            new[i] = weight / weight.sum()
        q = new
    q = np.maximum(q, floor)
    return (q / q.sum(axis=1, keepdims=True)).reshape(height, width, num_labels)
