"""The mean of updates, measured: what a mean of factors is off by, for methods whose own update it leaves alone."""

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from fedsim.aggregation import Arrived, Mean
from fedsim.factors import Combined, FactorAggregate, Stack
from fedsim.state import ServerState


class MeasuredMean:
    """The weighted mean of the updates to the bit, and beside it the `product_error` of P less that mean.

    Where the server takes the mean over, that is the error of what it has; where it steps an optimiser, the error of
    what the optimiser is given.

    Args:
        state: the server's.
        weigh: an upload's weight in the mean; the one that it has where it is not given.
    """

    def __init__(self, state: ServerState, weigh: Callable[[Arrived], float] | None = None) -> None:
        self._state = state
        self._mean = Mean(state.layout.length, state.vector.dtype, state.vector.device)
        self._factors = FactorAggregate(state, weighting=None, combine=self._came_out)
        self._weigh = weigh

    def add(self, arrived: Arrived) -> None:
        """Adds one update."""
        weighed = arrived if self._weigh is None else replace(arrived, weight=self._weigh(arrived))
        self._mean.add(weighed)
        self._factors.add(weighed)

    def finish(self) -> Tensor | None:
        """Returns the mean, (P,), or None where nothing arrived."""
        update = self._mean.finish()
        if update is not None:
            self._after = self._state.vector.detach() - update
            self._factors.finish()
        return update

    def _came_out(self, stack: Stack) -> Combined:
        """A module's factors in P less the mean; what is frozen stays what all clients have."""
        views = self._state.layout.views(self._after)
        own = {e.segment: views[e.name].double() for e in self._state.layout.entries if e.layer == stack.layer}
        return Combined(own.get("A", stack.a[0]), own.get("B", stack.b[0]))
