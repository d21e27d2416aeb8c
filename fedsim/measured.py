"""The mean of updates, measured: what a mean of factors is off by, for methods whose own update it leaves alone."""

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from fedsim.aggregation import Arrived, Mean
from fedsim.factors import FactorAggregate
from fedsim.state import ServerState


class MeasuredMean:
    """The weighted mean of the updates to the bit, and beside it the `product_error` of a `FactorAggregate`.

    Args:
        state: the server's.
        weigh: an upload's weight in the mean; the one that it has where it is not given.
    """

    def __init__(self, state: ServerState, weigh: Callable[[Arrived], float] | None = None) -> None:
        self._mean = Mean(state.layout.length, state.vector.dtype, state.vector.device)
        self._factors = FactorAggregate(state, weighting=None)
        self._weigh = weigh

    def add(self, arrived: Arrived) -> None:
        """Adds one update."""
        weighed = arrived if self._weigh is None else replace(arrived, weight=self._weigh(arrived))
        self._mean.add(weighed)
        self._factors.add(weighed)

    def finish(self) -> Tensor | None:
        """Returns the mean, (P,), or None where nothing arrived."""
        self._factors.finish()
        return self._mean.finish()
