"""The flat vector P: what trains, as views of one buffer, with its names, segments and layers."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor, nn

from fedsim.errors import ConfigurationError


@dataclass(frozen=True)
class Place:
    """One trainable tensor's place in P.

    Attributes:
        name: the parameter's name in the model.
        shape: its shape.
        start: its first place in P; it takes `stop - start` places from there, row by row.
        segment: "A" or "B" (LoRA's factors), "head" (trained whole), or "backbone".
        layer: the module that it adapts; A and B of one module share it.
    """

    name: str
    shape: torch.Size
    start: int
    segment: str
    layer: str

    @property
    def stop(self) -> int:
        """The first place behind it."""
        return self.start + self.shape.numel()


@dataclass(frozen=True)
class FactorPair:
    """LoRA's two factors of one adapted module, both in P.

    Attributes:
        layer: the adapted module's name.
        a: where A (R, D_in) stands.
        b: where B (D_out, R) stands.
    """

    layer: str
    a: Place
    b: Place


@dataclass(frozen=True)
class Layout:
    """What stands where in P, (P,) being `length` places. Tensors of one layer stand side by side."""

    entries: tuple[Place, ...]

    @classmethod
    def of(cls, model: nn.Module) -> "Layout":
        """Lays out the model's trainable parameters, in the model's own order."""
        entries: list[Place] = []
        start = 0
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                segment, layer = _segment_and_layer(name)
                entries.append(Place(name, parameter.shape, start, segment, layer))
                start = entries[-1].stop
        if not entries:
            raise ConfigurationError("the adapted backbone has no trainable parameter; expected LoRA factors or a head")
        return cls(tuple(entries))

    @property
    def length(self) -> int:
        """The number of trainable values."""
        return self.entries[-1].stop

    @cached_property
    def layers(self) -> tuple[tuple[int, int], ...]:
        """(start, stop) of each layer: a module's A and B together, the head."""
        first: dict[str, int] = {}
        for entry in self.entries:
            first.setdefault(entry.layer, entry.start)
        return tuple(pairwise((*first.values(), self.length)))

    @cached_property
    def pairs(self) -> tuple[FactorPair, ...]:
        """The modules whose A and B both train, in the model's order."""
        factors: dict[str, dict[str, Place]] = {}
        for entry in self.entries:
            if entry.segment in ("A", "B"):
                factors.setdefault(entry.layer, {})[entry.segment] = entry
        return tuple(FactorPair(layer, f["A"], f["B"]) for layer, f in factors.items() if len(f) == 2)

    def require_pairs(self, who: str) -> None:
        """Raises a ConfigurationError, naming who needs LoRA's factors, where no module trains both of its own."""
        if not self.pairs:
            raise ConfigurationError(
                f"{who} needs LoRA's two factors, but no module trains both (trainable: {', '.join(self.segments())}); "
                "choose a method whose setup leaves both to train"
            )

    def where(self, segments: Collection[str]) -> Tensor:
        """The entries of some segments: int64 (k,), rising."""
        parts = [torch.arange(e.start, e.stop) for e in self.entries if e.segment in segments]
        return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64)

    def count(self, segments: Collection[str] | None) -> int:
        """How many values some segments have; all where it is None."""
        return sum(e.stop - e.start for e in self.entries if segments is None or e.segment in segments)

    def segments(self) -> dict[str, int]:
        """How many values each segment has."""
        sizes: dict[str, int] = {}
        for entry in self.entries:
            sizes[entry.segment] = sizes.get(entry.segment, 0) + entry.shape.numel()
        return sizes

    def views(self, vector: Tensor) -> dict[str, Tensor]:
        """Cuts (..., P) into the named tensors, (..., *shape), that share its memory."""
        lead = vector.shape[:-1]
        return {e.name: vector[..., e.start : e.stop].view(*lead, *e.shape) for e in self.entries}


class FlatParameters:
    """The trainable parameters of a model, held in one vector, and their gradients in another.

    Loading a client's start is one copy, an optimiser step a few kernels on (P,).

    Attributes:
        layout: what stands where.
        vector: (P,), the parameters; the model's own tensors are views of it.
        gradient: (P,), their gradients, which backward adds to.

    `activate` replaces all three, so that nobody keeps them from one round to the next.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._segments = {n: _segment_and_layer(n)[0] for n, p in model.named_parameters() if p.requires_grad}
        self._flatten()

    def among(self, segments: Collection[str] | None) -> set[str]:
        """Those of some segments that were trainable at first: a language model has no head. All where it is None."""
        found = set(self._segments.values())
        return found if segments is None else found & set(segments)

    def activate(self, segments: Collection[str] | None) -> None:
        """Makes P of some segments of what was trainable at first, with the values that the model holds now.

        Args:
            segments: out of A, B, head and backbone; None for all.

        Raises:
            ConfigurationError: nothing is left that trains.
        """
        for name, parameter in self._model.named_parameters():
            if name in self._segments:
                active = segments is None or self._segments[name] in segments
                parameter.requires_grad_(active)
                parameter.grad = None
        self._flatten()

    def _flatten(self) -> None:
        self.layout = Layout.of(self._model)
        self._parameters = [p for p in self._model.parameters() if p.requires_grad]
        dtypes, devices = {p.dtype for p in self._parameters}, {p.device for p in self._parameters}
        if len(dtypes) > 1 or len(devices) > 1:
            raise ConfigurationError(
                f"trainable parameters have several dtypes or devices ({dtypes}, {devices}); expected one of each"
            )
        self.vector = torch.cat([p.detach().reshape(-1) for p in self._parameters])
        self.gradient = torch.zeros_like(self.vector)
        for parameter, values, gradient in self._with_views():
            parameter.data = values
            parameter.grad = gradient

    def _with_views(self) -> Iterable[tuple[nn.Parameter, Tensor, Tensor]]:
        values, gradients = self.layout.views(self.vector), self.layout.views(self.gradient)
        return zip(self._parameters, values.values(), gradients.values(), strict=True)

    def load(self, vector: Tensor) -> None:
        """Writes (P,) into the model.

        Raises:
            RuntimeError: something dropped the views (zero_grad(set_to_none=True), .to(), an assignment to .grad).
        """
        for parameter, values, gradient in self._with_views():
            if parameter.data_ptr() != values.data_ptr() or (
                parameter.grad is None or parameter.grad.data_ptr() != gradient.data_ptr()
            ):
                raise RuntimeError(
                    "a trainable parameter or its gradient is no longer a view of the flat buffer; "
                    "do not call zero_grad(set_to_none=True) or .to() on the client's module"
                )
        self.vector.copy_(vector)


def _segment_and_layer(name: str) -> tuple[str, str]:
    """Reads the segment and the adapted module off a parameter's name, as PEFT spells them."""
    for marker, segment in ((".lora_A.", "A"), (".lora_B.", "B"), (".modules_to_save.", "head")):
        layer, found, _ = name.partition(marker)
        if found:
            return segment, layer
    return "backbone", name.rpartition(".")[0]
