import torch

from fedsim.options import CommunicationOptions
from fedsim.state import ClientState
from methods.local_only import OWN, LocalOnly
from tests import tiny
from tests.rounds import rounds

METHOD = LocalOnly(lora_rank=2)


def test_nothing_travels_and_every_client_goes_on_where_it_stopped() -> None:
    """Error feedback changes nothing, as nothing is owed. Who was never sampled costs no memory."""
    feedback = CommunicationOptions(value_dtype="float64", error_feedback=True)
    start = tiny.build(METHOD, dtype=torch.float64).vector.clone()
    held: dict[int, torch.Tensor] = {}
    again = 0
    for played in rounds(METHOD, 4, sizes=[5, 4, 3, 4, 3, 5, 3, 5, 4, 4], communication=feedback):
        assert len(played.entries) == len(played.trained) == 3
        for entry in played.entries:
            assert (entry.upload_bytes, entry.download_bytes, entry.upload_values, entry.download_values) == (0,) * 4
        for done in played.trained:
            again += done.job.client in held
            assert torch.equal(done.job.start, held.get(done.job.client, start))
            assert not torch.equal(done.vector, done.job.start)
            held[done.job.client] = done.vector
        assert torch.equal(played.state.vector, start)
        assert {c: list(kept.tensors) for c, kept in played.state.clients.items()} == {c: [OWN] for c in held}
        assert all(torch.equal(kept.tensors[OWN], held[c]) for c, kept in played.state.clients.items())
    assert again
    assert len(held) < 10
    view = METHOD.views(played.state)["diagnostic_mean"]
    torch.testing.assert_close(view, torch.stack(list(held.values())).mean(0), rtol=0, atol=1e-15)


def test_the_view_is_a_mean_that_nobody_has() -> None:
    """Of (1, 5) and (3, -1), whoever came first; the start while there is nobody."""
    state = tiny.server_state([9.0, 9.0])
    assert {name: view.tolist() for name, view in METHOD.views(state).items()} == {"diagnostic_mean": [9, 9]}
    for client, own in ((8, [3.0, -1.0]), (2, [1.0, 5.0])):
        state.clients[client] = ClientState(1, {OWN: torch.tensor(own, dtype=torch.float64)})
    view = METHOD.views(state)["diagnostic_mean"]
    assert view.tolist() == [2, 2]
    shared = tiny.shared_of(state)
    assert METHOD.personal(shared, view, state.client(2)).tolist() == [1, 5]
    assert METHOD.personal(shared, view, state.client(3)).tolist() == [9, 9]  # it starts where all started
