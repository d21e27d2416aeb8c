"""The options of run, client, server and communication: plain fields that the command line reads and checks."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from fedsim.errors import ConfigurationError

BadClientPolicy = Literal["skip", "fail", "clip"]
CohortSampling = Literal["without_replacement", "poisson"]


@dataclass
class RunOptions:
    """How long a run is, and who takes part.

    Args:
        rounds: server steps in all.
        cohort_size: clients a round; of poisson the expected number.
        cohort_sampling: without_replacement draws cohort_size clients; poisson lets each take part by its own coin, so
            that a round may have more of them, fewer, or none.
        seed: of every random choice.
        evaluate_every_rounds: rounds between evaluations; the last is always evaluated.
        checkpoint_every_rounds: rounds between checkpoints; the last is always kept.
        on_bad_client: what becomes of a client whose update or loss is not finite, or whose update is too long: skip
            leaves it out of the mean, fail stops the run, clip shortens a long update to max_update_norm.
        max_update_norm: how long an update may be, above 0; null for any length. It is that of all that the client
            trained, before the method keeps anything of it at home.
    """

    rounds: int = 100
    cohort_size: int = 10
    cohort_sampling: CohortSampling = "without_replacement"
    seed: int = 0
    evaluate_every_rounds: int = 10
    checkpoint_every_rounds: int = 10
    on_bad_client: BadClientPolicy = "skip"
    max_update_norm: float | None = None

    def __post_init__(self) -> None:
        norm = self.max_update_norm
        require("max_update_norm", norm, norm is None or norm > 0, "a number above 0, or null")
        require(
            "on_bad_client",
            self.on_bad_client,
            self.on_bad_client != "clip" or norm is not None,
            "skip or fail without max_update_norm, to which it shortens updates",
        )
        for name in ("rounds", "cohort_size", "evaluate_every_rounds", "checkpoint_every_rounds"):
            require(name, getattr(self, name), getattr(self, name) >= 1, "1 or more")
        require("seed", self.seed, self.seed >= 0, "0 or more")


@dataclass
class ClientOptions:
    """How a client trains.

    Args:
        optimizer: stepped flat on the client's parameters, fresh every round.
        lr: its learning rate, above 0.
        momentum: of sgd, in [0, 1).
        weight_decay: added to sgd's gradient, decoupled in adamw.
        clip_norm: a step's gradient is scaled down to this Euclidean norm where it is longer, above 0; null leaves it.
        proximal_mu: FedProx (Li et al. 2020): half of it, times the squared distance from where the client started, is
            added to the loss; 0 leaves it out.
        batch_size: examples a local step, at least 1.
        local_epochs: passes over the client's examples a round, at least 1.
        max_steps: an upper bound on local steps a round; none without it.
        group_by_length: whether a client's batches are of texts of like length. A batch is as long as its longest text,
            so they are shorter, and no longer drawn uniformly. Packed clients gain nothing by it.
        backbone_dropout: whether the backbone's own dropout is on while clients train, beside LoRA's, which always is;
            off as in FLASC's published code. On, clients train one after another.
        pack: how many clients train in one forward; 1 trains them one after another, auto measures what is fastest
            here when the run starts. It is part of the bits.
        compile: whether packed steps are compiled, which takes a minute at the start, and a C++ compiler. It is part of
            the bits.
        checkpoint_activations: whether the backbone's layers forget what they computed and compute it again in the
            backward pass: slower, and in much less memory. For large backbones.
        cache_features: whether what a head reads is computed once for every example, where the head alone trains and
            data are not augmented.
        module: class path of your own LightningModule; its first parameter is the adapted backbone.
    """

    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = 1e-3
    momentum: float = 0.9
    weight_decay: float = 0.0
    clip_norm: float | None = None
    proximal_mu: float = 0.0
    batch_size: int = 16
    local_epochs: int = 1
    max_steps: int | None = None
    group_by_length: bool = False
    backbone_dropout: bool = False
    pack: int | Literal["auto"] = 1
    compile: bool = False
    checkpoint_activations: bool = False
    cache_features: bool = False
    module: Callable[[Any], Any] | None = None

    def __post_init__(self) -> None:
        require("client.lr", self.lr, self.lr > 0, "a number above 0")
        require("client.momentum", self.momentum, 0 <= self.momentum < 1, "a number in [0, 1)")
        require("client.weight_decay", self.weight_decay, self.weight_decay >= 0, "0 or more")
        require("client.clip_norm", self.clip_norm, self.clip_norm is None or self.clip_norm > 0, "above 0, or null")
        require("client.proximal_mu", self.proximal_mu, self.proximal_mu >= 0, "0 or more")
        require("client.batch_size", self.batch_size, self.batch_size >= 1, "1 or more")
        require("client.local_epochs", self.local_epochs, self.local_epochs >= 1, "1 or more")
        require("client.max_steps", self.max_steps, self.max_steps is None or self.max_steps >= 1, "1 or more, or null")
        require("client.pack", self.pack, self.pack == "auto" or self.pack >= 1, "1 or more, or auto")
        for other, value in (("backbone_dropout", self.backbone_dropout), ("module", self.module is not None)):
            require(
                "client.cache_features",
                self.cache_features,
                not (self.cache_features and value),
                f"false with client.{other}, as features are computed once and without it",
            )
        require(
            "client.compile",
            self.compile,
            not self.compile or self.pack != 1,
            "false with client.pack 1, as only packed steps have one shape; give --client.pack auto, or leave it out",
        )


@dataclass
class ServerOptions:
    """How the server turns the mean update into new parameters.

    Args:
        optimizer: adam makes it FedAdam (Reddi et al. 2021), sgd of rate 1 without momentum FedAvg.
        lr: the server's learning rate, above 0.
        betas: decay of the two moments of adam, adamw and yogi, each in [0, 1).
        eps: added to the root of the second moment.
        momentum: of sgd, in [0, 1).
        weight_decay: decoupled in adamw, added to the gradient in the others.
        weighting: each client's weight in the mean: equal, or its number of examples.
    """

    optimizer: Literal["adam", "adamw", "sgd", "yogi", "adagrad"] = "adam"
    lr: float = 5e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    momentum: float = 0.0
    weight_decay: float = 0.0
    weighting: Literal["uniform", "examples"] = "uniform"

    def __post_init__(self) -> None:
        require("server.lr", self.lr, self.lr > 0, "a number above 0")
        require("server.betas", list(self.betas), all(0 <= b < 1 for b in self.betas), "two numbers in [0, 1)")
        require("server.eps", self.eps, self.eps > 0, "a number above 0")
        require("server.momentum", self.momentum, 0 <= self.momentum < 1, "a number in [0, 1)")
        require("server.weight_decay", self.weight_decay, self.weight_decay >= 0, "0 or more")


@dataclass
class EvaluationOptions:
    """What is evaluated beside the test split.

    Args:
        held_out: the fraction of each client's examples that nobody trains on, in [0, 1); above 0, clients are
            evaluated on their own of these.
        clients: how many clients are evaluated so, the same all run long; all that have held-out examples without it.
        local_epochs: above 0, each of them is also evaluated after training on for so many epochs, with the options of
            client, from the server's parameters: personalised.
        per_class: whether each class's accuracy (F1 where an example has several labels) is reported.
    """

    held_out: float = 0.0
    clients: int | None = 100
    local_epochs: int = 0
    per_class: bool = False

    def __post_init__(self) -> None:
        require("evaluation.held_out", self.held_out, 0 <= self.held_out < 1, "a number in [0, 1)")
        require("evaluation.clients", self.clients, self.clients is None or self.clients >= 1, "1 or more, or null")
        require("evaluation.local_epochs", self.local_epochs, self.local_epochs >= 0, "0 or more")
        require(
            "evaluation.local_epochs",
            self.local_epochs,
            not self.local_epochs or self.held_out > 0,
            "0 without evaluation.held_out, as there is nothing to evaluate a client on",
        )


@dataclass
class CommunicationOptions:
    """How payloads are encoded.

    Args:
        index_coding: how the places of a sparse payload are written; auto takes the smallest.
        value_dtype: how values travel; rounding them is part of the result. float64 serves 64-bit simulations.
        error_feedback: whether a client keeps what it did not send of an update, and adds it to its next one (Seide et
            al. 2014).
    """

    index_coding: Literal["auto", "dense", "bitmask", "rice"] = "auto"
    value_dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    error_feedback: bool = False


@dataclass
class PrivacyOptions:
    """User-level differential privacy of the server's steps; a run without `clip` has none.

    Args:
        clip: each client's decoded upload is scaled down to this Euclidean norm where it is longer, above 0.
        noise_multiplier: standard deviation of the noise on the sum of clipped uploads, over the clip, of a cohort of
            simulated_cohort clients where that is given; 0 or more. null with an epsilon takes the least noise that
            keeps it for all rounds.
        epsilon: what the run may spend, above 0: it ends with the last round that keeps it. null for any.
        delta: of the guarantee, in (0, 1); null takes population to the power -1.1.
        accountant: rdp, or pld, which is tighter and for poisson alone; null takes pld for poisson, else rdp.
        simulated_cohort: noise is scaled down from that of so many clients a round, which gives their accuracy and not
            their privacy (Song et al. 2022, Section 5.1): epsilon is then the simulated one, and the true one stands
            beside it. null simulates nothing.
        simulated_population: the number of clients that these would be drawn from; null takes the run's own.
        clip_quantile: adaptive clipping (Andrew et al. 2021): the clip moves to where this fraction of the cohort is
            within it, in [0, 1]; null keeps it fixed.
        clip_lr: how fast, above 0.
        clip_count_noise: standard deviation of the noise on the number of clients within the clip; null takes a
            twentieth of the cohort, of simulated_cohort where that is given. It is paid for by more noise on the sum.
        normalize: whether the server's optimiser is given the sum over the clip (De et al. 2022), so that its rate does
            not depend on the clip. A method that takes over what it aggregates is given the sum itself.
        noise_from: system draws noise and cohorts from a secret of this machine, kept in checkpoint/ alone; seed from
            the run's seed, which everybody can read: for tests and comparisons.
    """

    clip: float | None = None
    noise_multiplier: float | None = None
    epsilon: float | None = None
    delta: float | None = None
    accountant: Literal["rdp", "pld"] | None = None
    simulated_cohort: int | None = None
    simulated_population: int | None = None
    clip_quantile: float | None = None
    clip_lr: float = 0.2
    clip_count_noise: float | None = None
    normalize: bool = True
    noise_from: Literal["system", "seed"] = "system"

    def __post_init__(self) -> None:
        for name in ("noise_multiplier", "epsilon", "simulated_cohort", "clip_quantile"):
            value = getattr(self, name)
            expected = "null without privacy.clip, which is what noise is measured by"
            require(f"privacy.{name}", value, value is None or self.clip is not None, expected)
        for name in ("clip", "epsilon", "clip_count_noise"):
            value = getattr(self, name)
            require(f"privacy.{name}", value, value is None or value > 0, "a number above 0, or null")
        noise, delta, quantile = self.noise_multiplier, self.delta, self.clip_quantile
        require("privacy.noise_multiplier", noise, noise is None or noise >= 0, "0 or more, or null")
        require("privacy.delta", delta, delta is None or 0 < delta < 1, "a number in (0, 1), or null")
        require("privacy.clip_quantile", quantile, quantile is None or 0 <= quantile <= 1, "in [0, 1], or null")
        require("privacy.clip_lr", self.clip_lr, self.clip_lr > 0, "a number above 0")
        for name in ("simulated_cohort", "simulated_population"):
            value = getattr(self, name)
            require(f"privacy.{name}", value, value is None or value >= 1, "1 or more, or null")


def require(name: str, given: object, holds: bool, expected: str) -> None:
    """Raises a ConfigurationError that names the option, unless it holds."""
    if not holds:
        raise ConfigurationError(f"{name} is {given}; expected {expected}")
