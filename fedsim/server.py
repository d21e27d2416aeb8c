"""The server's state and its optimisers: torch's own on the one flat vector, and Yogi."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from fedsim.checkpoint import Checkpoint
from fedsim.method import ServerState
from fedsim.options import ServerOptions
from fedsim.parameters import FlatParameters


def server_optimizer(options: ServerOptions, vector: nn.Parameter) -> torch.optim.Optimizer:
    """Builds the optimiser of the global vector.

    Args:
        options: the server's options.
        vector: (P,), its one parameter.
    """
    decay: dict[str, Any] = {"lr": options.lr, "weight_decay": options.weight_decay}
    moments: dict[str, Any] = {**decay, "betas": options.betas, "eps": options.eps}
    kinds: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
        "adam": (torch.optim.Adam, moments),
        "adamw": (torch.optim.AdamW, moments),
        "sgd": (torch.optim.SGD, {**decay, "momentum": options.momentum}),
        "yogi": (Yogi, moments),
        "adagrad": (torch.optim.Adagrad, {**decay, "eps": options.eps}),
    }
    kind, arguments = kinds[options.optimizer]
    return kind([vector], **arguments)


class Yogi(torch.optim.Optimizer):
    """Adam whose second moment grows additively (Zaheer et al. 2018; FedYogi in Reddi et al. 2021), bias-corrected.

    Args:
        params: what it steps.
        lr: learning rate.
        betas: decay of the two moments.
        eps: added to the root of the second moment.
        weight_decay: added to the gradient, times the parameter.
    """

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float, betas: tuple[float, float], eps: float, weight_decay: float
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Takes one step."""
        for group in self.param_groups:
            first_decay, second_decay = group["betas"]
            for parameter in group["params"]:
                state = self.state[parameter]
                if not state:
                    state.update(
                        step=torch.tensor(0.0),
                        exp_avg=torch.zeros_like(parameter),
                        exp_avg_sq=torch.zeros_like(parameter),
                    )
                gradient = parameter.grad + group["weight_decay"] * parameter
                square = gradient.square()
                state["step"] += 1
                state["exp_avg"].lerp_(gradient, 1 - first_decay)
                state["exp_avg_sq"].addcmul_((state["exp_avg_sq"] - square).sign(), square, value=-(1 - second_decay))
                count = float(state["step"])
                root = (state["exp_avg_sq"] / (1 - second_decay**count)).sqrt_().add_(group["eps"])
                parameter.addcdiv_(state["exp_avg"], root, value=-group["lr"] / (1 - first_decay**count))


def initial_state(parameters: FlatParameters, options: ServerOptions) -> ServerState:
    """Makes the server's state before the first round from the parameters that setup left in the model."""
    vector = nn.Parameter(parameters.vector.clone())
    return ServerState(parameters.layout, vector, server_optimizer(options, vector))


def snapshot(state: ServerState, round: int, history: dict[str, Any]) -> Checkpoint:
    """Makes a checkpoint of the server's state and what was reported so far."""
    moments = state.optimizer.state.get(state.vector, {})
    return Checkpoint(
        round,
        {
            "vector": state.vector,
            **{f"optimizer.{name}": torch.as_tensor(value) for name, value in moments.items()},
            # copies, as safetensors refuses tensors that share memory
            **{f"method.{name}": value.clone() for name, value in state.tensors.items()},
        },
        {"history": history},
    )


def restore_state(state: ServerState, checkpoint: Checkpoint) -> None:
    """Puts a checkpoint's tensors into a state of the same length that `initial_state` made."""
    state.vector.data.copy_(checkpoint.tensors["vector"])
    device = state.vector.device
    moments = {
        name.removeprefix("optimizer."): v for name, v in checkpoint.tensors.items() if name.startswith("optimizer.")
    }
    if moments:
        # torch keeps the step count on the CPU and the moments beside the parameter
        state.optimizer.state[state.vector] = {n: v if n == "step" else v.to(device) for n, v in moments.items()}
    state.tensors = {
        name.removeprefix("method."): v.to(device)
        for name, v in checkpoint.tensors.items()
        if name.startswith("method.")
    }
