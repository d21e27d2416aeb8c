import pytest
import torch

from fedsim.codec import HEADER_BYTES
from fedsim.errors import ConfigurationError
from fedsim.options import ServerOptions
from fedsim.server import server_optimizer
from fedsim.sparse import SparseVector
from fedsim.tiers import truncated
from methods.lora import LoRA
from methods.lowest_tier import LowestTier
from tests import factored, tiny
from tests.rounds import rounds

METHOD = LowestTier(lora_rank=4, tiers=3)


def test_a_round_by_hand() -> None:
    """One module of 1 by 1 under rank 4: A is (1, 2, 3, 4), B zero, the head 5; a server of SGD at rate 1.

    Two clients move A[0] by 1 and 3, B[0] by 2 and 6, the head by -1 and -3. Beyond the first rank nothing moves, and
    the view shows nothing: what the server has of A there is worth nothing, as B is zero.
    """
    state = factored.server({"one": (1, 1)}, lora_rank=4, head=1)
    state.vector.data = torch.tensor([1.0, 2, 3, 4, 0, 0, 0, 0, 5], dtype=torch.float64)
    state.optimizer = server_optimizer(ServerOptions("sgd", lr=1.0), state.vector)
    shared = tiny.shared_of(state)
    plan = METHOD.plan(state, 1, 0)
    assert plan == METHOD.plan(state, 1, 1)
    support = METHOD.upload_support(shared, plan)
    assert support.tolist() == [0, 4, 8]
    aggregate = METHOD.aggregate(state, shared)
    start = METHOD.download(state, shared, plan).values.within(support)
    assert start.values.tolist() == [1, 0, 5]
    for moves in ([1.0, 2, -1], [3.0, 6, -3]):
        update = SparseVector(9, -torch.tensor(moves, dtype=torch.float64), support)
        aggregate.add(tiny.arrived(update, plan=plan))
    mean = aggregate.finish()
    assert mean is not None
    METHOD.step(state, mean)
    assert state.vector.tolist() == [3, 2, 3, 4, 4, 0, 0, 0, 3]
    assert {name: v.tolist() for name, v in METHOD.views(state).items()} == {"lowest": [3, 0, 0, 0, 4, 0, 0, 0, 3]}


def test_everybody_works_on_the_first_rank() -> None:
    """Whatever the server's optimiser does with the rest: AdamW shrinks it. The view is the model that P is."""
    before = tiny.build(METHOD, dtype=torch.float32).vector.clone()
    server = ServerOptions("adamw", lr=0.05, weight_decay=0.5)
    for played in rounds(METHOD, 3, dtype=torch.float32, server=server):
        assert {e.upload_bytes for e in played.entries} == {HEADER_BYTES + 4 * (192 + 51)}
        assert {e.download_bytes for e in played.entries} == {HEADER_BYTES + 4 * (192 + 51)}
        for done in played.trained:
            assert torch.equal(done.job.start, truncated(before, done.job.layout, 1))
            assert torch.equal(done.vector, truncated(done.vector, done.job.layout, 1))
        before = played.state.vector.detach().clone()
    view = METHOD.views(played.state)["lowest"]
    whole, cut = (factored.factors(played.state, vector) for vector in (before, view))
    for layer, (a, b) in whole.items():
        torch.testing.assert_close(cut[layer][1] @ cut[layer][0], b @ a, rtol=0, atol=1e-12)
        assert a[1:].any()
        assert not cut[layer][0][1:].any()


def test_one_tier_is_lora() -> None:
    *_, lora = rounds(LoRA(lora_rank=2), 2, dtype=torch.float32)
    *_, lowest = rounds(LowestTier(lora_rank=2, tiers=1), 2, dtype=torch.float32)
    assert torch.equal(lora.state.vector, lowest.state.vector)
    assert lora.entries == lowest.entries


def test_its_label_and_what_it_refuses() -> None:
    assert METHOD.label == "All lowest tier, rank 1"
    with pytest.raises(ConfigurationError, match="needs a LoRA rank of 16 at the server, got 4"):
        LowestTier(lora_rank=4, tiers=5)
    with pytest.raises(ConfigurationError, match=r"method\.tiers"):
        METHOD.check(tiny.layout_of(3))
