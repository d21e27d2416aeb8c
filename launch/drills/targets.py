"""What is fuzzed: each target draws inputs, gives them to the project, and checks what comes back."""

import hashlib
import io
import json
import os
import zipfile
from abc import ABC, abstractmethod
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from rich.console import Console
from torch import Tensor

from data_partitions.errors import DataError
from data_partitions.partition import Partition
from fedsim.codec import INDEX_CODINGS, VALUE_DTYPES, Part, PayloadError, decode, decode_message, encode, values_in
from fedsim.errors import ConfigurationError
from fedsim.exchange import Exchange
from fedsim.options import CommunicationOptions
from fedsim.sparse import IndexSet, SparseVector
from launch.configuration import flatten, read_settings, save_yaml
from launch.drills.mutations import Random, damage, leaf, twist
from launch.registry import PRESETS
from launch.reports.partition_table import Subject, describe
from launch.run_directory import earlier_settings


class Target(ABC):
    """One reader of the project's.

    Args:
        folder: its own, empty.
    """

    promised: tuple[type[Exception], ...] = (ConfigurationError, DataError)
    """How it refuses."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @abstractmethod
    def feed(self, random: Random) -> None:
        """Draws an input and gives it to the reader; an input that is read must hold what valid ones hold."""


class Codec(Target):
    """Messages between server and clients."""

    promised = (PayloadError,)

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        random = np.random.default_rng(0)
        self._messages = [b"".join(_payload(random) for _ in range(1 + number % 3)) for number in range(24)]
        self._exchange = Exchange(CommunicationOptions(), 100)

    def feed(self, random: Random) -> None:
        """Reads a message in every way there is."""
        kind = int(random.integers(10))
        message = self._messages[int(random.integers(len(self._messages)))]
        if kind == 0:
            message = random.bytes(int(random.integers(200)))
        elif kind == 1:
            message = b"FSV1" + random.bytes(int(random.integers(200)))
        else:
            message = damage(message, self._messages, random)
        refusals = []
        readers = (self._parts, self._vector, values_in, self._upload)
        for read in readers:
            try:
                read(message)
            except PayloadError as error:
                refusals.append(error)
        if len(refusals) == len(readers):
            raise refusals[0]

    def _parts(self, message: bytes) -> None:
        for part in decode_message(message)[0]:
            encode(part, value_dtype=torch.float64)  # checks order and range of indices, and that values are finite

    def _vector(self, message: bytes) -> None:
        encode(decode(message)[0], value_dtype=torch.float64)

    def _upload(self, message: bytes) -> None:
        self._exchange.read_upload(message, None, torch.zeros(1))[0].to_dense()


def _payload(random: Random) -> bytes:
    length = int(random.choice([0, 1, 9, 100, 100, 3_000]))
    kept = np.flatnonzero(random.random(length) < random.choice([0.02, 0.3, 1.0]))
    indices = torch.from_numpy(kept.astype(np.int64))
    values = torch.from_numpy(random.standard_normal(len(kept)))
    parts: tuple[Part, ...] = (
        SparseVector(length, values, indices),
        SparseVector(length, values, indices),
        SparseVector.dense(torch.from_numpy(random.standard_normal(length))),
        IndexSet(length, indices),
        random.bytes(length % 50),
    )
    coding = INDEX_CODINGS[int(random.integers(len(INDEX_CODINGS)))]
    dtype = list(VALUE_DTYPES.values())[int(random.integers(len(VALUE_DTYPES)))]
    return encode(parts[int(random.integers(len(parts)))], coding, dtype, int(random.integers(50)))


class Checkpoints(Target):
    """Checkpoints that a run would go on with: damaged under a checksum that does not fit any more, or that does."""

    METHODS = (("--method", "FedSALoRA", "--evaluation.held_out", "0.2"), ("--method", "FedExLoRA"))
    ROUND = "round-000002"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._runs = [_stopped_run(folder / str(number), options) for number, options in enumerate(self.METHODS)]
        self._files = [
            [(run / "checkpoint" / self.ROUND / name).read_bytes() for name in ("state.json", "state.safetensors")]
            for run, *_ in self._runs
        ]

    def feed(self, random: Random) -> None:
        """Goes on with the run as far as its first round."""
        from fedsim.server import initial_state, restore_state
        from launch.experiment import check_continuation
        from launch.run_directory import RunDirectory

        which = int(random.integers(len(self._runs)))
        run, settings, built = self._runs[which]
        at = run / "checkpoint" / self.ROUND
        for name, data in zip(("state.json", "state.safetensors"), self._damaged(which, random), strict=True):
            (at / name).write_bytes(data)
        with RunDirectory.open(run, "", True, settings.resolved) as directory:
            if directory.checkpoint is None:
                raise ConfigurationError(directory.notes[0])
            check_continuation(run, directory.checkpoint, built)
            restore_state(initial_state(built.experiment), directory.checkpoint)

    def _damaged(self, which: int, random: Random) -> tuple[bytes, bytes]:
        text, data = self._files[which]
        kind = int(random.integers(5))
        if kind == 0:
            return damage(text, [text, data], random), data
        if kind == 1:
            return text, damage(data, [text, data], random)
        body = json.loads(text)
        if kind == 2:
            data = damage(data, [data], random)
        elif kind == 3:
            data = _other_tensors(data, random)
        body["tensors_sha256"] = hashlib.sha256(data).hexdigest()
        del body["sha256"]
        if kind == 4:
            body = twist(body, random)
        stated = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
        whole = {**body, "sha256": stated} if isinstance(body, dict) else body
        return json.dumps(whole).encode("utf-8", "surrogatepass"), data


def _stopped_run(path: Path, options: tuple[str, ...]) -> tuple[Path, Any, Any]:
    """Makes a run of two rounds that is to have four: its directory, settings, and what it is made of."""
    from launch.build import build
    from launch.environment import start_workers
    from launch.experiment import run

    command = ["--cohort_size", "3", "--accelerator", "cpu", "--run_dir", str(path), *options]
    run(read_settings([*command, "--rounds", "2"]), Console(quiet=True))
    settings = read_settings([*command, "--rounds", "4", "--resume", "auto"])
    fabric, workers = start_workers("cpu", settings.precision, settings.threads_per_worker)
    return path, settings, build(settings, fabric, workers)


def _other_tensors(data: bytes, random: Random) -> bytes:
    """Renames, drops, reshapes or fills one of the tensors."""
    from safetensors.torch import load, save

    tensors = load(data)
    name = sorted(tensors)[int(random.integers(len(tensors)))]
    value = tensors.pop(name)
    changes: tuple[Tensor, ...] = (
        value[..., :-1] if value.ndim else value.repeat(2),
        value.unsqueeze(0),
        value.reshape(-1)[:0],
        value.double(),
        value.to(torch.int64),
        torch.full_like(value, float("nan")) if value.is_floating_point() else value - 1,
        torch.zeros(()),
    )
    kind = int(random.integers(len(changes) + 2))
    if kind < len(changes):
        tensors[name] = changes[kind].contiguous()
    elif kind == len(changes):
        tensors[f"{name}.x" if random.integers(2) else str(leaf(random))[:99]] = value
    return save(tensors)


BOMB = "a: &a [0,0,0,0,0,0,0,0,0]\n" + "".join(
    f"{one}: &{one} [{','.join(f'*{before}' for _ in range(9))}]\n"
    for before, one in zip("abcdefghi", "bcdefghij", strict=True)
)
"""Nine to the tenth values in some hundred characters."""


class Configuration(Target):
    """Command lines and files of settings, of a new run and of one to be gone on with."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        os.chdir(folder)
        texts = [path.read_text(encoding="utf-8") for path in sorted(PRESETS.glob("*.yaml"))]
        self._trees = [yaml.safe_load(text) for text in texts]
        self._texts = [*(text.encode() for text in texts), BOMB.encode()]
        self._pairs = [(key, value) for tree in self._trees for key, value in flatten(tree).items()]
        (folder / "run").mkdir()

    def feed(self, random: Random) -> None:
        """Reads the settings, which must come back from the file that a run keeps of them."""
        kind = int(random.integers(4))
        if kind < 2:
            argv = ["--config", str(self._file(bool(kind), random))]
        else:
            argv = ["--config", "digits"] if random.integers(2) else []
            for _ in range(int(random.integers(1, 4))):
                argv += self._option(random)
        settings = read_settings(argv)
        if yaml.safe_load(save_yaml(settings.resolved)) != settings.resolved:
            raise AssertionError("settings differ from what config.yaml would hold")

    def _file(self, as_text: bool, random: Random) -> Path:
        if as_text:
            data = damage(self._texts[int(random.integers(len(self._texts)))], self._texts, random)
        else:
            tree = twist(self._trees[int(random.integers(len(self._trees)))], random)
            data = yaml.safe_dump(tree).encode("utf-8", "surrogatepass")
        for path in (self.folder / "given.yaml", self.folder / "run" / "config.yaml"):
            path.write_bytes(data)
        with suppress(ConfigurationError):
            earlier_settings(self.folder / "run")
        return self.folder / "given.yaml"

    def _option(self, random: Random) -> list[str]:
        key, value = self._pairs[int(random.integers(len(self._pairs)))]
        kind = int(random.integers(5))
        if kind == 0:
            key = damage(key.encode(), [b"lr", b"method", b"init_args"], random).decode("utf-8", "replace")[:300]
        elif kind == 1:
            value = damage(str(value).encode(), [BOMB.encode()], random).decode("utf-8", "replace")
        else:
            value = leaf(random)
        text = json.dumps(value) if isinstance(value, list | dict) else str(value)
        return [f"--{key}={text}"] if random.integers(2) else [f"--{key}", text]


