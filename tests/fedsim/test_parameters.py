from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fedsim.errors import ConfigurationError
from fedsim.parameters import FactorPair, FlatParameters, Layout
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


def test_pairs_are_the_modules_whose_two_factors_train() -> None:
    built = tiny.build()
    layout = built.parameters.layout
    assert len(layout.pairs) == 6
    named = dict(built.model.named_parameters())
    for pair in layout.pairs:
        assert pair.a.name == f"{pair.layer}.lora_A.default.weight"
        assert pair.b.name == f"{pair.layer}.lora_B.default.weight"
        assert (
            (pair.a.shape, pair.b.shape) == (named[pair.a.name].shape, named[pair.b.name].shape) == ((2, 16), (16, 2))
        )
    assert [pair.layer for pair in layout.pairs] == list(dict.fromkeys(e.layer for e in layout.entries))[:6]
    assert isinstance(layout.pairs[0], FactorPair)


def test_a_module_of_which_one_factor_is_frozen_is_no_pair() -> None:
    built = tiny.build()
    frozen = built.parameters.layout.pairs[2].a.name
    built.model.get_parameter(frozen).requires_grad_(False)
    layout = Layout.of(built.model)
    assert [pair.layer for pair in layout.pairs] == [
        pair.layer for at, pair in enumerate(built.parameters.layout.pairs) if at != 2
    ]


def test_where_and_count_follow_the_segments() -> None:
    """A and B of a module stand side by side, 32 entries each; the head behind all six."""
    layout = tiny.build().parameters.layout
    a = [start + place for start, _ in layout.layers[:-1] for place in range(32)]
    b = [start + place for start, _ in layout.layers[:-1] for place in range(32, 64)]
    assert layout.where(["A"]).tolist() == a
    assert layout.where({"B"}).tolist() == b
    assert layout.where(("head", "A")).tolist() == [*a, *range(384, 435)]  # rising, in whatever order they are named
    assert layout.where(["A", "B", "head"]).tolist() == list(range(435))
    none = layout.where(["backbone"])
    assert (none.dtype, none.tolist()) == (torch.int64, [])
    assert [layout.count(segments) for segments in (["A"], {"B", "head"}, [], ["backbone"], None)] == [
        192,
        243,
        0,
        0,
        435,
    ]


def require_views(built: tiny.Tiny) -> None:
    """Parameters and gradients are cut from the two vectors, so that loading, training and reading agree."""
    layout, flat = built.parameters.layout, built.parameters
    active = {name: p for name, p in built.model.named_parameters() if p.requires_grad}
    assert [entry.name for entry in layout.entries] == list(active)
    assert len(flat.vector) == len(flat.gradient) == layout.length
    for entry in layout.entries:
        parameter = active[entry.name]
        assert parameter.data_ptr() == flat.vector[entry.start :].data_ptr()
        assert parameter.grad is not None
        assert parameter.grad.data_ptr() == flat.gradient[entry.start :].data_ptr()
    assert all(p.grad is None for name, p in built.model.named_parameters() if name not in active)


@pytest.mark.parametrize("segments", [["A"], ["B", "head"], ["head"], ["A", "B", "head"], None])
def test_activate_makes_p_of_some_segments_and_keeps_every_value(segments: list[str] | None) -> None:
    built = tiny.build()
    built.parameters.load(built.start())
    before, whole = built.start(), built.parameters.layout
    held = {name: p.detach().clone() for name, p in built.model.named_parameters()}
    built.parameters.activate(segments)
    layout = built.parameters.layout
    assert set(layout.segments()) == set(segments or whole.segments())
    assert torch.equal(built.vector, before[whole.where(layout.segments())])
    require_views(built)
    for name, parameter in built.model.named_parameters():
        assert torch.equal(parameter, held[name]), name
    built.parameters.load(built.vector + 1)
    for name, parameter in built.model.named_parameters():
        moved = any(entry.name == name for entry in layout.entries)
        assert torch.equal(parameter, held[name] + 1 if moved else held[name]), name


def test_what_was_trained_stays_when_other_segments_become_active() -> None:
    """There and back: the model computes with the values of both stages, and only the active part has gradients."""
    built = tiny.build()
    built.parameters.load(built.start())
    expected, whole = built.start(), built.parameters.layout
    for segments in (["A"], ["head", "B"], None):
        built.parameters.activate(segments)
        places = whole.where(built.parameters.layout.segments())
        assert torch.equal(built.vector, expected[places])
        built.module.example_losses(built.train.batch(torch.arange(4))).mean().backward()
        assert built.parameters.gradient.any()
        require_views(built)
        expected[places] += 0.5
        built.parameters.load(built.vector + 0.5)
    assert built.parameters.layout == whole
    assert torch.equal(built.vector, expected)


def test_nothing_to_activate_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="no trainable parameter"):
        tiny.build().parameters.activate(["backbone"])


def test_segments_that_the_model_lacks_are_not_among_its_own() -> None:
    """Whatever is active now; what was frozen from the first is not among them either."""
    parameters = tiny.build().parameters
    parameters.activate(["A"])
    assert parameters.among(None) == {"A", "B", "head"}
    assert parameters.among(["B", "backbone"]) == {"B"}
    assert tiny.build(backbone="llama").parameters.among(["A", "B", "head"]) == {"A", "B"}
