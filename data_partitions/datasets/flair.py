"""FLAIR: 429,078 photographs by 51,414 Flickr users, each with any of seventeen labels."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from data_partitions.checks import require_whole
from data_partitions.dataset import DataSet, FederatedData
from data_partitions.errors import DataError
from data_partitions.images.data import ImageData, require_statistics
from data_partitions.images.encoded import EncodedImages, ImageCells, ImageFiles, cached_squares
from data_partitions.reading.columns import find_files, is_local, load_columns
from data_partitions.reading.hub import first_line

if TYPE_CHECKING:
    from torch import Tensor

LABEL_NAMES = (
    "animal",
    "art",
    "celebration",
    "equipment",
    "fire",
    "food",
    "games",
    "interior_room",
    "light",
    "liquid",
    "material",
    "music",
    "outdoor",
    "plant",
    "recreation",
    "religion",
    "structure",
)
"""The coarse labels, sorted by name as in the published benchmarks."""

SPLITS = ("train", "val", "test")
METADATA = "labels_and_metadata.json"
IMAGE_FOLDERS = ("small_images", "images")
CROPS = 14
"""Crops move by up to a fourteenth of an image: 16 of 224 pixels, as where 224 are cut from the published 256."""


class FLAIR(DataSet):
    """Photographs by Flickr users, each with any of seventeen labels: 345,879 for training, 43,960 for testing.

    Users of training, validation and test images are disjoint. The images, 256x256, are kept as bytes of `image_size`,
    52 GB for training at 224, in a file that is mapped and so need not fit into memory; on a GPU they must.

    Source: Song et al. 2022, "FLAIR: Federated Learning Annotated Image Repository", coarse labels; used as in FLASC
    (Kuo et al.), Section 4: resized to 224, random crops and flips in training.

    Args:
        path: the local folder that Apple's download_dataset.py (apple/ml-flair) fills, with labels_and_metadata.json
            and IMAGE ID.jpg in small_images, or in images; or a hub id or a folder of files `train`, `val` and `test`
            (see `load_columns`) with columns `image`, `user_id` and `labels`.
        image_size: height and width of images, as stored and as the backbone sees them, at least 1: scaled until the
            shorter side fits, then cut to the middle.
        augment: whether training images are cropped (reflected by a fourteenth of their size) and flipped at random.
        normalise: by which mean and deviation, those that the backbone was pretrained with: half for Google's ViT,
            imagenet for DeiT and most others (image_mean in a backbone's preprocessor_config.json).
        test_split: which images are tested on.
        cache: the folder that keeps decoded images for the next start, `~` allowed.

    Raises:
        DataError: for a value out of range.
    """

    def __init__(
        self,
        path: str = "apple/flair",
        image_size: int = 224,
        augment: bool = True,
        normalise: Literal["half", "imagenet"] = "half",
        test_split: Literal["test", "val"] = "test",
        cache: str = "~/.cache/fedsim",
    ) -> None:
        if test_split not in SPLITS[1:]:
            raise DataError(f"data.test_split is {test_split!r}, expected test or val: give one of them")
        self.path = path
        self.image_size = require_whole("data.image_size", image_size, 1, 224)
        self.augment = augment
        self.normalise = require_statistics(normalise)
        self.test_split = test_split
        self.cache = cache

    def load(self) -> FederatedData:
        """Reads the training images and those that are tested on.

        Returns:
            345,879 training and 43,960 test (or 39,239 validation) examples: pixel_values uint8
            (N, 3, image_size, image_size), labels uint8 (N, 17) of 0 and 1. `transform` makes floats of about -1 to 1.
            An image's class, for partitioners, is the rarest among the training images' labels that it has; 17 where
            it has none.

        Raises:
            DataError: where the data are missing or broken, or have other labels.
        """
        read = self._read_download() if self._is_download() else self._read_columns
        train, test = read("train"), read(self.test_split)
        columns = self._columns(train), self._columns(test)
        return ImageData(
            train=columns[0],
            test=columns[1],
            label_names=LABEL_NAMES,
            task="multi_label_image_classification",
            user=train.users,
            classes=rarest_labels(train.labels),
            image_size=self.image_size,
            augment=self.augment,
            normalise=self.normalise,
            padding=self.image_size // CROPS,
        )

    def _columns(self, split: _Split) -> dict[str, Tensor]:
        import torch

        pixels = cached_squares(split.images, self.image_size, self.cache)
        return {"pixel_values": torch.from_numpy(pixels), "labels": torch.from_numpy(split.labels)}

    def _is_download(self) -> bool:
        """Whether the path is a folder as Apple's script fills it; what is neither that nor columns is refused."""
        if not is_local(self.path):
            return False
        if (Path(self.path).expanduser() / METADATA).exists():
            return True
        try:
            find_files(self.path, "train")
        except DataError as error:
            raise DataError(
                f"data.path {self.path!r} has no {METADATA} and no train.parquet, expected the folder that"
                f" download_dataset.py of apple/ml-flair fills: give that folder"
            ) from error
        return False

    def _read_columns(self, split: str) -> _Split:
        table = load_columns(self.path, split, ("image", "user_id", "labels")).with_format("arrow")[:]
        where = f"data.path {self.path!r}, {split},"
        labels = table["labels"].to_pylist()
        images = ImageCells(split, "image", table["image"])
        kind = table["user_id"].type
        if str(kind) not in ("string", "large_string"):
            raise DataError(f"{where} column user_id holds {kind}, expected texts: write it again")
        users = np.array(table["user_id"].to_pylist())
        return _Split(users, multi_hot(labels, lambda row: f"{where} row {row}"), images)

    def _read_download(self) -> Callable[[str], _Split]:
        """Reads the metadata; the splits are taken from it."""
        folder = Path(self.path).expanduser()
        entries = _read_metadata(folder / METADATA)
        images = next((folder / name for name in IMAGE_FOLDERS if (folder / name).is_dir()), None)
        if images is None:
            raise DataError(
                f"data.path {self.path!r} has no folder small_images, expected it beside {METADATA}: add it"
            )

        def read(split: str) -> _Split:
            chosen = [entry for entry in entries if entry["partition"] == split]
            if not chosen:
                raise DataError(f"{folder / METADATA} has no image of partition {split}: download it again")
            names = [entry["image_id"] for entry in chosen]
            labels = multi_hot([entry["labels"] for entry in chosen], lambda row: f"{folder / METADATA}: {names[row]}")
            users = np.array([entry["user_id"] for entry in chosen])
            return _Split(users, labels, ImageFiles(split, [images / f"{name}.jpg" for name in names]))

        return read


@dataclass(frozen=True, eq=False)
class _Split:
    """One split before it is decoded: users (N,), labels uint8 (N, 17), images."""

    users: np.ndarray
    labels: np.ndarray
    images: EncodedImages


def multi_hot(labels: Sequence[Any], where: Callable[[int], str]) -> np.ndarray:
    """Marks which labels every image has.

    Args:
        labels: a list of names for each image; an image may have none.
        where: what to call an image in errors, by its row.

    Returns:
        uint8 (N, 17), in the order of `LABEL_NAMES`.

    Raises:
        DataError: for a name that is none of them.
    """
    numbers = {name: number for number, name in enumerate(LABEL_NAMES)}
    marked = np.zeros((len(labels), len(LABEL_NAMES)), dtype=np.uint8)
    for row, names in enumerate(labels):
        if not isinstance(names, list):
            raise DataError(f"{where(row)} has labels {names!r}, expected a list of names: correct it")
        for name in names:
            if not isinstance(name, str) or name not in numbers:
                raise DataError(f"{where(row)} has the label {name!r}, expected any of {', '.join(LABEL_NAMES)}")
            marked[row, numbers[name]] = 1
    return marked


def rarest_labels(marked: np.ndarray) -> np.ndarray:
    """Names one label for each image: of those it has, the one that fewest images have, the first among equals.

    The common ones, such as structure, are on half of all images and would tell partitioners little.

    Args:
        marked: 0 and 1 (N, L).

    Returns:
        int64 (N,); L for an image without labels.
    """
    count = marked.shape[1]
    ranks = np.empty(count, dtype=np.int64)
    ranks[np.argsort(marked.sum(0, dtype=np.int64), kind="stable")] = np.arange(count)
    ranked = np.where(marked, ranks, count).argmin(1)
    return np.where(marked.any(1), ranked, count).astype(np.int64)


def _read_metadata(file: Path) -> list[dict[str, Any]]:
    """The entries of the metadata, with the fields that are used as they should be; labels are checked later."""
    try:
        entries = json.loads(file.read_bytes())
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror}): correct its permissions") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} is no JSON ({first_line(error)}), expected a list of images: get it again") from error
    if not isinstance(entries, list):
        raise DataError(f"{file} is a JSON {type(entries).__name__}, expected a list of images: get it again")
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise DataError(f"{file} entry {number} is a JSON {type(entry).__name__}, expected an object: get it again")
        for name in ("image_id", "user_id", "partition"):
            if not isinstance(entry.get(name), str):
                raise DataError(f"{file} entry {number} has {name} {entry.get(name)!r}, expected a text: correct it")
        if entry["partition"] not in SPLITS:
            raise DataError(
                f"{file} entry {number} has partition {entry['partition']!r}, expected train, val or test: correct it"
            )
        if "labels" not in entry:
            raise DataError(f"{file} entry {number} has no labels, expected a list of names: correct it")
    return entries
