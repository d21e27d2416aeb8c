"""Gloo itself is started once: three processes run every check of `_CHECKS` and say what they found."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.errors import WorkerLost
from fedsim.schedule import Wave
from fedsim.transport import Workers, _groups, pack, unpack

CPU = torch.device("cpu")
COUNT = 3
PIECE = 64


@settings(deadline=None)
@given(st.lists(st.integers(0, 50), max_size=30), st.integers(1, 60))
def test_groups_cut_the_cohort_in_order_within_the_limit(sizes: list[int], limit: int) -> None:
    groups = list(_groups(dict(enumerate(sizes)), limit))
    assert [position for group in groups for position in group] == list(range(len(sizes)))
    for group in groups:
        held = sum(sizes[position] for position in group)
        assert held <= limit or len(group) == 1
        following = group[-1] + 1
        assert following == len(sizes) or held + sizes[following] > limit  # no group ends early


def test_one_worker_hears_itself() -> None:
    alone = Workers(0, 1, CPU)
    assert alone.is_server
    assert alone.broadcast([b"", b"ab", b"c"]) == [b"", b"ab", b"c"]
    assert alone.broadcast([]) == []
    assert list(alone.gather({2: b"x", 0: b"yz"}, Wave(0, [0] * 4))) == [(0, b"yz"), (1, b""), (2, b"x"), (3, b"")]
    assert list(alone.gather({7: b"x"}, Wave(6, [0, 0]))) == [(6, b""), (7, b"x")]
    assert alone.sum(torch.tensor([1.5])).tolist() == [1.5]


FACTS = {"rounds": [1, 0], "plans": [None, {"since": 3}], "logged": {"loss": 0.1}, "said": "Grüße"}
ROWS = torch.arange(12.0).view(3, 4)
TENSORS = {
    "double": torch.tensor([1 / 3, -0.0], dtype=torch.float64),
    "half": torch.tensor([1.5], dtype=torch.float16),
    "bfloat": torch.tensor([1.5], dtype=torch.bfloat16),
    "places": torch.tensor([2**40, -1]),
    "mask": torch.tensor([[True, False], [False, True]]),
    "bytes": torch.tensor([255], dtype=torch.uint8),
    "number": torch.tensor(7, dtype=torch.int32),
    "nothing": torch.empty(0, 3),
    "rows": ROWS,
    "the same rows": ROWS,
    "a column": ROWS[:, 1],
    "a trained one": torch.nn.Parameter(torch.tensor([2.0])),
    "client.3.own.": torch.ones(1),
}


def require_told(facts: dict, tensors: dict[str, torch.Tensor]) -> None:
    assert facts == FACTS
    assert set(tensors) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype, name
        assert torch.equal(tensors[name], tensor.detach()), name


def test_what_was_packed_is_unpacked() -> None:
    """Every dtype that is used, no rows at all, numbers, and tensors that share memory or have strides."""
    facts, tensors = unpack(pack(FACTS, TENSORS), CPU)
    require_told(facts, tensors)
    assert not any(tensor.requires_grad for tensor in tensors.values())
    tensors["rows"].zero_()
    require_told(*unpack(pack(FACTS, TENSORS), CPU))  # a copy both ways


def test_nothing_is_packed_as_nothing() -> None:
    assert unpack(pack({}, {}), CPU) == ({}, {})


def test_one_worker_tells_itself_without_a_copy() -> None:
    facts, tensors = Workers(0, 1, CPU).tell(FACTS, TENSORS)
    assert facts is FACTS
    assert tensors is TENSORS


@pytest.mark.parametrize("name", ["broadcast", "all_reduce", "all_gather"])
def test_a_worker_that_is_gone_is_said_in_one_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever collective notices; the process group's own message comes with a stack of C++."""

    def closed(*_: object, **__: object) -> None:
        raise RuntimeError("Connection closed by peer [127.0.0.1]:1\nException raised from ...\nframe #0")

    for collective in ("broadcast", "all_reduce", "all_gather_single", "all_gather_into_tensor"):
        broken = collective.startswith(name)
        monkeypatch.setattr(dist, collective, closed if broken else lambda *_: None, raising=False)
    workers = Workers(1, 2, CPU)
    with pytest.raises(WorkerLost, match="another worker stopped") as lost:
        workers.broadcast(None) if name == "broadcast" else list(workers.gather({0: b"abc"}, Wave(0, [1, 0])))
    assert "Connection closed by peer [127.0.0.1]:1" in str(lost.value)
    assert "\n" not in str(lost.value)


def payload(position: int, size: int) -> bytes:
    return bytes((7 * position + i) % 256 for i in range(size))


