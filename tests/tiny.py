"""The smallest things that a test of the engine needs: models, data, clients' jobs and whole runs, in milliseconds."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf
from torch import Tensor, nn

from data_partitions.dataset import FederatedData
from data_partitions.partition import Partition
from data_partitions.texts.tokens import TextData, pad_rows, with_answers
from fedsim.backbone import quiet
from fedsim.client import ClientModule, SequentialTrainer
from fedsim.data import Examples
from fedsim.evaluation import Evaluator
from fedsim.experiment import Experiment
from fedsim.frozen import FrozenBackbone
from fedsim.method import Arrived, ClientJob, Method, Penalty, Plan, ServerState, Shared
from fedsim.optimizers import SGD, AdamW, LocalOptimizer
from fedsim.options import ClientOptions, CommunicationOptions, RunOptions, ServerOptions
from fedsim.packed import PackedTrainer
from fedsim.parameters import FlatParameters, Layout, Place
from fedsim.sampling import local_batches
from fedsim.seeding import Purpose, generator
from fedsim.server import server_optimizer
from fedsim.sparse import SparseVector
from fedsim.task import task_of
from fedsim.transport import Workers
from methods.lora import LoRA

LABELS = 3
CPU = torch.device("cpu")
ONE_WORKER = Workers(0, 1, CPU)
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
TEXT = {"vocab_size": 20, "pad_token_id": 0, "num_labels": LABELS}
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 12, "bos_token_id": 1, "eos_token_id": 2}
DROPOUT = {"hidden_dropout_prob": 0.4, "attention_probs_dropout_prob": 0.4}

BACKBONES: dict[str, Callable[..., nn.Module]] = {
    "vit": lambda num_channels=1, num_labels=LABELS: hf.ViTForImageClassification(
        hf.ViTConfig(**SIZES, **DROPOUT, image_size=8, patch_size=4, num_channels=num_channels, num_labels=num_labels)
    ),
    "gpt2": lambda: hf.GPT2ForSequenceClassification(hf.GPT2Config(**GPT2, **TEXT)),
    "gpt2_lm": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**GPT2, vocab_size=20)),
    "llama": lambda: hf.LlamaForCausalLM(
        hf.LlamaConfig(
            **SIZES, vocab_size=20, max_position_embeddings=12, pad_token_id=0, bos_token_id=1, eos_token_id=2
        )
    ),
    "roberta": lambda: hf.RobertaForSequenceClassification(
        hf.RobertaConfig(**SIZES, **DROPOUT, **TEXT, max_position_embeddings=16)
    ),
}


def save_backbone(folder: Path, kind: str, **options: Any) -> Path:
    """Saves one of `BACKBONES`, the same weights every time, into a folder that need not be there."""
    with torch.random.fork_rng(), quiet():
        torch.manual_seed(1)
        BACKBONES[kind](**options).save_pretrained(folder)  # type: ignore[operator]
    return folder


def images(train: int = 40, test: int = 11) -> FederatedData:
    """Random 8x8 images with random labels."""
    random = torch.Generator().manual_seed(5)

    def split(count: int) -> dict[str, Tensor]:
        pixels = torch.randn(count, 1, 8, 8, generator=random)
        return {"pixel_values": pixels, "labels": torch.randint(LABELS, (count,), generator=random)}

    return FederatedData(split(train), split(test), tuple("abc"), "image_classification")


def texts(train: int = 40, test: int = 11) -> FederatedData:
    """Random texts of 3 to 8 tokens out of 20, padded to 8."""
    random = torch.Generator().manual_seed(6)

    def split(count: int) -> dict[str, Tensor]:
        lengths = torch.randint(3, 9, (count, 1), generator=random)
        mask = (torch.arange(8) < lengths).long()
        tokens = torch.randint(3, 20, (count, 8), generator=random) * mask
        labels = torch.randint(LABELS, (count,), generator=random)
        return {"input_ids": tokens, "attention_mask": mask, "labels": labels}

    return FederatedData(split(train), split(test), tuple("abc"), "text_classification")


def answers(train: int = 40, test: int = 11) -> FederatedData:
    """Random questions of 2 to 5 tokens out of 20 with random answers of 1 to 3, as a language model reads them."""
    random = np.random.default_rng(7)

    def split(count: int) -> dict[str, Tensor]:
        questions, replies = (
            pad_rows([random.integers(3, 20, random.integers(low, high)).tolist() for _ in range(count)], high - 1)
            for low, high in ((2, 6), (1, 4))
        )
        inputs, labels = with_answers(questions, replies)
        return {"input_ids": torch.from_numpy(inputs), "labels": torch.from_numpy(labels)}

    classes = random.integers(LABELS, size=train)
    return TextData(split(train), split(test), (), "text_to_text", classes=classes, pad_token_id=0)


DATA: dict[str, Callable[[], FederatedData]] = {"vit": images, "gpt2_lm": answers, "llama": answers}


@dataclass
class Tiny:
    """An adapted backbone, its flat parameters, and the data it trains on."""

    method: Method
    data: FederatedData
    model: nn.Module
    parameters: FlatParameters
    module: ClientModule
    train: Examples
    test: Examples

    @property
    def vector(self) -> Tensor:
        return self.parameters.vector

    def start(self, seed: int = 0) -> Tensor:
        """A random start: as LoRA's B begins at zero, A would have no gradient otherwise."""
        noise = torch.randn(len(self.vector), generator=torch.Generator().manual_seed(seed))
        return 0.1 * noise.to(self.vector)

    def job(self, client: int, examples: int, batch_size: int = 4, epochs: int = 1, **fields: Any) -> ClientJob:
        """The job of a client that holds so many examples; where it starts and the rest may be given."""
        random = generator(0, Purpose.BATCHES, 1, client)
        rows = random.choice(len(self.train), examples, replace=False)
        start = fields.pop("start", None)
        start = self.start() if start is None else start
        whole: dict[str, Any] = {
            "position": client,
            "plan": Plan(),
            "shared": self.shared(),
            "start": start,
            "reference": start,
            "batches": local_batches(random, rows, batch_size, epochs, None),
            "draws": {},
            "seed": 100 + client,
        }
        return ClientJob(client=client, **(whole | fields))

    def shared(self, round: int = 1, **tensors: Tensor) -> Shared:
        """What everybody knows of a round."""
        return Shared(round, 0, self.parameters.layout, self.vector.clone(), tensors)

    def sequential(
        self,
        optimizer: LocalOptimizer | None = None,
        penalty: Penalty | None = None,
        module: Any = None,
        clip_norm: float | None = None,
    ) -> SequentialTrainer:
        parts = (module or self.module, self.parameters, self.train, optimizer or SGD(0.05), penalty, nullcontext)
        return SequentialTrainer(*parts, clip_norm=clip_norm)

    def packed(
        self,
        slots: int,
        optimizer: LocalOptimizer | None = None,
        penalty: Penalty | None = None,
        clip_norm: float | None = None,
        compile: bool = False,
    ) -> PackedTrainer:
        parts = (self.module, self.parameters, self.train, optimizer or SGD(0.05), penalty, nullcontext, slots)
        return PackedTrainer(*parts, clip_norm=clip_norm, compile=compile)


