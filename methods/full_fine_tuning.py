"""FullFineTuning: FedAdam on the whole backbone, the frame of reference for what adapters save.

Kuo et al., "FLASC: Federated LoRA with Sparse Communication", Table 1 ("Full Finetune") and Appendix A, Algorithm 3.
Down and up: every weight of the backbone, and the head.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import nn

from fedsim.method import Method

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class FullFineTuning(Method):
    """Trains every weight of the backbone; all of them travel both ways.

    Source: Kuo et al., FLASC, Table 1 and Algorithm 3.

    Embeddings train too, and with them a language model's output weights where the two are tied. The adapter that it
    carries is zero for ever: the result is a PEFT folder like any other's, upon the trained backbone beside it.
    """

    lora_rank: int = field(init=False, default=1)
    lora_alpha: float = field(init=False, default=1.0)
    lora_dropout: float = field(init=False, default=0.0)
    lora_targets: str | list[str] = field(init=False, default="query")

    @property
    def label(self) -> str:
        """What the paper's table calls it, spelt out."""
        return "Full fine-tuning"

    def setup(self, backbone: "PreTrainedModel", seed: int) -> nn.Module:
        """Leaves everything but the adapter to train."""
        from fedsim.adapters import add_zero_adapter, unfreeze_backbone

        return unfreeze_backbone(add_zero_adapter(backbone, seed))
