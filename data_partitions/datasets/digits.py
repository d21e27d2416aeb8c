"""scikit-learn's handwritten digits: 1,797 images of 8x8, in the package, so that a run needs no network."""

from __future__ import annotations

import numpy as np

from data_partitions.dataset import DataSet, FederatedData

TRAIN_EXAMPLES = 1437
SPLIT_SEED = 20260101
"""The split belongs to the data set: runs with different seeds are measured on the same test images."""

PIXEL_MEAN = 4.884
PIXEL_STD = 6.017
"""Mean and deviation of the 1,797 images' pixels, 0 to 16; the glyph backbone was pretrained with the same."""


class Digits(DataSet):
    """Handwritten digits 0 to 9 as 8x8 counts of ink, 0 to 16 per pixel.

    Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998 (its test part), as
    `sklearn.datasets.load_digits`.
    """

    def __init__(self) -> None:
        pass

    def load(self) -> FederatedData:
        """Reads the images and splits them.

        Returns:
            1,437 training and 360 test examples: pixel_values float32 (N, 1, 8, 8) of about zero mean and unit
            variance, labels int64 (N,). Nobody is named as the writer.
        """
        import torch
        from sklearn.datasets import load_digits

        images, labels = load_digits(return_X_y=True)
        order = np.random.default_rng(SPLIT_SEED).permutation(len(labels))
        pixels = torch.from_numpy(normalise(images[order].reshape(-1, 1, 8, 8)))
        targets = torch.from_numpy(labels[order].astype(np.int64))
        return FederatedData(
            train={"pixel_values": pixels[:TRAIN_EXAMPLES], "labels": targets[:TRAIN_EXAMPLES]},
            test={"pixel_values": pixels[TRAIN_EXAMPLES:], "labels": targets[TRAIN_EXAMPLES:]},
            label_names=tuple(str(digit) for digit in range(10)),
            task="image_classification",
        )


def normalise(counts: np.ndarray) -> np.ndarray:
    """Scales counts of ink as the backbone expects them.

    Args:
        counts: any shape and real dtype, 0 to 16.

    Returns:
        float32 of the same shape, about zero mean and unit variance over the data set.
    """
    return ((counts - PIXEL_MEAN) / PIXEL_STD).astype(np.float32)
