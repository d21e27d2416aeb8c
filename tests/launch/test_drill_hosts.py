"""The drill of several hosts: what it would run, what it refuses, and, on request, a real run over two hosts."""

import os
import shutil
import subprocess
import sys

import pytest

from fedsim.errors import ConfigurationError
from launch.drills import network
from launch.drills.hosts import PARTS, main
from launch.drills.hosts_run import MEETINGS, surroundings, torchrun
from launch.drills.network import host, missing, set_up

HEAD, OTHER = host(0), host(1)


@pytest.mark.parametrize("meeting", MEETINGS)
@pytest.mark.parametrize("on", [HEAD, OTHER], ids=["first", "second"])
def test_a_launcher_needs_no_name_that_resolves(meeting: str, on: network.Host) -> None:
    command = torchrun(on, HEAD, meeting)
    assert command[:3] == [sys.executable, "-m", "torch.distributed.run"]
    assert {"--nproc-per-node=1", f"--local-addr={on.address}"} <= set(command)
    assert surroundings(on, meeting)["GLOO_SOCKET_IFNAME"] == on.interface
    if meeting == "static":
        assert {f"--node-rank={on.number}", f"--master-addr={HEAD.address}", "--nnodes=2"} <= set(command)
        return
    assert f"--rdzv-endpoint={HEAD.address}:29500" in command
    (settings,) = [argument for argument in command if argument.startswith("--rdzv-conf=")]
    assert f"is_host={'true' if on == HEAD else 'false'}" in settings
    elastic = meeting == "elastic"
    assert ("--nnodes=1:2" in command) == ("--max-restarts=3" in command) == elastic
    assert ("TORCH_DISABLE_SHARE_RDZV_TCP_STORE" in surroundings(on, meeting)) == elastic


def test_the_link_is_between_the_two_namespaces_from_the_start() -> None:
    commands = set_up(HEAD, OTHER)
    assert all(command[0] == "ip" for command in commands)
    (made,) = [command for command in commands if "veth" in command]
    assert {HEAD.namespace, OTHER.namespace, HEAD.interface, OTHER.interface} <= set(made)
    for command in commands:
        if command[:3] != ["ip", "netns", "add"] and command is not made:
            assert command[1] == "-n"
            assert command[2] in (HEAD.namespace, OTHER.namespace)
    assert str(os.getpid()) in HEAD.namespace


@pytest.mark.parametrize(
    ("module", "name", "value", "word"), [(os, "geteuid", 1000, "root"), (shutil, "which", None, "iproute2")]
)
def test_what_is_missing_is_one_line_and_status_2(
    module: object,
    name: str,
    value: object,
    word: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(module, name, lambda *_: value)
    monkeypatch.setattr(network, "_ip", lambda *_: pytest.fail("nothing may be made"))
    assert main([]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert word in line


def test_a_command_that_is_refused_is_one_line_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def refused(*arguments: str) -> str:
        asked.append(arguments)
        if arguments[:2] == ("link", "add"):
            raise ConfigurationError("ip link add failed (Operation not permitted)")
        return f"{HEAD.namespace} (id: 0)\n" if arguments == ("netns", "list") else ""

    monkeypatch.setattr("launch.drills.hosts.missing", lambda: "")
    monkeypatch.setattr(network, "_ip", refused)
    assert main([]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert asked[-1] == ("netns", "delete", HEAD.namespace)


def test_a_part_that_there_is_not_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--parts", "earthquake"]) == 2
    said = capsys.readouterr().err
    assert all(part in said for part in PARTS)


@pytest.mark.slow
@pytest.mark.skipif(bool(missing()), reason=missing())
def test_a_run_over_two_hosts_has_the_bits_of_one_worker(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--parts", "c10d"]) == 0
    assert "same bits" in capsys.readouterr().out
    left = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    assert HEAD.namespace not in left
    assert OTHER.namespace not in left
