"""What the curves of a report may be drawn against."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from launch.reports.curves import Band


@dataclass(frozen=True)
class Axis:
    """A horizontal axis.

    Attributes:
        title: what stands beneath it, without the unit.
        words: what the curves are against, in a sentence.
        in_bytes: whether it counts bytes.
        of: the values of a band on it (E,).
    """

    title: str
    words: str
    in_bytes: bool
    of: Callable[[Band], NDArray[np.float64]]


AGAINST: Mapping[str, Axis] = {
    "upload": Axis("Uploaded by all clients", "uploaded bytes", True, lambda band: band.upload_bytes),
    "download": Axis("Downloaded by all clients", "downloaded bytes", True, lambda band: band.download_bytes),
    "total": Axis(
        "Sent both ways by all clients",
        "uploaded and downloaded bytes",
        True,
        lambda band: band.upload_bytes + band.download_bytes,
    ),
    "rounds": Axis("Round", "rounds", False, lambda band: band.rounds),
}
