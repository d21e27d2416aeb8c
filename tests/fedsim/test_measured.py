import pytest
import torch

from fedsim.aggregation import Arrived, Mean
from fedsim.measured import MeasuredMean
from tests import factored


def weighed(arrived: Arrived) -> float:
    return {0: 1.0, 1: 3.0}[arrived.client]


@pytest.mark.parametrize("weigh", [None, weighed])
def test_the_mean_is_the_mean_to_the_bit_and_its_error_is_measured(weigh: object) -> None:
    """A of 1 and 3, B of 2 and 4. Equal weights: 2 * 3 = 6 against 7. Weights 1 and 3: 2.5 * 3.5 against 9.5."""
    state = factored.server({"one": (1, 1)}, lora_rank=1, dtype=torch.float32)
    uploads = factored.arrived(state, factored.given(state, a=[1, 3], b=[2, 4]))
    plain = Mean(state.layout.length, torch.float32, torch.device("cpu"))
    measured = MeasuredMean(state, weigh)  # type: ignore[arg-type]
    for upload in uploads:
        plain.add_weighted(upload.update, 1.0 if weigh is None else weighed(upload))
        measured.add(upload)
    expected, found = plain.finish(), measured.finish()
    assert expected is not None
    assert found is not None
    assert torch.equal(found, expected)
    error = 1 / 7 if weigh is None else 0.75 / 9.5
    assert state.measures == {"product_error": pytest.approx(error, rel=1e-5)}


def test_nothing_arrived_and_nothing_weighs() -> None:
    state = factored.server({"one": (1, 1)}, lora_rank=1)
    assert MeasuredMean(state).finish() is None
    nobody = MeasuredMean(state, lambda _: 0.0)
    nobody.add(factored.arrived(state, factored.given(state, a=[1], b=[2]))[0])
    assert nobody.finish() is None
    assert state.measures == {}
