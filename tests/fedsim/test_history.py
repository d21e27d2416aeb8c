"""What a checkpoint remembers is read only where a run could have left it so."""

import json
import math
from dataclasses import asdict
from typing import Any

import pytest

from fedsim.errors import ConfigurationError
from fedsim.history import History

ROW = {"round": 0, "upload_bytes": 0, "accuracy": 0.5, "loss": None, "seconds": 0.1}
TOTALS = {"upload_bytes": 1, "download_bytes": 2, "upload_value_bytes": 3, "download_value_bytes": 4}
KEPT = History([ROW], 120, TOTALS, 1.5, 3, {"train/loss": [math.nan, 7]}, 0.2, 1)


def test_what_a_run_left_comes_back() -> None:
    assert repr(History.read(json.loads(json.dumps(asdict(KEPT))))) == repr(KEPT)
    assert History.read({}) == History()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("rows", value) for value in ({}, [[]], [{}], [{**ROW, "accuracy": "high"}], [{**ROW, "round": -1}])),
        ("rows", [{**ROW, "accuracy": 10**400}]),
        *(("ledger_position", value) for value in (-1, 2**63, 1.0, True, "0", None)),
        *(("totals", value) for value in ([], {"upload": 1}, {"upload_bytes": -1}, {"upload_bytes": 0.5})),
        *(("seconds", value) for value in (-0.1, math.nan, math.inf, None, "1", 10**400)),
        *(("clients", value) for value in (-1, 0.5, None)),
        *(("logged", value) for value in ([], {"loss": 3}, {"loss": [1]}, {"loss": [1, "x"]}, {"loss": [1, True]})),
        ("server_seconds", -1),
        ("left_out_clients", []),
        ("unheard_of", 3),
    ],
)
def test_what_no_run_leaves_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=name):
        History.read({**asdict(KEPT), name: value})


@pytest.mark.parametrize("held", [None, [], "rows", 3])
def test_another_kind_is_refused(held: object) -> None:
    with pytest.raises(ConfigurationError, match="history is missing"):
        History.read(held)
