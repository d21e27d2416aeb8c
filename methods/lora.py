"""LoRA: FedAdam on dense low-rank adapters, the baseline that everything else is measured against.

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", trained by FedAdam as in Kuo et al., "FLASC:
Federated LoRA with Sparse Communication", Appendix A, Algorithms 3 and 4. Down and up: all of P.
"""

from dataclasses import dataclass

from fedsim.method import Method


@dataclass
class LoRA(Method):
    """Sends everything both ways: the contract's default in every hook.

    Source: Hu et al. 2021; FedAdam as in Kuo et al., FLASC, Algorithms 3 and 4.
    """
