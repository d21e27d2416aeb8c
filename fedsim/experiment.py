"""A run as the engine sees it: everything built and checked."""

from dataclasses import dataclass, field

import numpy as np

from fedsim.arrangement import Partition
from fedsim.client import Trainer
from fedsim.client_evaluation import ClientEvaluator
from fedsim.data import FederatedData
from fedsim.evaluation import Evaluator
from fedsim.frozen import FrozenBackbone
from fedsim.method import Method
from fedsim.options import ClientOptions, CommunicationOptions, EvaluationOptions, RunOptions, ServerOptions
from fedsim.parameters import FlatParameters
from fedsim.privacy import Mechanism
from fedsim.seeding import Purpose, generator


@dataclass(frozen=True)
class Experiment:
    """A run, built and checked: what trains, on what, by which method, how often.

    Attributes:
        method: decides every round.
        data: for its augmentation draws; the columns live in the trainer and the evaluator.
        partition: which client holds which rows to train on.
        population: the clients that are sampled: those of the partition, unless the method arranged it otherwise.
        parameters: the flat P of this worker's model; its values at the start are the server's.
        backbone: the frozen part of this worker's model.
        trainer: runs this worker's jobs.
        evaluator: evaluates views.
        client: batch size, epochs and steps of local work.
        server: the server's optimiser and weighting.
        communication: how payloads are encoded.
        run: rounds, cohort, seed, and how often to evaluate and to keep.
        evaluation: what is evaluated beside the test split.
        client_evaluator: evaluates clients on their own examples; None where none are held out.
        privacy: what stands in for the method's aggregate where the run is private; else None.
        secret: what cohorts and noise are drawn from; None for the run's seed.
        lengths: (N,), of the training set's texts, where batches are to be of like length; else None.
    """

    method: Method
    data: FederatedData
    partition: Partition
    population: Partition
    parameters: FlatParameters
    backbone: FrozenBackbone
    trainer: Trainer
    evaluator: Evaluator
    client: ClientOptions
    server: ServerOptions
    communication: CommunicationOptions
    run: RunOptions
    evaluation: EvaluationOptions = field(default_factory=EvaluationOptions)
    client_evaluator: ClientEvaluator | None = None
    privacy: Mechanism | None = None
    secret: int | None = None
    lengths: np.ndarray | None = None

    def hidden_stream(self, purpose: Purpose, round: int) -> np.random.Generator:
        """Returns the stream of what privacy rests upon, cohorts and noise, for one round."""
        return generator(self.run.seed if self.secret is None else self.secret, purpose, round)
