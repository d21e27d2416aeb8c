"""`fedsim bench --scaling`: the schedule's imbalance by hand, and a gather over real processes."""

import numpy as np
import pytest

from launch.benchmarks import scaling
from launch.benchmarks.scaling import imbalance, scaling_rows


def test_imbalance_by_hand() -> None:
    """Clients of 3, 1, 1 and 1 steps on two workers: 3 and 3. On three: 3, 2 and 1, where 2 is the mean."""
    steps = np.array([3, 1, 1, 1])
    assert imbalance(steps, 4, 2) == 1.0
    assert imbalance(steps, 4, 3) == 1.5


def test_what_each_worker_is_brought_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three workers, four clients: two of them on one worker, and everybody's buffer is as long as that one's."""
    monkeypatch.setattr(scaling, "CLIENTS", 50)
    monkeypatch.setattr(scaling, "EXAMPLES", 2000)
    (row,) = scaling_rows(3, [4])
    payload = len(scaling._payload(0))
    assert (row.workers, row.cohort_size, row.upload_bytes) == (3, 4, 4 * payload)
    assert row.carried_bytes == 3 * 2 * payload
    assert row.even_imbalance >= 1
    assert row.skewed_imbalance >= 1
