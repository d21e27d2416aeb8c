"""The server's state, from stage to stage and through checkpoints, and its optimisers."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fedsim.briefing import below, named
from fedsim.checkpoint import Checkpoint
from fedsim.experiment import Experiment
from fedsim.method import ClientState, ServerState
from fedsim.options import ServerOptions


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


def initial_state(experiment: Experiment) -> ServerState:
    """Makes the server's state before the first round from the parameters that setup left in the model."""
    parameters = experiment.parameters
    vector = nn.Parameter(parameters.vector.clone())
    optimizer = server_optimizer(experiment.server, vector)
    return ServerState(
        parameters.layout, vector, optimizer, parameters.vector.clone(), experiment.backbone, experiment.run.seed
    )


def enter_stage(experiment: Experiment, state: ServerState, round: int, is_server: bool) -> ServerState:
    """Begins a new stage where the method wants P to be made of other segments from this round on.

    Args:
        experiment: the run; its parameters follow.
        state: the server's, before the round.
        round: 1 to the number of rounds.
        is_server: whether this worker holds the server's state.

    Returns:
        The same state where the stage goes on; otherwise a new one: a fresh optimiser, clients that keep nothing.
    """
    segments = experiment.method.segments(round)
    if experiment.parameters.among(segments) == set(state.layout.segments()):
        return state
    experiment.parameters.load(state.initial)  # what stops training is again as setup left it
    experiment.parameters.activate(segments)
    after = initial_state(experiment)
    after.tensors, after.private = state.tensors, state.private
    after.clients = {client: ClientState(held.round) for client, held in state.clients.items()}
    if is_server:
        experiment.method.begin_stage(state, after)
    return after


def snapshot(state: ServerState, round: int, history: dict[str, Any]) -> Checkpoint:
    """Makes a checkpoint of the server's state and what was reported so far."""
    moments = state.optimizer.state.get(state.vector, {})
    kept = {f"{client}.{n}": v for client, held in state.clients.items() for n, v in held.tensors.items()}
    groups: dict[str, Mapping[str, Tensor]] = {
        "optimizer": {name: torch.as_tensor(value) for name, value in moments.items()},
        "method": state.tensors,
        "privacy": state.private,
        "backbone": state.backbone.changed,
        "client": kept,
    }
    tensors: dict[str, Tensor] = {"vector": state.vector}
    for group, members in groups.items():
        # copies, as safetensors refuses tensors that share memory
        tensors |= named(group, {name: value.clone() for name, value in members.items()})
    clients = {str(client): held.round for client, held in state.clients.items()}
    return Checkpoint(round, tensors, {"history": history, "clients": clients})


def restore_state(state: ServerState, checkpoint: Checkpoint) -> None:
    """Puts a checkpoint's tensors into a state of the same length that `initial_state` made."""
    state.vector.data.copy_(checkpoint.tensors["vector"])
    device = state.vector.device
    moments = below("optimizer", checkpoint.tensors)
    if moments:
        # torch keeps the step count on the CPU and the moments beside the parameter
        state.optimizer.state[state.vector] = {n: v if n == "step" else v.to(device) for n, v in moments.items()}
    state.tensors = {name: v.to(device) for name, v in below("method", checkpoint.tensors).items()}
    state.private = below("privacy", checkpoint.tensors)
    state.backbone.restore(below("backbone", checkpoint.tensors))
    kept: dict[int, dict[str, Tensor]] = {int(client): {} for client in checkpoint.meta.get("clients", {})}
    for name, value in below("client", checkpoint.tensors).items():
        client, _, own = name.partition(".")
        kept[int(client)][own] = value.to(device)
    rounds = checkpoint.meta.get("clients", {})
    state.clients = {client: ClientState(rounds[str(client)], tensors) for client, tensors in kept.items()}
