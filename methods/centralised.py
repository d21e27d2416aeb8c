"""Centralised: all examples in one place, the frame of reference for what federation costs.

Kuo et al., "FLASC: Federated LoRA with Sparse Communication", Appendix A, Algorithm 3: Adam and FedAdam differ only in
what the server optimiser is given. One client that takes one step of SGD at rate 1 gives it the gradient of one batch.
"""

from dataclasses import dataclass, replace

from fedsim.arrangement import Pooled
from fedsim.method import Arrangement, Method


@dataclass
class Centralised(Method):
    """Trains LoRA on the pooled examples of all clients, a batch a round; what travels is of no meaning.

    Source: Kuo et al., FLASC, Appendix A, Algorithm 3 (its Adam).

    A round is one step, on a batch that is drawn anew from all examples: give as many rounds as steps. `cohort_size`
    and the keys of `client` have no say, but for batch size and dropout. The bytes in the ledger are those of the one
    client and no part of the question. Clients that are evaluated after training on (`evaluation.local_epochs`) take
    that single step too, which says little.

    Other methods have a centralised twin by configuration alone: --partition IID --partition.clients 1 --cohort_size 1
    --client.optimizer sgd --client.lr 1 --client.momentum 0 --client.weight_decay 0 --client.max_steps 1.
    """

    def arrange(self, arrangement: Arrangement) -> Arrangement:
        """One client holds everything, and its update is the gradient of one batch."""
        step = replace(
            arrangement.client,
            optimizer="sgd",
            lr=1.0,
            momentum=0.0,
            weight_decay=0.0,
            clip_norm=None,
            proximal_mu=0.0,
            local_epochs=1,
            max_steps=1,
        )
        return Arrangement(Pooled(arrangement.population), step, replace(arrangement.run, cohort_size=1))

    @property
    def private_refusal(self) -> str:
        """One client is everybody."""
        return "one client holds the examples of all, so there is no client to hide"
