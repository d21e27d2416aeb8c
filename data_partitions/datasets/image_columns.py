"""Images of any data set, by the names of its columns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from data_partitions.checks import require_whole
from data_partitions.dataset import DataSet, FederatedData
from data_partitions.errors import DataError
from data_partitions.images.data import ImageData, require_statistics
from data_partitions.images.encoded import ImageCells, cached_squares
from data_partitions.reading.columns import load_columns
from data_partitions.reading.labels import names_or_integers, number_both

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor

CROPS = 8
"""Crops move by up to an eighth of an image, which is what is usual for CIFAR-10: 4 of 32 pixels."""


class Images(DataSet):
    """Any image data set with one label an image, from the hub or local files, by the names of its columns.

    Labels are integers from 0, or names, which are numbered in sorted order. Integers whose names the data declare
    (`datasets.ClassLabel`, class folders) may be labels without any training example. Other labels are those of
    `train`, integers up to the largest one there; the test split must not have another.

    Source: the data set that `path` names.

    Args:
        path: a hub id, or a local folder with files or image folders (see `load_columns`).
        image_column: the column of images, encoded as {bytes, path}; in an image folder `image`.
        label_column: the column of labels; in an image folder `label`.
        user_column: the column that says whose an image is, names or integers; None where nobody knows.
        config: which of the data set's configurations; None for its only one.
        test_split: the split that is tested on; `train` is trained on.
        image_size: height and width of what the backbone sees, at least 1.
        stored_size: height and width that images are kept with, at least 1: scaled until the shorter side fits, then
            cut to the middle. None is image_size; give what they have where they are smaller, to save room.
        augment: whether training images are cropped (reflected by an eighth of their size) and flipped at random.
        normalise: by which mean and deviation, those that the backbone was pretrained with: half for Google's ViT,
            imagenet for DeiT and most others (image_mean in a backbone's preprocessor_config.json).
        cache: the folder that keeps decoded images for the next start, `~` allowed.

    Raises:
        DataError: for a value out of range.
    """

    def __init__(
        self,
        path: str,
        image_column: str = "image",
        label_column: str = "label",
        user_column: str | None = None,
        config: str | None = None,
        test_split: str = "test",
        image_size: int = 224,
        stored_size: int | None = None,
        augment: bool = True,
        normalise: Literal["half", "imagenet"] = "half",
        cache: str = "~/.cache/fedsim",
    ) -> None:
        if test_split == "train":
            raise DataError("data.test_split is 'train', which is trained on: give another split of the data set")
        self.path = path
        self.image_column = image_column
        self.label_column = label_column
        self.user_column = user_column
        self.config = config
        self.test_split = test_split
        self.image_size = require_whole("data.image_size", image_size, 1, 224)
        self.stored_size = self.image_size
        if stored_size is not None:
            self.stored_size = require_whole("data.stored_size", stored_size, 1, 224)
        self.augment = augment
        self.normalise = require_statistics(normalise)
        self.cache = cache

    def load(self) -> FederatedData:
        """Reads both splits.

        Returns:
            pixel_values uint8 (N, 3, stored_size, stored_size), labels int64 (N,). `transform` makes float32
            (B, 3, image_size, image_size) of about -1 to 1.

        Raises:
            DataError: where the data are missing, broken, or not as said above.
        """
        by_user = [] if self.user_column is None else [self.user_column]
        train, test = self._read("train", by_user), self._read(self.test_split, [])
        names, labels, test_labels = number_both(train, test, self.test_split, self.label_column)
        users = None
        if self.user_column is not None:
            cells = train.with_format("arrow")[:][self.user_column]
            users = names_or_integers(cells, "train", self.user_column, "data.user_column")
        return ImageData(
            train=self._columns("train", train, labels),
            test=self._columns(self.test_split, test, test_labels),
            label_names=names,
            task="image_classification",
            user=users,
            image_size=self.image_size,
            augment=self.augment,
            normalise=self.normalise,
            padding=self.stored_size // CROPS,
        )

    def _read(self, split: str, further: list[str]) -> Dataset:
        found = load_columns(self.path, split, (self.image_column, self.label_column, *further), config=self.config)
        if len(found) == 0:
            raise DataError(f"data.path {self.path!r} has no rows in {split}, expected at least one: check its files")
        return found

    def _columns(self, split: str, found: Dataset, labels: np.ndarray) -> dict[str, Tensor]:
        import torch

        cells = ImageCells(split, self.image_column, found.with_format("arrow")[:][self.image_column])
        pixels = cached_squares(cells, self.stored_size, self.cache)
        return {"pixel_values": torch.from_numpy(pixels), "labels": torch.from_numpy(labels)}
