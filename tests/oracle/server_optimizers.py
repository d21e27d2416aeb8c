"""The server's optimisers again, straight from their papers, one vector of numpy floats and one step at a time.

Each takes where the vector stands and the updates of some rounds, and returns where it stands after each of them.
"""

from collections.abc import Sequence

import numpy as np

Trace = list[np.ndarray]


def adam(vector: np.ndarray, updates: Sequence[np.ndarray], lr: float, betas: tuple[float, float], eps: float) -> Trace:
    """Kingma and Ba 2015, Algorithm 1, bias correction and all; the mean update is the gradient (FedAdam)."""
    first, second = np.zeros_like(vector), np.zeros_like(vector)
    trace: Trace = []
    for count, update in enumerate(updates, start=1):
        first = betas[0] * first + (1 - betas[0]) * update
        second = betas[1] * second + (1 - betas[1]) * update**2
        corrected_first = first / (1 - betas[0] ** count)
        corrected_second = second / (1 - betas[1] ** count)
        vector = vector - lr * corrected_first / (np.sqrt(corrected_second) + eps)
        trace.append(vector)
    return trace


def adamw(
    vector: np.ndarray,
    updates: Sequence[np.ndarray],
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> Trace:
    """Loshchilov and Hutter 2019, Algorithm 2: Adam, and a decay that no moment sees."""
    first, second = np.zeros_like(vector), np.zeros_like(vector)
    trace: Trace = []
    for count, update in enumerate(updates, start=1):
        first = betas[0] * first + (1 - betas[0]) * update
        second = betas[1] * second + (1 - betas[1]) * update**2
        step = (first / (1 - betas[0] ** count)) / (np.sqrt(second / (1 - betas[1] ** count)) + eps)
        vector = vector - lr * (step + weight_decay * vector)
        trace.append(vector)
    return trace


def yogi(vector: np.ndarray, updates: Sequence[np.ndarray], lr: float, betas: tuple[float, float], eps: float) -> Trace:
    """Zaheer et al. 2018, Algorithm 2: the second moment moves by at most a share of the squared update."""
    first, second = np.zeros_like(vector), np.zeros_like(vector)
    trace: Trace = []
    for count, update in enumerate(updates, start=1):
        square = update**2
        first = betas[0] * first + (1 - betas[0]) * update
        second = second - (1 - betas[1]) * np.sign(second - square) * square
        corrected_first = first / (1 - betas[0] ** count)
        corrected_second = second / (1 - betas[1] ** count)
        vector = vector - lr * corrected_first / (np.sqrt(corrected_second) + eps)
        trace.append(vector)
    return trace


def adagrad(vector: np.ndarray, updates: Sequence[np.ndarray], lr: float, eps: float) -> Trace:
    """Duchi et al. 2011: the rate of each entry falls with the root of all its squared updates so far."""
    total = np.zeros_like(vector)
    trace: Trace = []
    for update in updates:
        total = total + update**2
        vector = vector - lr * update / (np.sqrt(total) + eps)
        trace.append(vector)
    return trace


def sgd(vector: np.ndarray, updates: Sequence[np.ndarray], lr: float, momentum: float) -> Trace:
    """Polyak's heavy ball; without momentum and at rate 1 it is FedAvg."""
    velocity = np.zeros_like(vector)
    trace: Trace = []
    for update in updates:
        velocity = momentum * velocity + update
        vector = vector - lr * velocity
        trace.append(vector)
    return trace