class Partitions(Target):
    """Files that `fedsim partition` and runs write: damaged, and made anew around damaged members."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        random = np.random.default_rng(0)
        self._path = folder / "partition.npz"
        self._seeds = []
        for examples, clients in ((0, 1), (12, 4), (500, 30)):
            owners = random.integers(clients, size=examples)
            arguments = {"partitioner": "Dirichlet", "alpha": 0.5, "clients": clients, "data": "Digits", "seed": 0}
            Partition.from_owners(owners, clients, arguments).save(self._path)
            self._seeds.append(self._path.read_bytes())

    def feed(self, random: Random) -> None:
        """Loads the file, and describes what it holds."""
        seed = self._seeds[int(random.integers(len(self._seeds)))]
        data = damage(seed, self._seeds, random) if random.integers(2) else self._around_damage(seed, random)
        self._path.write_bytes(data)
        partition = Partition.load(self._path)
        if int(partition.sizes.sum()) != len(partition.indices):
            raise AssertionError("clients hold more or less than there is")
        describe(Subject(partition, None), Console(file=io.TextIOWrapper(io.BytesIO(), "utf-8"), width=100))

    def _around_damage(self, seed: bytes, random: Random) -> bytes:
        with zipfile.ZipFile(io.BytesIO(seed)) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        name = list(members)[int(random.integers(len(members)))]
        kind = int(random.integers(5))
        if kind == 0:
            members[name] = damage(members[name], list(members.values()), random)
        elif kind == 1:
            start = members[name].index(b"\n") + 1
            header, rest = members[name][:start], members[name][start:]
            members[name] = damage(header, [header], random) + rest
        elif kind == 2:
            del members[name]
        elif kind == 3:
            members["arguments.npy"] = _array(np.array(_json_of(random)))
        else:
            values = np.array([int(np.clip(leaf_number(random), -(2**63), 2**63 - 1)) for _ in range(12)], np.int64)
            members[name] = _array(values if random.integers(2) else values.astype(">i8"))
        made = io.BytesIO()
        packed = zipfile.ZIP_STORED if random.integers(8) else zipfile.ZIP_DEFLATED
        with zipfile.ZipFile(made, "w", packed) as archive:
            for member, content in members.items():
                archive.writestr(member, content)
        return made.getvalue()


def leaf_number(random: Random) -> int:
    """Draws a small number, or one that nobody expects."""
    drawn = leaf(random)
    return drawn if isinstance(drawn, int) else int(random.integers(-2, 20))


def _json_of(random: Random) -> str:
    arguments = {"partitioner": "Dirichlet", "alpha": 0.5, "clients": 4, "data": "Digits", "seed": 0}
    return json.dumps(twist(arguments, random)).replace("\0", "")


def _array(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


TARGETS: dict[str, type[Target]] = {
    "codec": Codec,
    "checkpoint": Checkpoints,
    "configuration": Configuration,
    "partition": Partitions,
}
