"""Images of any data set, by the names of its columns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from data_partitions.dataset import DataSet, FederatedData
from data_partitions.errors import DataError
from data_partitions.images.data import ImageData, require_size, require_statistics
from data_partitions.images.encoded import ImageCells, cached_squares
from data_partitions.reading.columns import load_columns, require_label_names

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor

CROPS = 8
"""Crops move by up to an eighth of an image, which is what is usual for CIFAR-10: 4 of 32 pixels."""

KINDS = {"i": "numbers", "u": "numbers", "b": "booleans", "U": "texts"}


class Images(DataSet):
    """Any image data set with one label an image, from the hub or local files, by the names of its columns.

    Labels with names in the data (`datasets.ClassLabel`, class folders) keep their numbers. Others, texts or numbers,
    are numbered in sorted order of the distinct ones in training.

    Source: the data set that `path` names.

    Args:
        path: a hub id, or a local folder with files or image folders (see `load_columns`).
        image_column: the column of images, encoded as {bytes, path}; in an image folder `image`.
        label_column: the column of labels; in an image folder `label`.
        user_column: the column that says whose an image is, texts or numbers; None where nobody knows.
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
        self.image_size = require_size("image_size", image_size)
        self.stored_size = require_size("stored_size", image_size if stored_size is None else stored_size)
        self.augment = augment
        self.normalise = require_statistics(normalise)
        self.cache = cache

    def load(self) -> FederatedData:
        """Reads both splits.

        Returns:
            pixel_values uint8 (N, 3, stored_size, stored_size), labels int64 (N,). `transform` makes float32
            (B, 3, image_size, image_size) of about -1 to 1.

        Raises:
            DataError: where the data are missing or broken, labels are of no or of different kinds, or a label of the
                test images never occurs in training.
        """
        by_user = [] if self.user_column is None else [self.user_column]
        train, test = self._read("train", by_user), self._read(self.test_split, [])
        names, labels, test_labels = self._number(train, test)
        return ImageData(
            train=self._columns("train", train, labels),
            test=self._columns(self.test_split, test, test_labels),
            label_names=names,
            task="image_classification",
            user=_values("train", train, self.user_column, "user_column") if self.user_column is not None else None,
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

    def _number(self, train: Dataset, test: Dataset) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
        """The labels' names, and both splits' labels as their numbers, int64 (N,)."""
        names = tuple(getattr(train.features[self.label_column], "names", ()))
        if names:
            where = f"data.path {self.path!r}, {self.test_split},"
            require_label_names(where, test, names, self.label_column)
        labels = _values("train", train, self.label_column, "label_column")
        test_labels = _values(self.test_split, test, self.label_column, "label_column")
        kinds = [KINDS[found.dtype.kind] for found in (labels, test_labels)]
        if kinds[0] != kinds[1]:
            raise DataError(
                f"{self.test_split} column {self.label_column} holds {kinds[1]} and that of train {kinds[0]}, expected"
                f" one kind: write one of them again"
            )
        known = np.unique(labels)
        unseen = np.flatnonzero(~np.isin(test_labels, known))
        if len(unseen):
            row = unseen[0]
            raise DataError(
                f"{self.test_split} label {test_labels[row].item()!r} at row {row} never occurs in train, expected"
                f" labels that do: drop the row, or give other training data"
            )
        if names:
            return names, labels.astype(np.int64), test_labels.astype(np.int64)
        return tuple(map(str, known.tolist())), np.searchsorted(known, labels), np.searchsorted(known, test_labels)


def _values(split: str, found: Dataset, column: str, key: str) -> np.ndarray:
    """A column of texts or whole numbers, (N,), of a kind among `KINDS`; `key` is what the user named it by."""
    cells = found.with_format("arrow")[:][column]
    values = np.array([] if cells.type.num_fields else cells.to_pylist())  # Lists may make no array.
    if values.dtype.kind not in KINDS:
        raise DataError(
            f"{split} column {column} holds {cells.type}, expected texts or whole numbers: name another column with"
            f" --data.{key}"
        )
    return values
