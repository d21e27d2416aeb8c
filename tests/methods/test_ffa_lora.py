import pytest
import torch
from torch import Tensor

from fedsim.codec import HEADER_BYTES
from fedsim.options import ServerOptions
from fedsim.seeding import Purpose, torch_seed
from fedsim.server import initial_state
from fedsim.sparse import SparseVector
from fedsim.state import ClientState
from launch.build import build, frozen_backbone
from launch.configuration import read_settings
from launch.environment import start_workers
from methods.ffa_lora import FFALoRA
from methods.lora import LoRA
from tests import tiny
from tests.rounds import rounds


def frozen_a(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: p for name, p in model.named_parameters() if ".lora_A." in name}


def test_p_is_b_and_the_head() -> None:
    """And A is as LoRA draws it."""
    ffa, lora = tiny.build(FFALoRA(lora_rank=2)), tiny.build(LoRA(lora_rank=2))
    assert ffa.parameters.layout.segments() == {"B": 6 * 2 * 16, "head": 51}
    drawn = frozen_a(lora.model)
    assert len(drawn) == 6
    assert all(torch.equal(a, drawn[name]) and not a.requires_grad for name, a in frozen_a(ffa.model).items())


def test_a_round_by_hand() -> None:
    """Two clients' B of 1 and of 3 everywhere, the head moved by -1 and by 2; FedAvg's server (SGD at rate 1).

    B becomes 2, and as A is everybody's, the mean of the products is the product: 2 times the sums of A's columns.
    """
    built = tiny.build(FFALoRA(lora_rank=2), dtype=torch.float64)
    method = built.method
    state = initial_state(tiny.experiment(built, [4], server=ServerOptions("sgd", lr=1.0)))
    shared = built.shared()
    aggregate = method.aggregate(state, shared)
    b, head = (state.layout.where([segment]) for segment in ("B", "head"))
    start = state.vector.detach().clone()
    assert not start[b].any()
    for client, (of_b, by) in enumerate(((1.0, -1.0), (3.0, 2.0))):
        trained = start.clone()
        trained[b], trained[head] = of_b, start[head] + by
        aggregate.add(tiny.arrived(SparseVector.dense(start - trained), client=client))
    update = aggregate.finish()
    assert update is not None
    method.step(state, update)
    assert state.vector[b].unique().tolist() == [2.0]
    torch.testing.assert_close(state.vector[head].detach(), start[head] + 0.5, rtol=0, atol=1e-15)
    built.parameters.load(state.vector.detach())
    for name, a in frozen_a(built.model).items():
        product = built.model.get_parameter(name.replace("lora_A", "lora_B")) @ a
        torch.testing.assert_close(product, (2 * a.sum(0)).expand(16, -1), rtol=0, atol=1e-14)
    assert state.measures["product_error"] <= 1e-6


def test_a_newcomer_pays_for_the_seed_and_nobody_else() -> None:
    """Eight bytes and their header, once; B and the head without indices, every time."""
    values = HEADER_BYTES + 4 * (6 * 2 * 16 + 51)
    seen: set[int] = set()
    for played in rounds(FFALoRA(lora_rank=2), 4, dtype=torch.float32):
        for entry in played.entries:
            assert entry.upload_bytes == values
            assert entry.download_bytes == values + (0 if entry.client in seen else HEADER_BYTES + 8)
            seen.add(entry.client)
        assert set(played.state.clients) == seen
    assert len(seen) < 4 * len(played.entries)  # some came twice


def test_the_seed_is_what_a_is_drawn_from() -> None:
    """A client that has the backbone and the download makes the A that the server has."""
    settings = read_settings(["--method", "FFALoRA", "--method.lora_rank", "2", "--seed", "5"])
    made = build(settings, *start_workers("cpu", "32-true", 1))
    state = initial_state(made.experiment)
    shared = tiny.shared_of(state)
    method = made.experiment.method
    (seed,) = method.download(state, shared, method.plan(state, 1, 7)).beside
    assert isinstance(seed, bytes)
    assert int.from_bytes(seed, "little") == torch_seed(5, Purpose.ADAPTER)
    own = FFALoRA(lora_rank=2).setup(frozen_backbone(settings, made.experiment.data), int.from_bytes(seed, "little"))
    servers = frozen_a(made.model)
    assert servers
    assert all(torch.equal(a, servers[name]) for name, a in frozen_a(own).items())
    state.clients[7] = ClientState(1)
    assert method.download(state, shared, method.plan(state, 2, 7)).beside == ()


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_the_products_have_no_error_whatever_the_clients_do(optimizer: str) -> None:
    """In float32, over rounds; A keeps every bit."""
    a = frozen_a(tiny.build(FFALoRA(lora_rank=2)).model)
    played = rounds(FFALoRA(lora_rank=2), 3, dtype=torch.float32, server=ServerOptions(optimizer))
    for played_round in played:
        assert played_round.measures["product_error"] <= 1e-6
    backbone = played_round.state.backbone
    assert all(torch.equal(backbone.tensor(name), before) for name, before in a.items())
