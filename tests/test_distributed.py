"""Several processes of simulated devices on loopback: the answers of one, and a prompt end when one is lost."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import PIL.Image
import pytest
import xla_flags
from checkpoint_samples import save_orbax
from ports import free_port
from small_models import random_params
from test_api import CONFIG

from gemma_tpu.checkpoint import save_params
from gemma_tpu.distributed.channel import Peer
from gemma_tpu.distributed.group import Group
from gemma_tpu.distributed.shared_runner import LeadingRunner

HERE = Path(__file__).parent
PATIENCE = 240  # seconds for processes that compile, on a busy machine
# Seconds in which the loss of a process must be known, on a machine that is busy; JAX itself takes 100 s.
SOON = 60
FROZEN = 90  # if the process is silent: 15 s where nothing else runs


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("distributed") / "checkpoint"
    save_params(random_params(CONFIG), CONFIG, path, tokenizer=(HERE / "goldens/text/tokenizer.model").read_bytes())
    rng = np.random.default_rng(1)
    a, b = (
        (0.3 * rng.standard_normal(shape)).astype(np.float32)
        for shape in ((CONFIG.hidden_dim, 2), (2, CONFIG.embed_dim))
    )
    adapter = {
        f"layer_{i}": {"mlp": {"_LoRAEinsum_linear": {"lora": {"a": a, "b": b}}}} for i in range(CONFIG.num_layers)
    }
    save_orbax(path.with_name(f"{path.name}-adapter"), adapter)
    return path


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """One device a process, and programs compiled by one test at hand for the next."""
    return (
        os.environ
        | xla_flags.PROCESS
        | {
            "PYTHONPATH": str(HERE.parent),
            "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("compiled")),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "PYTHONWARNINGS": "ignore",
        }
    )


@contextlib.contextmanager
def started(
    commands: list[list[str]], folder: Path, environment: dict[str, str], places: list[Path] | None = None
) -> Iterator[list[subprocess.Popen]]:
    """Processes with their output in files 0.out, 0.err, 1.out … of a folder. They are killed in the end.

    `places`: the directory that each works in.
    """
    with contextlib.ExitStack() as stack:
        processes = []
        for i, command in enumerate(commands):
            out, err = (stack.enter_context(open(folder / f"{i}.{kind}", "w")) for kind in ("out", "err"))
            where = places and places[i]
            process = subprocess.Popen([sys.executable, *command], stdout=out, stderr=err, env=environment, cwd=where)
            stack.callback(process.wait)
            stack.callback(process.kill)
            processes.append(process)
        yield processes


def free_address() -> str:
    return f"127.0.0.1:{free_port()}"


def script(task: str, processes: int, *arguments: object) -> list[list[str]]:
    shared = [str(HERE / "distributed_script.py"), task, free_address(), str(processes)]
    return [[*shared, str(i), *map(str, arguments)] for i in range(processes)]


def codes(processes: list[subprocess.Popen], seconds: float, folder: Path) -> list[int]:
    until = time.monotonic() + seconds
    try:
        return [process.wait(max(until - time.monotonic(), 0.1)) for process in processes]
    except subprocess.TimeoutExpired:
        said = "\n".join(f"{path.name}: {path.read_text()[-2000:]}" for path in sorted(folder.glob("*.err")))
        pytest.fail(f"exit codes {[process.poll() for process in processes]} after {seconds} s\n{said}")


def last_line(path: Path) -> Any:
    return json.loads(path.read_text().splitlines()[-1])


@pytest.fixture(scope="module")
def one_process(checkpoint: Path, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("alone")
    with started(script("compare", 1, checkpoint, "1,1"), folder, environment) as group:
        assert codes(group, PATIENCE, folder) == [0]
    return last_line(folder / "0.out")


@pytest.mark.parametrize(("processes", "devices", "mesh"), [(2, 2, "2,2,3"), (4, 1, "1,4")])
def test_processes_answer_as_one(
    processes: int,
    devices: int,
    mesh: str,
    checkpoint: Path,
    environment: dict[str, str],
    one_process: Any,
    tmp_path: Path,
) -> None:
    """Process 0 does the work of a script; the others exit when it ends. Guessed tokens change nothing."""
    environment = environment | {"XLA_FLAGS": xla_flags.devices(devices)}
    with started(script("compare", processes, checkpoint, mesh), tmp_path, environment) as group:
        assert codes(group, PATIENCE, tmp_path) == [0] * processes
    found = last_line(tmp_path / "0.out")
    assert found.keys() == one_process.keys()
    for name, value in one_process.items():
        if name.startswith(("logits", "attention", "soft tokens")):  # as near as sums in another order come
            np.testing.assert_allclose(found[name], value, atol=2e-4, err_msg=name)
        elif name == "guesses":
            assert (found[name] > value == 0) == (mesh == "2,2,3")
        else:
            assert found[name] == value, name
    assert found["chat"][1]  # the second turn continued from a cache
    assert "no/such/checkpoint" in found["error"]
    assert found["mistakes"] == ["no room for the pixels"] * 2 + ["cannot be sent"] * 3
    assert found["after them"] == found["text"]


def test_a_lost_worker_is_an_error_at_once(checkpoint: Path, environment: dict[str, str], tmp_path: Path) -> None:
    victim = 2
    commands = script("lose", 3, checkpoint, "")
    with contextlib.ExitStack() as stack:
        # The victim's id is an argument of process 0, so the workers are started first.
        workers = stack.enter_context(started(commands[1:], tmp_path, environment))
        (tmp_path / "lead").mkdir()
        leading = [*commands[0][:-1], f"{workers[victim - 1].pid},SIGKILL"]
        (lead,) = stack.enter_context(started([leading], tmp_path / "lead", environment))
        assert codes([lead], PATIENCE, tmp_path / "lead") == [1]
        assert codes(workers, SOON, tmp_path) == [1, -signal.SIGKILL]
    found = last_line(tmp_path / "lead/0.out")
    assert len(found["errors"]) == 4
    for message, seconds in found["errors"]:
        assert message.startswith(f"process {victim} on ")
        assert "is lost" in message
        assert seconds < SOON
    assert found["closed"] < SOON
    assert f"process 1 gives up: process {victim} on " in (tmp_path / "0.err").read_text()


def test_workers_end_with_process_0(checkpoint: Path, environment: dict[str, str], tmp_path: Path) -> None:
    """It says why, or JAX does, which notices as soon and then kills it."""
    with started(script("lose", 2, checkpoint, "0,SIGKILL"), tmp_path, environment) as group:
        assert codes(group[:1], PATIENCE, tmp_path) == [-signal.SIGKILL]
        assert codes(group[1:], SOON, tmp_path)[0] != 0


def test_a_frozen_process_is_lost(checkpoint: Path, environment: dict[str, str], tmp_path: Path) -> None:
    """One that is stopped, and goes on when the others have given it up: process 1 of a group, process 0 of another."""
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    commands = script("lose", 2, checkpoint, "")
    with contextlib.ExitStack() as stack:
        (worker,) = stack.enter_context(started(commands[1:], first, environment))
        leading = [*commands[0][:-1], f"{worker.pid},SIGSTOP"]
        (lead,) = stack.enter_context(started([leading], tmp_path, environment))
        frozen, follower = stack.enter_context(started(script("load", 2, checkpoint, "stopped"), second, environment))
        assert codes([lead], PATIENCE, tmp_path) == [1]
        assert codes([follower], PATIENCE, second) == [1]
        for process in (worker, frozen):
            assert process.poll() is None
            process.send_signal(signal.SIGCONT)
        assert codes([worker], SOON, first) == [1]
        assert codes([frozen], SOON, second) == [1]
    found = last_line(tmp_path / "0.out")
    assert len(found["errors"]) == 4
    for message, seconds in found["errors"]:
        assert message.startswith("process 1 on ")
        assert "no sign of life" in message
        assert seconds < FROZEN
    assert "process 1 gives up" in (first / "0.err").read_text()
    assert "process 1 gives up: process 0 on " in (second / "1.err").read_text()
    assert "ProcessesLostError: process 1 on " in (second / "0.err").read_text()


def test_weights_that_differ_between_hosts_are_an_error(
    checkpoint: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    """One number differs: of a norm, as is seen before anything is read, or of a matrix that both processes hold."""
    expected = {
        "layers.1.pre_ffw_norm.scale": "layer_1/pre_ffw_norm/scale of process 1 on ",  # as it is stored
        "embedder.table": "embedder.table[",  # the part
    }
    with contextlib.ExitStack() as stack:
        groups = {}
        for name in expected:
            folder = tmp_path / name
            places = [folder / "0", folder / "1"]
            shutil.copytree(checkpoint, places[0] / "copy")
            places[1].mkdir()
            params = random_params(CONFIG)
            save_params(params | {name: params[name].at[0].add(1)}, CONFIG, places[1] / "copy")
            commands = script("load", 2, "copy", "2,1")
            groups[folder] = stack.enter_context(started(commands, folder, environment, places))
        for folder, group in groups.items():
            assert codes(group, PATIENCE, folder) == [1, 1]
    for folder, what in zip(groups, expected.values(), strict=True):
        said = [(folder / f"{i}.err").read_text() for i in range(2)]
        for text in said:
            assert "the weights are not the same on all hosts: " in text
            assert what in text
            assert "process 1 on" in text
        assert "process 1 gives up" in said[1]


def test_the_command_line(checkpoint: Path, environment: dict[str, str], tmp_path: Path) -> None:
    """`gemma-tpu generate --distributed` on every host, and on one."""
    picture = tmp_path / "picture.png"
    PIL.Image.fromarray(np.full((9, 9, 3), 90, np.uint8)).save(picture)
    command = [
        "-m",
        "gemma_tpu",
        "generate",
        str(checkpoint),
        "Hello",
        "--image",
        str(picture),
        "--max-new-tokens",
        "9",
    ]
    join = ["--distributed", "--coordinator", free_address(), "--num-processes", "2", "--process-id"]
    commands = [[*command, *join, "0"], [*command, *join, "1"], command]
    with started(commands, tmp_path, environment) as processes:
        assert codes(processes, PATIENCE, tmp_path) == [0, 0, 0]
    together, alone = ((tmp_path / f"{i}.out").read_text().splitlines()[-1] for i in (0, 2))
    assert together == alone != ""


def test_commands_that_cannot_join_say_why_in_a_line(environment: dict[str, str], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other, other_that_answers(other):
        taken = f"127.0.0.1:{other.getsockname()[1]}"
        generate = ["-m", "gemma_tpu", "generate", "gemma3-demo", "Hello", "--num-processes", "2"]
        demo = ["-m", "demo", "--port", "0", "--no-load", "--num-processes", "2"]
        commands = [
            [*generate, "--distributed", "--coordinator", taken, "--process-id", "0"],
            [*demo, "--distributed", "--coordinator", taken, "--process-id", "1"],
            [*demo, "--distributed", "--coordinator", "nonsense", "--process-id", "0"],
            [*generate, "--process-id", "0"],
        ]
        with started(commands, tmp_path, environment) as processes:
            assert codes(processes, PATIENCE, tmp_path) == [1, 1, 1, 1]
    said = [(tmp_path / f"{i}.err").read_text() for i in range(4)]
    assert [text.count("\n") for text in said] == [1, 1, 1, 1], said
    assert "in use by another program" in said[0]
    assert "takes no further process" in said[1]
    assert "HOST:PORT" in said[2]
    assert "--distributed" in said[3]


@contextlib.contextmanager
def other_that_answers(listener: socket.socket) -> Iterator[None]:
    """A program that closes what is opened."""

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                listener.accept()[0].close()

    threading.Thread(target=serve, daemon=True).start()
    yield
    listener.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def group_of_two() -> Iterator[tuple[Group, socket.socket]]:
    """A group, and the far end of its only connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        far = socket.create_connection(server.getsockname())
        near, _ = server.accept()
    with far:
        yield Group([Peer(near, "process 1 on there")]), far


