"""A peer that is the bare loop."""

import os
from pathlib import Path

import torch

from launch.benchmarks.contestants import CONTESTANTS
from launch.benchmarks.local_work import Arena
from launch.benchmarks.peers.serve import Told


def serve(arena: Arena, told: Told) -> None:
    train = CONTESTANTS["bare"].make(arena)
    Path(os.environ["FAKE_PEER_NOTES"]).write_text(f"{os.getcwd()}\n{torch.get_num_threads()}\n")
    for round in told:
        told.answer(train(round))
    with Path(os.environ["FAKE_PEER_NOTES"]).open("a") as notes:
        notes.write("left\n")
