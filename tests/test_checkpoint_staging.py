"""Writing a directory whole or not at all: ended by a signal, killed, twice at once, on a disk that is full."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
from collections import namedtuple
from pathlib import Path

import checkpoint_samples as samples
import pytest
from checkpoint_samples import CONFIGS

from gemma_tpu import signals
from gemma_tpu.checkpoint import CheckpointError, bucket, convert, disk, locks, open_checkpoint
from gemma_tpu.checkpoint.staging import PARTIAL, staging

LAYOUTS = ["orbax-flat", "safetensors"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    sample = samples.sample(CONFIGS["one-kv-14"])
    return samples.save_hf(tmp_path / "src", sample.hf, samples.hf_config(sample.config))


def start(program: str, *arguments: object, **options) -> subprocess.Popen:
    """Runs `program` until it prints "reached"; `wait` in it does that, and then waits for the signal that comes."""
    wait = "import signal, sys, time\nsignal.signal(signal.SIGHUP, signal.SIG_DFL)\n"  # under nohup it is ignored
    wait += "def wait(*_, **__):\n    print('reached', flush=True)\n    time.sleep(600)\n"
    process = subprocess.Popen(
        [sys.executable, "-c", wait + textwrap.dedent(program), *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}, **options,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "reached\n"
    return process


COMMAND = """
import gc
from pathlib import Path
from gemma_tpu.checkpoint import hf
from gemma_tpu.cli.main import main
src, dst, to, where = sys.argv[1:]
if where == "amid the arrays":
    hf.SafetensorsArray.read = wait
elif where == "in a garbage collection":  # where what is raised is dropped, as it is in callbacks of C code
    read = hf.SafetensorsArray.read
    def collect(self, *index):
        gc.callbacks.append(wait)
        gc.collect()
        return read(self, *index)
    hf.SafetensorsArray.read = collect
elif where == "before it has a directory":
    mkdir = Path.mkdir
    def make(self, *arguments, **options):
        mkdir(self, *arguments, **options)
        if "partial" in self.name:
            wait()
    Path.mkdir = make
else:
    Path.write_text = wait
sys.exit(main(["convert", src, dst, "--to", to]))
"""


@pytest.mark.parametrize(
    ("to", "where", "sent", "code"),
    [
        ("orbax-flat", "amid the arrays", signal.SIGTERM, 143),
        ("safetensors", "before config.json", signal.SIGHUP, 129),
        ("orbax", "amid the arrays", signal.SIGINT, 130),
        ("orbax", "in a garbage collection", signal.SIGTERM, 143),
        ("orbax", "before it has a directory", signal.SIGTERM, 143),
    ],
)
def test_a_signal_ends_a_conversion_cleanly(to, where, sent, code, source, tmp_path):
    process = start(COMMAND, source, tmp_path / "dst", to, where)
    assert len(list(tmp_path.glob("dst.partial-*"))) == 1
    process.send_signal(sent)
    out, err = process.communicate(timeout=240)
    assert process.returncode == code
    assert (out, err) == ("", "")
    assert [path.name for path in tmp_path.iterdir()] == ["src"]


def test_a_signal_that_is_ignored_stays_so():
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.raise_exit(), signals.exit_at_once():
            signal.raise_signal(signal.SIGHUP)
        with signals.raise_exit(), pytest.raises(SystemExit, match="143"):
            signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)


STAGE = """
from gemma_tpu.checkpoint.staging import staging
with staging(sys.argv[1], 0, exact=False) as path:
    path.mkdir()
    (path / "file").write_text("theirs")
    wait()
"""


def stage(path: Path, text: str = "ours") -> None:
    with staging(path, 0, exact=False) as work:
        work.mkdir()
        (work / "file").write_text(text)


def test_what_a_killed_run_left_is_removed_by_the_next(tmp_path):
    process = start(STAGE, tmp_path / "dst")
    process.kill()
    process.communicate()
    (tmp_path / "dst.partial.txt").touch()
    (left,) = tmp_path.glob("dst.partial-*")
    shutil.copytree(left, other := tmp_path / left.name.replace("dst", "other"))
    with pytest.raises(CheckpointError, match="left behind by a conversion"):
        open_checkpoint(left / "dst")
    stage(tmp_path / "dst")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dst", "dst.partial.txt", other.name]


def test_nothing_but_leftovers_is_removed(source, tmp_path):
    """Not a checkpoint of a similar name, not notes, not a program's own lock, not what has our name and no lock."""
    version = convert(source, tmp_path / "dst.partial-v2", to="safetensors", progress=False)
    kept = [tmp_path / name for name in ("dst.partial-notes", f"dst{PARTIAL}mine", "dst.partial-4321")]
    for path in kept:
        path.mkdir()
        (path / "file").touch()
    (kept[-1] / ".lock").touch()
    before = sorted(tmp_path.rglob("*"))
    stage(tmp_path / "dst")
    assert sorted(set(tmp_path.rglob("*")) - {tmp_path / "dst", tmp_path / "dst" / "file"}) == before
    assert open_checkpoint(version).kind == "safetensors"


def test_two_at_once(tmp_path):
    """Neither removes what the other one writes, and who is done first has the place."""
    process = start(STAGE, tmp_path / "dst")
    (theirs,) = tmp_path.glob("dst.partial-*")
    stage(tmp_path / "dst")
    assert (theirs / "dst" / "file").read_text() == "theirs"
    assert (tmp_path / "dst" / "file").read_text() == "ours"
    process.kill()
    process.communicate()
    late = staging(tmp_path / "late", 0, exact=False)
    late.__enter__().mkdir()
    stage(tmp_path / "late")
    with pytest.raises(CheckpointError, match="late: exists already"):
        late.__exit__(None, None, None)
    assert (tmp_path / "late" / "file").read_text() == "ours"
    assert not list(tmp_path.glob("late.partial-*"))


