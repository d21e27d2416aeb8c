"""LinearProbe: trains the head on the frozen backbone's features, the frame of reference for what adapters add."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import nn

from fedsim.errors import ConfigurationError
from fedsim.method import Method

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class LinearProbe(Method):
    """Trains and sends the head alone; the backbone keeps every bit.

    The adapters that it carries are zero for ever (B stays 0), so that the result is a PEFT folder like any other's.
    A language model has no head of its own to train: its output weights belong to the backbone.

    Source: a frame of reference, no paper's method.
    """

    lora_rank: int = field(init=False, default=1)
    lora_alpha: float = field(init=False, default=1.0)
    lora_dropout: float = field(init=False, default=0.0)
    lora_targets: str | list[str] = field(init=False, default="query")

    def setup(self, backbone: "PreTrainedModel", seed: int) -> nn.Module:
        """Leaves the head alone to train."""
        from fedsim.adapters import add_zero_adapter

        model = add_zero_adapter(backbone, seed)
        # Not in `check`, as there is no layout where nothing trains.
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise ConfigurationError(
                f"LinearProbe trains the head alone, and {type(backbone).__name__} has none that trains; expected a "
                "model for classification: give data that are classified (--data, or their --data.task), or another "
                "method (--method LoRA)"
            )
        return model
