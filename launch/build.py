"""From settings to an experiment: data, partition, backbone, trainer and evaluator, each loaded and checked."""

from dataclasses import dataclass
from functools import partial

import lightning
import numpy as np
import torch
from lightning.fabric import Fabric
from torch import nn
from transformers import PreTrainedModel

from data_partitions.dataset import FederatedData
from data_partitions.holding_out import hold_out
from data_partitions.partition import Partition
from fedsim.arrangement import Arrangement
from fedsim.backbone import load_backbone
from fedsim.client import ClientModule, Trainer
from fedsim.client_evaluation import ClientEvaluator
from fedsim.data import Examples
from fedsim.errors import ConfigurationError
from fedsim.evaluation import Evaluator
from fedsim.experiment import Experiment
from fedsim.frozen import FrozenBackbone
from fedsim.method import Method
from fedsim.optimizers import SGD, AdamW, LocalOptimizer
from fedsim.options import ClientOptions
from fedsim.pack_choice import busiest_workloads
from fedsim.parameters import FlatParameters
from fedsim.penalties import all_penalties
from fedsim.seeding import Purpose, generator, torch_seed
from fedsim.task import Task, task_of
from fedsim.transport import Workers
from launch.activations import cache_features, checkpoint_activations, require_the_same_examples
from launch.configuration import Settings
from launch.fit import check_tokens, try_one_example
from launch.private import settle
from launch.trainers import Parts, make_trainer

EVALUATION_BATCH = 256
"""Examples a forward in evaluation. A constant, as it is part of the bits."""
EVALUATION_LOGITS = 2**28
"""The most logits of such a forward, which bounds the batches of language models: 1 GiB in float32."""

_DTYPES = {"64-true": torch.float64, "bf16-true": torch.bfloat16}


@dataclass(frozen=True)
class Built:
    """What a run needs beside the experiment itself.

    Attributes:
        model: the adapted backbone.
        partition: which client holds which rows.
        held_out: those of them that nobody trains on; None where all are trained on.
        pack: how many clients train in one forward, as it came to be.
        noise_multiplier: of the noise, as it came to be; None where the run is not private.
        notes: what the user should know about the data and this, a line each.
    """

    experiment: Experiment
    model: nn.Module
    partition: Partition
    held_out: Partition | None
    task: Task
    pack: int
    noise_multiplier: float | None
    notes: tuple[str, ...]


def build(settings: Settings, fabric: Fabric, workers: Workers) -> Built:
    """Loads everything that a run needs and checks that it fits together.

    Args:
        settings: what was asked for.
        fabric: launched, for device and precision.
        workers: the processes of the run; all call this.

    Raises:
        ConfigurationError: data, partition, backbone and settings do not fit.
        DataError: the data are missing or malformed.
    """
    data = settings.data.load()
    partition = make_partition(settings, data)
    seen = settings.partition.alter(data.train, partition, generator(settings.run.seed, Purpose.ALTERATION))
    model, parameters, vocabulary = _adapted(settings, data, fabric.device)
    task = task_of(data)
    train, test = (Examples(data, columns, fabric.device, parameters.vector.dtype) for columns in (seen, data.test))
    try_one_example(settings, model, task, train, test, fabric)
    train, test = _with_activations(settings.client, data, model, parameters, task, (train, test), fabric, workers)
    module = _module(settings.client, model, task).to(fabric.device)
    module.fabric = fabric
    training, held_out = _hold_out(settings, partition, data.task)
    arranged = settings.method.arrange(Arrangement(training, settings.client, settings.run))
    private = settle(settings.privacy, settings.method, arranged.run, arranged.population.clients)
    parts = Parts(
        options=arranged.client,
        module=module,
        parameters=parameters,
        data=data,
        train=train,
        optimizer=local_optimizer(arranged.client),
        penalty=all_penalties(settings.method.penalty(), arranged.client.proximal_mu),
        autocast=fabric.autocast,
    )
    trainer, pack, note = _trainer(settings.method, arranged, parts, workers)
    of_train, of_test = (
        Evaluator(model, parameters, task, examples, _evaluation_batch(task, examples, vocabulary), fabric.autocast)
        for examples in (train, test)
    )
    experiment = Experiment(
        method=settings.method,
        data=data,
        partition=training,
        population=arranged.population,
        parameters=parameters,
        backbone=FrozenBackbone(model),
        trainer=trainer,
        evaluator=of_test,
        client_evaluator=_client_evaluator(settings, held_out, of_train, fabric.device),
        client=arranged.client,
        server=settings.server,
        communication=settings.communication,
        evaluation=settings.evaluation,
        run=private.run,
        privacy=private.mechanism,
        lengths=_lengths(settings.client, train),
    )
    notes = (*data.notes, *arranged.notes, *([note] if note else []), *_personal_note(settings), *private.notes)
    return Built(experiment, model, partition, held_out, task, pack, private.noise_multiplier, notes)