def test_a_directory_taken_for_a_leftover_is_left_for_another(tmp_path, monkeypatch):
    """Between its making and its lock, another run may take it for one."""
    real, taken = locks.acquire, []

    def take(path: Path, **options):
        if not taken:
            taken.append(path.parent)
            shutil.rmtree(path.parent)
        return real(path, **options)

    monkeypatch.setattr(locks, "acquire", take)
    stage(tmp_path / "dst")
    assert len(taken) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["dst"]


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    """Nothing there can be known to be a leftover, and nothing is removed."""

    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    left = tmp_path / f"dst{PARTIAL}4321"
    left.mkdir()
    (left / ".lock").touch()
    stage(tmp_path / "dst")
    with locks.hold(tmp_path / "lock", "x"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["dst", left.name]


def test_everything_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    events, sync, rename = [], os.fsync, os.rename

    def fsync(descriptor: int) -> None:
        events.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", lambda *paths: (events.append("rename"), rename(*paths)))
    with staging(tmp_path / "dst", 0, exact=False) as work:
        (work / "d").mkdir(parents=True)
        (work / "d" / "file").touch()
    *before, renamed, after = events
    assert {Path(path).relative_to(work).as_posix() for path in before} == {".", "d", "d/file"}
    assert (renamed, after) == ("rename", str(tmp_path))


@pytest.mark.parametrize("to", LAYOUTS)
def test_a_file_that_may_not_grow(to, source, tmp_path):
    """One line, and nothing left: also where Orbax's threads go on writing after the first error."""
    command = [sys.executable, "-m", "gemma_tpu", "convert", str(source), str(tmp_path / "dst"), "--to", to]
    limit = (4096, resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    reason = "a file grew larger than the file system, or `ulimit -f`, allows"
    assert done.stderr == f"gemma-tpu: {tmp_path}/dst: cannot be written: {reason}\n"
    assert [path.name for path in tmp_path.iterdir()] == ["src"]


@pytest.fixture
def small_disk(tmp_path: Path):
    path = tmp_path / "disk"
    path.mkdir()
    if (
        shutil.which("mount") is None
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32k", "none", path]).returncode
    ):
        pytest.skip("no file system can be mounted here")
    yield path
    subprocess.run(["umount", path], check=True)


@pytest.mark.parametrize("to", LAYOUTS)
def test_a_full_disk(to, source, small_disk, monkeypatch):
    monkeypatch.setattr(disk, "require_free", lambda *_: None)  # another program has filled it since
    with pytest.raises(
        CheckpointError,
        match=r"disk/dst: cannot be written: no space left on the disk: it takes up to .* kB, and 32\.8 kB were free$",
    ):
        convert(source, small_disk / "dst", to=to, progress=False)
    assert list(small_disk.iterdir()) == []


Usage = namedtuple("Usage", "total used free")


def test_too_little_room_is_said_before_anything_is_written(source, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(9, 9, 9_000))
    with pytest.raises(CheckpointError, match=r"deep/dst: needs \d+\.\d kB, and 9\.0 kB are free there: make room"):
        convert(source, tmp_path / "deep" / "dst", to="safetensors", progress=False)
    assert list((tmp_path / "deep").iterdir()) == []
    convert(source, tmp_path / "dst", to="orbax", progress=False)  # which may be smaller than what it holds


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "full"), "no space left on the disk: it takes up to 8.6 GB, and 3.2 MB were free"),
        (OSError(errno.EDQUOT, "quota"), "the disk quota is used up: it takes"),
        (OSError(errno.EROFS, "ro"), "the file system is read-only$"),
        (PermissionError(errno.EACCES, "no"), "no permission to write there$"),
        (ValueError("RESOURCE_EXHAUSTED: Error writing x: No space left [os_error_code='28']"), "no space left on"),
        (ValueError("bad\nvalue"), None),
    ],
)
def test_what_a_failed_write_means(error, message, tmp_path):
    found = disk.write_error(tmp_path, error, 8_600_000_000, 3_200_000)
    outer = RuntimeError("outer")
    outer.__cause__ = error
    assert str(found) == str(disk.write_error(tmp_path, outer, 8_600_000_000, 3_200_000))
    if message is None:
        assert found is None
    else:
        with pytest.raises(CheckpointError, match=f"{tmp_path}: cannot be written: {message}"):
            raise found


def test_a_download_for_which_there_is_no_room(tmp_path, monkeypatch):
    monkeypatch.setattr(bucket, "_list", lambda prefix: [{"name": f"{prefix}x", "size": "70000"}])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(9, 9, 9_000))
    with pytest.raises(CheckpointError, match=r"name\.part: needs 140\.0 kB, and 9\.0 kB are free there"):
        bucket.fetch("name", tmp_path / "name", False)
    assert list(tmp_path.iterdir()) == []


def test_a_lock_is_waited_for(tmp_path, caplog):
    """The file is gone afterwards; who waited for it takes one of his own."""
    program = """
    from pathlib import Path
    from gemma_tpu.checkpoint import locks
    with locks.hold(Path(sys.argv[1]), "x"):
        print("reached", flush=True)
        sys.stdin.read()
        Path(sys.argv[2]).touch()
    """
    process = start(program, tmp_path / "lock", tmp_path / "done", stdin=subprocess.PIPE)
    assert locks.acquire(tmp_path / "lock") is None
    assert process.stdin is not None
    process.stdin.close()
    with locks.hold(tmp_path / "lock", "a model"):
        assert (tmp_path / "done").exists()
    process.wait()
    assert not (tmp_path / "lock").exists()
