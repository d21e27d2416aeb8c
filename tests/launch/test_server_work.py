"""`fedsim bench --server`: what the server's part of a round takes, and that it makes no matrix of D_out by D_in."""

from functools import partial

import pytest

from fedsim.method import Method
from launch.__main__ import main
from launch.benchmarks import server_work
from launch.benchmarks.server_work import Size, server_time
from methods.fed_ex_lora import FedExLoRA
from methods.fed_it import FedIT
from methods.flex_lora import FlexLoRA
from methods.flora_na import FLoRANA
from methods.lora_fair import LoRAFAIR

SMALL = Size(clients=4, modules=2, width=23)


@pytest.mark.parametrize(
    "method",
    [
        FedIT(lora_rank=3),
        FLoRANA(lora_rank=3),
        FLoRANA(lora_rank=3, scope="model"),
        FlexLoRA(lora_rank=3),
        LoRAFAIR(lora_rank=3),
    ],
    ids=lambda method: f"{method.label} {getattr(method, 'scope', '')}",
)
def test_no_matrix_of_a_weights_size_is_made(method: Method) -> None:
    """Ranks and clients multiply to 12, so that nothing else is 23 by 23."""
    spent = server_time(method, 1, SMALL)
    assert spent.whole_matrices == 0
    assert 0 < spent.product_error < 1
    assert spent.cpu_seconds > 0
    assert spent.upload_bytes == 4 * 4 * 2 * 2 * 3 * 23


def test_what_goes_into_the_weights_is_of_their_size() -> None:
    """The counter does count."""
    assert server_time(FedExLoRA(lora_rank=3), 1, SMALL).whole_matrices > 0


def test_the_command_says_it_in_a_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(server_work, "server_time", partial(server_time, size=SMALL))
    assert main(["bench", "--server", "FLoRANA", "--repeats", "1"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("FLoRANA, 10 clients, 24 modules of 768 by 768: ")
    assert "0 matrices of 768 by 768 made" in out
    assert out.count("\n") == 1


def test_an_unknown_method_is_answered_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--server", "FloraNA"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "FLoRANA" in said
