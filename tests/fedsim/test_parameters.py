from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fedsim.errors import ConfigurationError
from fedsim.parameters import FlatParameters, Layout
from tests import tiny

SHAPES = st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=3), min_size=1, max_size=5)


def test_the_layout_follows_the_model_without_gaps() -> None:
    built = tiny.build()
    entries = built.parameters.layout.entries
    trainable = [(name, p.shape) for name, p in built.model.named_parameters() if p.requires_grad]
    assert [(entry.name, entry.shape) for entry in entries] == trainable
    assert entries[0].start == 0
    assert all(left.stop == right.start for left, right in pairwise(entries))
    assert built.parameters.layout.length == sum(shape.numel() for _, shape in trainable) == len(built.vector)


def test_segments_count_both_factors_and_the_head() -> None:
    """Two layers of query, key and value with rank 2 and width 16; the head is 16 by 3 and a bias."""
    assert tiny.build().parameters.layout.segments() == {"A": 6 * 32, "B": 6 * 32, "head": 51}


def test_a_layer_is_a_modules_two_factors_or_the_head() -> None:
    layout = tiny.build().parameters.layout
    assert layout.layers == (*((64 * n, 64 * (n + 1)) for n in range(6)), (384, 435))
    for start, stop in layout.layers[:-1]:
        inside = [entry for entry in layout.entries if start <= entry.start < stop]
        assert [entry.segment for entry in inside] == ["A", "B"]
        assert len({entry.layer for entry in inside}) == 1
    assert {entry.segment for entry in layout.entries[-2:]} == {"head"}


def test_what_peft_did_not_add_is_backbone() -> None:
    layout = Layout.of(nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1, bias=False)))
    assert layout.segments() == {"backbone": 10}
    assert layout.layers == ((0, 8), (8, 10))


def test_the_model_computes_with_the_vector() -> None:
    """Writing to the vector is all it takes to load a client: the model's tensors are views of it."""
    built = tiny.build()
    batch = built.train.batch(torch.arange(4))
    before = built.module.example_losses(batch)
    built.parameters.load(built.start())
    assert not torch.allclose(before, built.module.example_losses(batch))
    named = dict(built.model.named_parameters())
    for name, view in built.parameters.layout.views(built.start()).items():
        assert torch.equal(named[name], view)


def test_backward_adds_to_the_gradient() -> None:
    built = tiny.build()
    built.parameters.load(built.start())
    trainable = [p for p in built.model.parameters() if p.requires_grad]
    loss = built.module.example_losses(built.train.batch(torch.arange(4))).mean()
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, trainable, retain_graph=True)])
    loss.backward(retain_graph=True)
    assert torch.equal(built.parameters.gradient, expected)
    loss.backward()
    assert torch.equal(built.parameters.gradient, 2 * expected)


DROPS: dict[str, Callable[[nn.Module], object]] = {
    "zero_grad": lambda model: model.zero_grad(set_to_none=True),
    "to": lambda model: model.to(torch.float64),
    "grad": lambda model: [setattr(p, "grad", torch.zeros_like(p)) for p in model.parameters() if p.requires_grad],
    "data": lambda model: [setattr(p, "data", p.data.clone()) for p in model.parameters() if p.requires_grad],
}


@pytest.mark.parametrize("drop", DROPS)
def test_load_refuses_a_model_that_lost_its_views(drop: str) -> None:
    """Training would go on silently, on tensors that nobody reads."""
    built = tiny.build()
    before = built.vector.clone()
    DROPS[drop](built.model)
    with pytest.raises(RuntimeError, match="no longer a view"):
        built.parameters.load(built.start())
    assert torch.equal(built.parameters.vector, before)


def test_load_allows_zeroing_the_gradient_in_place() -> None:
    built = tiny.build()
    built.model.zero_grad(set_to_none=False)
    built.parameters.load(built.start())
    assert torch.equal(built.vector, built.start())


def test_a_model_without_trainable_parameters_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="no trainable parameter"):
        FlatParameters(nn.Linear(2, 2).requires_grad_(False))


def test_a_model_of_several_dtypes_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="several dtypes"):
        FlatParameters(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double()))


@settings(deadline=None)
@given(SHAPES, st.integers(1, 3))
def test_views_cut_the_vectors_of_many_clients(shapes: list[list[int]], clients: int) -> None:
    """A row of (G, P) is cut like (P,) and like the model itself, and every cut shares the vector's memory."""
    model = nn.ParameterList([nn.Parameter(torch.randn(shape)) for shape in shapes])
    layout = FlatParameters(model).layout
    rows = torch.arange(clients * layout.length, dtype=torch.float32).view(clients, -1)
    views = layout.views(rows)
    for number, row in enumerate(rows):
        for name, view in layout.views(row).items():
            assert torch.equal(views[name][number], view)
    assert [tuple(view.shape) for view in views.values()] == [(clients, *shape) for shape in shapes]
    assert torch.equal(torch.cat([view.flatten(1) for view in views.values()], dim=1), rows)
    for view in views.values():
        view.zero_()
    assert not rows.any()
