"""Plain twins of the rules that combine LoRA's factors: numpy, D_out by D_in wherever it is the shortest way."""

import numpy as np

Factors = list[np.ndarray]


def mean_of(arrays: Factors, w: np.ndarray) -> np.ndarray:
    return sum(weight * array for weight, array in zip(w, arrays, strict=True))


def mean_product(a: Factors, b: Factors, w: np.ndarray) -> np.ndarray:
    """sum_u w_u B_u A_u."""
    return mean_of([right @ left for left, right in zip(a, b, strict=True)], w)


def relative_error(a: Factors, b: Factors, w: np.ndarray, product: np.ndarray) -> float:
    target = mean_product(a, b, w)
    return float(np.linalg.norm(target - product) / np.linalg.norm(target))


def truncated(product: np.ndarray, rank: int) -> np.ndarray:
    """The best approximation of that rank (Eckart and Young)."""
    u, s, v = np.linalg.svd(product, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ v[:rank]


def corrected_b(a: Factors, b: Factors, w: np.ndarray, regularisation: float) -> np.ndarray:
    """The B that minimises norm(T - B A)^2 + regularisation * norm(B - mean B)^2, as one least-squares problem."""
    mean_a, mean_b = mean_of(a, w), mean_of(b, w)
    system = np.vstack([mean_a.T, np.sqrt(regularisation) * np.eye(len(mean_a))])
    lacking = (mean_product(a, b, w) - mean_b @ mean_a).T
    solution, *_ = np.linalg.lstsq(system, np.vstack([lacking, np.zeros_like(mean_b.T)]), rcond=None)
    return mean_b + solution.T


def flora_na(a: Factors, b: Factors, w: np.ndarray, sweeps: int) -> tuple[np.ndarray, np.ndarray]:
    """p and q by alternating least squares over all D_out D_in entries, then the gauge."""
    target = mean_product(a, b, w).ravel()
    p, q = w.copy(), w.copy()

    def step(columns: Factors, now: np.ndarray) -> np.ndarray:
        system = np.stack([column.ravel() for column in columns], axis=1)
        move, *_ = np.linalg.lstsq(system, target - system @ now, rcond=1e-6)  # singular values: squared, 1e-12
        return now + move

    for _ in range(sweeps):
        q = step([right @ mean_of(a, p) for right in b], q)
        p = step([mean_of(b, q) @ left for left in a], p)
    wanted = np.linalg.norm(mean_of(b, w)) / np.linalg.norm(mean_of(a, w))
    c = np.sqrt(np.linalg.norm(mean_of(b, q)) / np.linalg.norm(mean_of(a, p)) / wanted)
    return p * c, q / c