def check_broadcast(workers: Workers) -> None:
    """None, empty, unequal, and larger than many pieces."""
    cases = [[], [b""], [b"", b""], [b"abc"], [payload(0, 1000), b"", payload(2, 1), payload(3, PIECE)]]
    for payloads in cases:
        assert workers.broadcast(payloads if workers.is_server else None) == payloads


def check_tell(workers: Workers) -> None:
    """Facts and tensors of the server worker reach all; what the others would say is not heard."""
    require_told(*workers.tell(FACTS, TENSORS) if workers.is_server else workers.tell({"mine": 1}, {}))
    assert workers.tell({}, {}) == ({}, {})


def gather(workers: Workers, sizes: dict[int, int], wave: Wave) -> list[tuple[int, bytes]]:
    mine = {position: payload(position, sizes[position]) for position in wave.of(workers.rank) if position in sizes}
    return list(workers.gather(mine, wave))


def require_gathered(workers: Workers, sizes: dict[int, int], wave: Wave) -> None:
    found = gather(workers, sizes, wave)
    expected = [(p, payload(p, sizes.get(p, 0))) for p in wave.positions]
    assert found == (expected if workers.is_server else [])


def check_gather(workers: Workers) -> None:
    """Random owners, sizes and gaps; the order of the cohort comes back whoever owns what."""
    random = torch.Generator().manual_seed(1)

    def draw(high: int) -> int:
        return int(torch.randint(high, (1,), generator=random))

    for _ in range(12):
        clients = 1 + draw(12)
        wave = Wave(draw(5), [draw(COUNT) for _ in range(clients)])
        sizes = {position: draw(300) for position in wave.positions if draw(4)}
        require_gathered(workers, sizes, wave)


def check_gather_at_the_edges(workers: Workers) -> None:
    """Nobody has anything; one worker has everything; a worker that is not the server has nothing to do."""
    require_gathered(workers, {}, Wave(0, [0, 1, 2, 1]))
    require_gathered(workers, {0: 5, 1: 500, 2: 0}, Wave(0, [2, 2, 2]))
    require_gathered(workers, {0: 5, 1: 9}, Wave(0, [0, 0]))
    require_gathered(workers, {3: PIECE // COUNT}, Wave(3, [1]))


def check_gather_in_groups(workers: Workers) -> None:
    """With room for 100 bytes at once, most payloads are a group of their own, and some groups are all empty."""
    small = Workers(workers.rank, COUNT, CPU, piece_bytes=100)
    require_gathered(small, {0: 60, 1: 60, 2: 30, 4: 900, 6: 1, 9: 100}, Wave(0, [2, 1, 0, 0, 2, 1, 1, 0, 0, 2]))
    require_gathered(small, {0: 101, 4: 101}, Wave(0, [0, 1, 2, 0, 1]))


def check_sum(workers: Workers) -> None:
    """Parts that do not overlap add up to the exact bits, in any dtype that is used."""
    for dtype in (torch.float32, torch.float64, torch.int64):
        whole = torch.arange(1, 11).to(dtype) / (3 if dtype.is_floating_point else 1)
        whole = whole.to(dtype)
        mine = whole * (torch.arange(10) % COUNT == workers.rank)
        before = mine.clone()
        assert torch.equal(workers.sum(mine), whole)
        assert torch.equal(mine, before)


_CHECKS: tuple[Callable[[Workers], None], ...] = (
    check_broadcast,
    check_tell,
    check_gather,
    check_gather_at_the_edges,
    check_gather_in_groups,
    check_sum,
)


def run_checks(rank: int, folder: str) -> None:
    """One of the processes; it leaves a file per check that held."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=COUNT, timeout=timedelta(seconds=60)
    )
    workers = Workers(rank, COUNT, CPU, piece_bytes=PIECE)
    for check in _CHECKS:
        check(workers)
        dist.barrier()
        Path(folder, f"{check.__name__}-{rank}").touch()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> tuple[set[str], str]:
    """The checks that held in all processes, and why the first failed."""
    folder = tmp_path_factory.mktemp("gloo")
    reason = ""
    try:
        torch.multiprocessing.spawn(run_checks, (str(folder),), COUNT)
    except Exception as error:
        reason = str(error)
    names = {check.__name__ for check in _CHECKS}
    return {name for name in names if all((folder / f"{name}-{rank}").exists() for rank in range(COUNT))}, reason


@pytest.mark.parametrize("check", [check.__name__ for check in _CHECKS])
def test_three_processes_over_gloo(held: tuple[set[str], str], check: str) -> None:
    """What each does is in its docstring."""
    passed, reason = held
    assert check in passed, reason
