"""The curves of a report as CSV: all that its figure needs."""

import csv
import io
from collections.abc import Mapping, Sequence

from launch.reports.curves import Band, Curve

COLUMNS = ("label", "seeds", "metric", "round", "upload_bytes", "download_bytes", "total_bytes", "mean", "min", "max")


def curves_csv(curves: Sequence[Curve], bands: Mapping[str, Band], metric: str) -> str:
    """A row for each evaluation of each band: bytes as means over seeds, the metric unrounded."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    for curve in (curve for curve in curves if curve.label in bands):
        band = bands[curve.label]
        columns = (band.rounds, band.upload_bytes, band.download_bytes, band.mean, band.low, band.high)
        for now, up, down, mean, low, high in zip(*(column.tolist() for column in columns), strict=True):
            sent = (round(up), round(down), round(up + down))
            writer.writerow([curve.label, " ".join(map(str, curve.seeds)), metric, round(now), *sent, mean, low, high])
    return stream.getvalue()
