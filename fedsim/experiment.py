"""A run as the engine sees it: everything built and checked."""

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from fedsim.client import Trainer
from fedsim.client_evaluation import ClientEvaluator
from fedsim.data import FederatedData
from fedsim.evaluation import Evaluator
from fedsim.method import Method
from fedsim.options import ClientOptions, CommunicationOptions, EvaluationOptions, RunOptions, ServerOptions
from fedsim.parameters import FlatParameters


class Partition(Protocol):
    """Which client holds which rows of the training set."""

    @property
    def clients(self) -> int:
        """How many clients there are."""

    def of(self, client: int) -> np.ndarray:
        """Returns the client's rows, (n,) int64; maybe none."""

    def examples(self, client: int) -> int:
        """Returns how many rows the client has."""


@dataclass(frozen=True)
class Experiment:
    """A run, built and checked: what trains, on what, by which method, how often.

    Attributes:
        method: decides every round.
        data: for its augmentation draws; the columns live in the trainer and the evaluator.
        partition: which client holds which rows.
        parameters: the flat P of this worker's model; its values at the start are the server's.
        trainer: runs this worker's jobs.
        evaluator: evaluates views.
        client: batch size, epochs and steps of local work.
        server: the server's optimiser and weighting.
        communication: how payloads are encoded.
        run: rounds, cohort, seed, and how often to evaluate and to keep.
        evaluation: what is evaluated beside the test split.
        client_evaluator: evaluates clients on their own examples; None where none are held out.
    """

    method: Method
    data: FederatedData
    partition: Partition
    parameters: FlatParameters
    trainer: Trainer
    evaluator: Evaluator
    client: ClientOptions
    server: ServerOptions
    communication: CommunicationOptions
    run: RunOptions
    evaluation: EvaluationOptions = field(default_factory=EvaluationOptions)
    client_evaluator: ClientEvaluator | None = None
