"""What each speed feature is worth: the same round without it and with it, and how equal the two are."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedsim.classification import Classification
from fedsim.transport import Workers
from launch.activations import cache_features
from launch.benchmarks.local_work import Arena
from launch.benchmarks.works import (
    RESIZED,
    Round,
    Work,
    deit_tiny,
    digits,
    minilm,
    padded_texts,
    random_photographs,
    short_texts,
    tiny_probe,
    tiny_vit,
)
from launch.build import EVALUATION_BATCH
from launch.trainers import Parts


@dataclass(frozen=True)
class Feature:
    """Something that makes a round faster.

    Attributes:
        name: what the table calls it.
        off: the work of the round without it.
        on: the work with it: another way to lay out the same data, maybe.
        without: makes the round without it.
        with_it: makes the round with it.
        same: whether both give the same numbers, but for rounding; not so where batches are of other examples.
    """

    name: str
    off: Work
    on: Work
    without: Callable[[Arena], Round]
    with_it: Callable[[Arena], Round]
    same: bool = True


@dataclass(frozen=True)
class Gain:
    """A feature as it was measured.

    Attributes:
        feature: its name.
        work: on which.
        off_ms: the median of a round without it.
        on_ms: and with it.
        gain: the median of the ratios of neighbouring rounds.
        difference: of the results, norm over norm; None where they are not to be the same.
    """

    feature: str
    work: str
    off_ms: float
    on_ms: float
    gain: float
    difference: float | None


def _alone(arena: Arena) -> Round:
    return arena.engine(1)


def _packed(arena: Arena) -> Round:
    return arena.engine(10)


def _compiled(arena: Arena) -> Round:
    return arena.engine(10, compile=True)


def _like_length(arena: Arena) -> Round:
    return arena.engine(1, like_length=True)


def _read(parts: Parts) -> Parts:
    """Computes the features of the training set, and trains on them from now on."""
    given = (parts.module.backbone, parts.parameters, Classification(), (parts.train, parts.train), EVALUATION_BATCH)
    train, _ = cache_features(*given, parts.autocast, ALONE)
    return replace(parts, train=train)


def _cached(arena: Arena) -> Round:
    return arena.engine(1, prepare=_read)


def _evaluate(arena: Arena) -> Round:
    """The logits of some training examples, whatever the round."""
    parts = arena.parts()
    evaluator, start = arena.evaluator(parts), parts.parameters.vector.clone()

    def round(_: int) -> Tensor:
        return evaluator.evaluate(start, ALONE, torch.arange(EVALUATED)).outputs["logits"].flatten()

    return round


EVALUATED = 512
ALONE = Workers(0, 1, torch.device("cpu"))
TINY = Work("tiny ViT, batch 4", digits, tiny_vit, 4)
DEIT = Work("DeiT-Tiny 64 px, batch 4", random_photographs, deit_tiny, 4, RESIZED)
PADDED = Work("MiniLM, texts of 3 to 64 tokens, batch 16", padded_texts, minilm, 16, clients=4)
PROBE = Work("tiny ViT, the head alone, batch 16", digits, tiny_probe, 16)
SHORT = replace(PADDED, data=short_texts)

FEATURES = (
    Feature("ten packed clients", TINY, TINY, _alone, _packed),
    Feature("packed steps compiled", TINY, TINY, _packed, _compiled),
    Feature("packed steps compiled", DEIT, DEIT, _packed, _compiled),
    Feature("what the head reads computed once", PROBE, PROBE, _alone, _cached),
    Feature("batches as long as their longest text", PADDED, SHORT, _alone, _alone),
    Feature(
        "and of texts of like length", SHORT, SHORT, _alone, lambda arena: arena.engine(1, like_length=True), False
    ),
    Feature("evaluation in the order of lengths", PADDED, SHORT, _evaluate, _evaluate),
)


def gains(features: Sequence[Feature], repeats: int) -> Iterator[Gain]:
    """Measures features, the two rounds of each in turn.

    Args:
        features: some.
        repeats: timed rounds of each.
    """
    for feature in features:
        with ExitStack() as open:
            off, on = (open.enter_context(Arena(work)) for work in (feature.off, feature.on))
            without, with_it = feature.without(off), feature.with_it(on)
            expected, found = without(1), with_it(1)
            seconds: list[list[float]] = [[], []]
            for repeat in range(repeats):
                for train, spent in zip((without, with_it), seconds, strict=True):
                    started = time.perf_counter()
                    train(repeat + 1)
                    spent.append(time.perf_counter() - started)
        off_ms, on_ms = (1e3 * statistics.median(spent) for spent in seconds)
        yield Gain(
            feature.name,
            feature.on.name,
            off_ms,
            on_ms,
            statistics.median(slow / fast for slow, fast in zip(*seconds, strict=True)),
            float((found - expected).norm() / expected.norm()) if feature.same else None,
        )
