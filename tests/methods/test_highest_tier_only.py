import pytest
import torch

from fedsim.errors import ConfigurationError
from fedsim.options import ServerOptions
from methods.highest_tier_only import HighestTierOnly
from tests import tiny
from tests.rounds import rounds

METHOD = HighestTierOnly(lora_rank=2, tiers=2)
LEFT = {1, 2, 4}
"""Who is of the highest tier, of clients 0 to 4 under seed 0."""


def test_lower_tiers_are_sampled_then_dropped() -> None:
    """They do nothing and cost nothing; the mean runs over the rest alone. SGD at rate 1 shows it."""
    before = tiny.build(METHOD, dtype=torch.float64).vector.clone()
    assert {c for c in range(5) if METHOD._tiers.rank_of(c, 0) == 2} == LEFT
    dropped = 0
    for played in rounds(METHOD, 4, server=ServerOptions("sgd", lr=1.0)):
        cohort = {entry.client for entry in played.entries}
        assert {done.job.client for done in played.trained} == cohort & LEFT
        assert len(cohort) == 3 >= len(cohort & LEFT) > 0
        for entry in played.entries:
            paid = (entry.upload_bytes, entry.download_bytes, entry.upload_values, entry.download_values)
            assert (min(paid) > 0) if entry.client in LEFT else (paid == (0, 0, 0, 0))
        dropped += len(cohort - LEFT)
        mean = torch.stack([done.vector for done in played.trained]).mean(0)
        torch.testing.assert_close(played.state.vector.detach(), mean, rtol=0, atol=1e-14)
        assert not torch.equal(played.state.vector, before)
        assert set(played.state.clients) <= LEFT
        before = played.state.vector.detach().clone()
    assert dropped


def test_a_cohort_of_lower_tiers_is_a_round_without_a_step() -> None:
    """Clients 0 and 3 alone hold examples: the optimiser's momentum moves nothing, and no byte travels."""
    before = tiny.build(METHOD, dtype=torch.float64).vector.clone()
    for played in rounds(METHOD, 3, sizes=[5, 0, 0, 6, 0]):
        assert torch.equal(played.state.vector, before)
        assert not played.trained
        assert {(e.upload_bytes, e.download_bytes) for e in played.entries} == {(0, 0)}
    assert played.state.clients == {}


def test_its_label_and_what_it_refuses() -> None:
    assert HighestTierOnly().label == "Highest tier only, of ranks 1, 4, 16"
    with pytest.raises(ConfigurationError, match="needs a LoRA rank of 16 at the server, got 4"):
        HighestTierOnly(lora_rank=4, tiers=5)
    with pytest.raises(ConfigurationError, match=r"method\.tiers"):
        METHOD.check(tiny.layout_of(3))