def _adapted(settings: Settings, data: FederatedData, device: torch.device) -> tuple[nn.Module, FlatParameters, int]:
    """Loads the backbone and adapts it: the model, its P, and how many tokens it knows."""
    backbone = frozen_backbone(settings, data)
    check_tokens(data, backbone)
    vocabulary = backbone.get_input_embeddings().num_embeddings if "input_ids" in data.train else 1
    model = settings.method.setup(backbone, torch_seed(settings.run.seed, Purpose.ADAPTER)).to(device)
    parameters = FlatParameters(model)
    settings.method.check(parameters.layout)
    return model, parameters, vocabulary


def _with_activations(
    options: ClientOptions,
    data: FederatedData,
    model: nn.Module,
    parameters: FlatParameters,
    task: Task,
    splits: tuple[Examples, Examples],
    fabric: Fabric,
    workers: Workers,
) -> tuple[Examples, Examples]:
    """Has the backbone forget its activations, or keep what a head reads of both splits, where that was asked for."""
    if options.checkpoint_activations:
        checkpoint_activations(model)
    if not options.cache_features:
        return splits
    require_the_same_examples(data)
    return cache_features(model, parameters, task, splits, EVALUATION_BATCH, fabric.autocast, workers)


def _trainer(method: Method, arranged: Arrangement, parts: Parts, workers: Workers) -> tuple[Trainer, int, str]:
    """Makes the trainer for the busiest rounds and for the run's first and last stage."""
    workloads = partial(busiest_workloads, arranged.population, arranged.client, arranged.run, workers.count)
    stages = [method.segments(round) for round in (1, arranged.run.rounds)]
    return make_trainer(parts, stages, workloads, workers)


def _lengths(options: ClientOptions, train: Examples) -> np.ndarray | None:
    """The lengths by which batches are made, where that was asked for."""
    if not options.group_by_length:
        return None
    if train.lengths is None:
        raise ConfigurationError(
            "client.group_by_length is true, but these data have no texts of different length; leave it out"
        )
    return train.lengths


def _personal_note(settings: Settings) -> tuple[str, ...]:
    """Tells who keeps parts of P with the clients where their models are, and that nobody looks."""
    if not settings.method.personal_parts or settings.evaluation.held_out:
        return ()
    return (
        f"{settings.method.label}'s clients keep parts of their own, and the accuracy shown is of a mean that nobody "
        "has: give --evaluation.held_out 0.2 to see theirs, as clients/accuracy",
    )


def _hold_out(settings: Settings, partition: Partition, task: str) -> tuple[Partition, Partition | None]:
    """Splits every client's examples in those to train on and those to be evaluated on, where that was asked for."""
    fraction = settings.evaluation.held_out
    if not fraction:
        return partition, None
    if task == "generation":
        raise ConfigurationError(
            "evaluation.held_out is not for answers that are judged, as only the test split has a judge; leave it out"
        )
    training, held_out = hold_out(partition, fraction, generator(settings.run.seed, Purpose.HELD_OUT))
    if not len(held_out.indices):
        raise ConfigurationError(
            "evaluation.held_out holds nothing out, as no client has two examples; give fewer clients, or leave it out"
        )
    return training, held_out


