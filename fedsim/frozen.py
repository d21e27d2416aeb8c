"""The frozen part of the model, and how a method may change it for everybody between two rounds."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class FrozenBackbone:
    """The parameters that do not train, of which a method may change the adapted modules' weights.

    The server worker changes them; the engine brings what changed to every other worker before they are next used, and
    into checkpoint and export. Sums are kept in float32 at least: a half-precision weight would lose small changes.

    Args:
        model: the adapted backbone of this worker.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._changed: dict[str, Tensor] = {}
        self._unsent: set[str] = set()

    def tensor(self, name: str) -> Tensor:
        """Returns a parameter of the model by its name."""
        return self._model.get_parameter(name).detach()

    def weight(self, layer: str) -> Tensor:
        """Returns an adapted module's weight, (D_out, D_in): a view, whatever way round the model holds it."""
        return self.oriented(layer, self.tensor(_name(layer)))

    def shape(self, layer: str) -> tuple[int, int]:
        """Returns the shape (D_out, D_in) of an adapted module's weight."""
        rows, columns = self.weight(layer).shape
        return rows, columns

    def add(self, layer: str, change: Tensor) -> Tensor:
        """Adds to an adapted module's weight, on the server worker.

        Args:
            layer: the module's name, as `Layout.pairs` has it.
            change: (D_out, D_in).

        Returns:
            (D_out, D_in) float64, by how much the weight in use moved: the change but for rounding.
        """
        name = _name(layer)
        weight = self.tensor(name)
        before = self.weight(layer).to(torch.float64, copy=True)
        if name not in self._changed:
            self._changed[name] = weight.to(torch.promote_types(weight.dtype, torch.float32), copy=True)
        total = self._changed[name]
        total += self.oriented(layer, change).to(total)
        weight.copy_(total)
        self._unsent.add(name)
        return self.weight(layer).double() - before

    @property
    def changed(self) -> dict[str, Tensor]:
        """All weights that were ever changed, by name, as they are now."""
        return self._changed

    def take_unsent(self) -> dict[str, Tensor]:
        """Returns what changed since the last call: what other workers do not have yet."""
        unsent = {name: self._changed[name] for name in sorted(self._unsent)}
        self._unsent.clear()
        return unsent

    def write(self, values: Mapping[str, Tensor]) -> None:
        """Takes over weights that another worker changed, or that a checkpoint holds."""
        for name, value in values.items():
            weight = self.tensor(name)
            self._changed[name] = value.to(weight.device)
            weight.copy_(value)

    def restore(self, values: Mapping[str, Tensor]) -> None:
        """As `write`, on the server worker of a resumed run: the other workers do not have them yet."""
        self.write(values)
        self._unsent.update(values)

    def oriented(self, layer: str, weight: Tensor) -> Tensor:
        """Turns a weight from the model's way round to (D_out, D_in), and back."""
        # GPT-2's Conv1D holds its weight as (D_in, D_out).
        transposed = getattr(self._model.get_submodule(layer), "fan_in_fan_out", False)
        return weight.T if transposed else weight


def _name(layer: str) -> str:
    return f"{layer}.base_layer.weight"