def build(method: Method | None = None, backbone: str = "vit", dtype: torch.dtype = torch.float32) -> Tiny:
    """Builds everything around one of the backbones; the same on every call, whatever torch's global state."""
    method = method or LoRA(lora_rank=2)
    data = DATA.get(backbone, texts)()
    with torch.random.fork_rng():
        torch.manual_seed(3)
        frozen = BACKBONES[backbone]().to(dtype).requires_grad_(False).eval()
    model = method.setup(frozen, 4)
    parameters = FlatParameters(model)
    train, test = (Examples(data, columns, CPU, dtype) for columns in (data.train, data.test))
    return Tiny(method, data, model, parameters, ClientModule(model, task_of(data)), train, test)


def partition(sizes: list[int]) -> Partition:
    """Clients that hold so many examples each."""
    return Partition.from_owners(np.repeat(np.arange(len(sizes)), sizes), len(sizes), {})


def experiment(tiny: Tiny, sizes: list[int], **fields: Any) -> Experiment:
    """A run over clients of these sizes, three of them a round, in one process and one after another."""
    whole: dict[str, Any] = {
        "method": tiny.method,
        "data": tiny.data,
        "partition": partition(sizes),
        "parameters": tiny.parameters,
        "backbone": FrozenBackbone(tiny.model),
        "trainer": tiny.sequential(),
        "evaluator": Evaluator(tiny.model, tiny.parameters, tiny.module.task, tiny.test, 8, nullcontext),
        "client": ClientOptions(batch_size=4),
        "server": ServerOptions(),
        "communication": CommunicationOptions(),
        "run": RunOptions(rounds=2, cohort_size=3, evaluate_every_rounds=1, checkpoint_every_rounds=1),
    }
    whole |= fields
    return Experiment(**({"population": whole["partition"]} | whole))


def layout_of(*sizes: int) -> Layout:
    """A layout of so many layers of these sizes, without a model."""
    entries: list[Place] = []
    for number, size in enumerate(sizes):
        start = entries[-1].stop if entries else 0
        entries.append(Place(f"layer{number}.weight", torch.Size([size]), start, "backbone", f"layer{number}"))
    return Layout(tuple(entries))


def server_state(values: list[float], layout: Layout | None = None, **options: Any) -> ServerState:
    """A server that holds these values, in float64."""
    vector = nn.Parameter(torch.tensor(values, dtype=torch.float64))
    optimizer = server_optimizer(ServerOptions(**options), vector)
    return ServerState(
        layout or layout_of(len(values)), vector, optimizer, vector.detach().clone(), FrozenBackbone(nn.Module())
    )


def shared_of(state: ServerState, round: int = 1, **tensors: Tensor) -> Shared:
    """What everybody knows of a round of this server."""
    return Shared(round, state.seed, state.layout, state.initial, tensors)


def arrived(update: SparseVector, weight: float = 1, client: int = 0, plan: Plan | None = None) -> Arrived:
    """An upload at the server."""
    return Arrived(client, plan or Plan(), update, (), int(weight), weight)


LOCAL_OPTIMIZERS: dict[str, LocalOptimizer] = {
    "sgd": SGD(0.05, 0.9),
    "plain_sgd": SGD(0.05, 0.0, 0.01),
    "adamw": AdamW(0.01, weight_decay=0.1),
}