def _client_evaluator(
    settings: Settings, held_out: Partition | None, evaluator: Evaluator, device: torch.device
) -> ClientEvaluator | None:
    """Chooses who is evaluated, among the clients that have held-out examples."""
    if held_out is None:
        return None
    able = np.flatnonzero(held_out.sizes)
    few = min(len(able), settings.evaluation.clients or len(able))
    draw = generator(settings.run.seed, Purpose.EVALUATED)
    chosen = np.sort(draw.choice(able, few, replace=False, shuffle=False)).tolist()
    return ClientEvaluator(evaluator, {client: held_out.of(client) for client in chosen}, device)


def _evaluation_batch(task: Task, examples: Examples, vocabulary: int) -> int:
    """How many examples are evaluated in one forward."""
    return max(1, min(EVALUATION_BATCH, EVALUATION_LOGITS // (task.places(examples.columns) * vocabulary)))


def make_partition(settings: Settings, data: FederatedData) -> Partition:
    """Splits the training set over clients, and checks that what came out can be sampled."""
    if data.classes is None and "labels" not in data.train:
        raise ConfigurationError(
            f"{type(settings.data).__name__} has no column labels, but {', '.join(data.train)}; "
            "give every example one, or its FederatedData the class of each: classes=..."
        )
    classes = data.train["labels"].numpy() if data.classes is None else data.classes
    if classes.ndim != 1:
        raise ConfigurationError(
            f"{type(settings.data).__name__} has labels of shape {classes.shape}, by which no partitioner can deal; "
            "give its FederatedData the class of each example: classes=..."
        )
    partition = settings.partition.split(classes, data.user, generator(settings.run.seed, Purpose.PARTITION))
    examples, cohort = len(classes), settings.run.cohort_size
    if len(partition.indices) and partition.indices.max() >= examples:
        raise ConfigurationError(
            f"{type(settings.partition).__name__} deals row {partition.indices.max()} of {examples} training examples; "
            "rows count from 0"
        )
    if cohort > partition.clients:
        raise ConfigurationError(
            f"cohort_size is {cohort}, but there are {partition.clients} clients to sample from; "
            f"give at most {partition.clients}, or more clients (partition.clients)"
        )
    return partition


def frozen_backbone(settings: Settings, data: FederatedData) -> PreTrainedModel:
    """Loads the backbone that a run starts from, with a head for the data's labels."""
    dtype = _DTYPES.get(settings.precision, torch.float32)
    seed = torch_seed(settings.run.seed, Purpose.BACKBONE)
    return load_backbone(settings.backbone_path, data.task, data.label_names, dtype, seed, data.pad_token_id)


def local_optimizer(options: ClientOptions) -> LocalOptimizer:
    """Makes the client's optimiser."""
    if options.optimizer == "sgd":
        return SGD(options.lr, options.momentum, options.weight_decay)
    return AdamW(options.lr, weight_decay=options.weight_decay)


def _module(options: ClientOptions, model: nn.Module, task: Task) -> lightning.LightningModule:
    """Wraps the adapted backbone in the user's module, or in ours."""
    if options.module is None:
        return ClientModule(model, task)
    name = getattr(options.module, "__name__", str(options.module))
    expected = "expected a LightningModule whose constructor takes the backbone alone"
    try:
        module = options.module(model)
    except Exception as error:  # it is the user's own
        raise ConfigurationError(
            f"client.module {name} cannot be made ({type(error).__name__}: {error}); {expected}"
        ) from error
    if not isinstance(module, lightning.LightningModule):
        raise ConfigurationError(f"client.module {name} makes a {type(module).__name__}; {expected}")
    inside = {id(p) for p in model.parameters()}
    outside = [name for name, p in module.named_parameters() if p.requires_grad and id(p) not in inside]
    if outside:
        raise ConfigurationError(
            f"client.module trains {outside[0]}, which is not in the backbone and so would never travel; "
            "put it into the backbone, or freeze it"
        )
    return module
