"""Whether a run can go on with what a checkpoint holds: asked before anything is written."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fedsim.briefing import below
from fedsim.checkpoint import Checkpoint
from fedsim.errors import ConfigurationError
from fedsim.experiment import Experiment
from fedsim.frozen import FrozenBackbone
from fedsim.history import History, whole
from fedsim.options import ServerOptions
from fedsim.privacy import CLIP
from fedsim.server import server_optimizer


def require_restorable(checkpoint: Checkpoint, experiment: Experiment) -> History:
    """Checks all of a checkpoint but what the method itself keeps there, whose form the method alone knows.

    Args:
        checkpoint: as it was read.
        experiment: the run that would go on with it.

    Returns:
        What was reported so far.

    Raises:
        ConfigurationError: the checkpoint holds what no run of these settings leaves.
    """
    dtype = experiment.parameters.vector.dtype
    length = experiment.parameters.layout.count(experiment.method.segments(max(1, checkpoint.round)))
    _check_vector(checkpoint.tensors.get("vector"), length, dtype)
    _check_moments(below("optimizer", checkpoint.tensors), experiment.server, length, dtype)
    _check_backbone(below("backbone", checkpoint.tensors), experiment.backbone)
    _check_privacy(below("privacy", checkpoint.tensors))
    _check_clients(checkpoint, experiment.population.clients)
    return History.read(checkpoint.meta.get("history"))


def _check_vector(vector: Tensor | None, length: int, dtype: torch.dtype) -> None:
    if vector is None or vector.ndim != 1:
        raise ConfigurationError("it holds no trainable values")
    if len(vector) != length:
        raise ConfigurationError(f"it holds {len(vector)} trainable values, these settings have {length}")
    if vector.dtype != dtype or not bool(vector.isfinite().all()):
        raise ConfigurationError(f"its trainable values are not finite numbers of {dtype}")


def _check_moments(moments: Mapping[str, Tensor], options: ServerOptions, length: int, dtype: torch.dtype) -> None:
    """Holds the optimiser's state against what one step of such an optimiser leaves."""
    if not moments:
        return
    probe = nn.Parameter(torch.zeros(3, dtype=dtype))
    optimizer = server_optimizer(options, probe)
    probe.grad = torch.zeros_like(probe)
    optimizer.step()
    expected = {name: value for name, value in optimizer.state[probe].items() if isinstance(value, Tensor)}
    shapes = {name: (length,) if value.ndim else () for name, value in expected.items()}
    if {name: tuple(value.shape) for name, value in moments.items()} != shapes or any(
        value.dtype != expected[name].dtype or not bool(value.isfinite().all()) for name, value in moments.items()
    ):
        raise ConfigurationError(f"its state of the optimiser {options.optimizer} is not of these settings")


def _check_backbone(weights: Mapping[str, Tensor], backbone: FrozenBackbone) -> None:
    for name, value in weights.items():
        try:
            weight = backbone.tensor(name)
        except AttributeError as error:
            raise ConfigurationError(f"it changes {name[:80]!r}, which the backbone does not have") from error
        if weight.shape != value.shape or not value.is_floating_point():
            raise ConfigurationError(f"it changes {name[:80]!r} to another shape or kind")


def _check_privacy(held: Mapping[str, Tensor]) -> None:
    """Holds what privacy carries on against a clip in float64, which is all that it may."""
    clip = held.get(CLIP, torch.tensor(1.0, dtype=torch.float64))
    number = clip.dtype == torch.float64 and not clip.ndim and bool(clip.isfinite()) and float(clip) > 0
    if set(held) - {CLIP} or not number:
        raise ConfigurationError("its privacy is no clip of a number above 0")


def _check_clients(checkpoint: Checkpoint, count: int) -> None:
    rounds = checkpoint.meta.get("clients", {})
    known = isinstance(rounds, dict) and all(_is_client(name, count) and whole(r) for name, r in rounds.items())
    if not known or any(name.partition(".")[0] not in rounds for name in below("client", checkpoint.tensors)):
        raise ConfigurationError("it holds the state of clients that there are not")


def _is_client(name: str, count: int) -> bool:
    return name.isdecimal() and name.isascii() and len(name) < 20 and int(name) < count and str(int(name)) == name
