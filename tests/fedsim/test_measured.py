import pytest
import torch

from fedsim.aggregation import Arrived, Mean
from fedsim.measured import MeasuredMean
from fedsim.method import Plan
from fedsim.sparse import SparseVector
from fedsim.tiers import rank_slice
from tests import factored, tiny


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


def test_the_error_is_that_of_p_less_the_mean_where_a_client_sent_a_slice() -> None:
    """P has A = (1, 2) and B = (1, 1). One client of rank 1 moves its A to 2: product 2; another of rank 2 stays: 3.

    The mean of products is 2.5. Nobody took away what the first was not sent, so P less the mean has A = (1.5, 2) and
    B as it was: 3.5.
    """
    state = factored.server({"one": (1, 1)}, lora_rank=2)
    views = state.layout.views(state.vector.data)
    pair = state.layout.pairs[0]
    views[pair.a.name].copy_(torch.tensor([[1.0], [2.0]]))
    views[pair.b.name].copy_(torch.tensor([[1.0, 1.0]]))
    moved = torch.zeros_like(state.vector.data)
    moved[pair.a.start] = -1.0
    places = rank_slice(state.layout, 1)
    measured = MeasuredMean(state)
    measured.add(tiny.arrived(SparseVector.at(moved, places), plan=Plan(lora_rank=1)))
    measured.add(tiny.arrived(SparseVector.dense(torch.zeros_like(moved)), client=1, plan=Plan(lora_rank=2)))
    assert measured.finish() is not None
    assert state.measures == {"product_error": pytest.approx(1 / 2.5, rel=1e-6)}
