"""What is added to every client's loss, beside the task's: a method's own penalty, and FedProx's."""

from torch import Tensor

from fedsim.method import Penalty


def all_penalties(own: Penalty | None, proximal_mu: float) -> Penalty | None:
    """Adds up what combines with any method.

    Args:
        own: the method's, or None.
        proximal_mu: FedProx's mu; 0 leaves it out. Source: Li et al. 2020, "Federated Optimization in Heterogeneous
            Networks", Algorithm 2.

    Returns:
        The sum, or None where there is nothing to add.
    """
    if not proximal_mu:
        return own

    def total(vector: Tensor, reference: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        proximal = 0.5 * proximal_mu * (vector - reference).square().sum()
        return proximal if own is None else proximal + own(vector, reference, tensors)

    return total