def test_a_loss_is_noticed_while_nothing_is_said() -> None:
    with group_of_two() as (group, far):
        heard: queue.Queue[BaseException] = queue.Queue()
        group.watch(heard.put)
        far.shutdown(socket.SHUT_RDWR)
        assert "process 1 on there is lost" in str(heard.get(timeout=SOON))
        with pytest.raises(RuntimeError, match="process 1 on there is lost"), group.together("call"):
            pytest.fail("made a call without the other process")


def test_a_loss_ends_a_message_that_is_being_sent() -> None:
    with group_of_two() as (group, _):  # who reads nothing, so that the connection is soon full
        threading.Timer(0.5, group.fail, ["another process is lost"]).start()
        with pytest.raises(RuntimeError, match="another process is lost"), group.together("call", bytes(1 << 26)):
            pytest.fail("the message cannot have been sent")


GLOO = jax.errors.JaxRuntimeError("UNKNOWN: all-reduce failed")  # of a program whose other process is gone


def test_a_call_that_fails_first_does_not_hide_the_loss() -> None:
    with group_of_two() as (group, far):
        threading.Timer(0.3, far.close).start()
        with pytest.raises(jax.errors.JaxRuntimeError), group.together("call"):
            raise GLOO
        assert str(group.loss()).startswith("process 1 on there is lost")


def test_a_result_that_fails_first_does_not_hide_the_loss() -> None:
    """What requests are told, if the program has failed while its tokens were waited for."""
    with group_of_two() as (group, far):
        runner = object.__new__(LeadingRunner)  # of which nothing but its group is needed
        runner._group = group
        other = ValueError("no such image")
        assert runner.explained(other) is other
        threading.Timer(0.3, far.close).start()
        assert str(runner.explained(GLOO)).startswith("process 1 on there is lost")


def test_a_call_that_fails_here_ends_all() -> None:
    with group_of_two() as (group, far):
        with pytest.raises(KeyError), group.together("call"):
            raise KeyError("no such thing")
        with pytest.raises(RuntimeError, match="call failed in process 0"), group.together("call"):
            pass
        far.settimeout(SOON)
        said = b""
        while new := far.recv(4096):  # the message, then why, then the end
            said += new
        assert b"call failed in process 0" in said


def test_what_cannot_be_sent_is_nobody_else_s_error() -> None:
    with group_of_two() as (group, _):
        with pytest.raises((TypeError, AttributeError)), group.together("call", threading.Lock()):
            pytest.fail("made a call that the other process cannot know of")
        with group.together("call"):
            pass
