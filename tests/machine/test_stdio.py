"""A process outlives the readers of its output."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SPEAKING = """
import os, subprocess, sys
from stasc.machine.stdio import outlive_readers
outlive_readers()
for number in range(20000):
    print("line", number)
    print("also", number, file=sys.stderr)
subprocess.run([sys.executable, "-c", "print('child', flush=True)"], check=True)
open(sys.argv[1], "w").write("done")
"""


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": ":".join(sys.path)}


@pytest.mark.skipif(os.name == "nt", reason="POSIX pipes")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_process_goes_on_when_its_readers_are_gone(
    unbuffered: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    end = tmp_path / "end"
    command = [sys.executable, "-c", SPEAKING, str(end)]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout and process.stderr
        assert process.stdout.readline() == b"line 0\n"
        process.stdout.close()
        process.stderr.close()
        assert process.wait(60) == 0
    assert end.read_text() == "done"


@pytest.mark.skipif(os.name == "nt", reason="POSIX shell")
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_file_does_not_get_the_number_of_an_output_that_was_closed(closed: str, tmp_path: Path) -> None:
    end = tmp_path / "end"
    command = ["sh", "-c", f'exec "$0" -c "$1" "$2" {closed}', sys.executable, SPEAKING, str(end)]
    ended = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert end.read_text() == "done"


@pytest.mark.skipif(os.name == "nt", reason="POSIX pipes")
def test_help_into_a_pipe_that_nobody_reads_says_nothing(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "stasc.run", "--help"]
    ended = subprocess.run(
        command, env=environment(), cwd=tmp_path, stdout=writing, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_process_goes_on_when_there_is_no_room_for_its_output(tmp_path: Path) -> None:
    end = tmp_path / "end"
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-c", SPEAKING, str(end)]
        ended = subprocess.run(command, env=environment(), stdout=full, stderr=full, check=False)
    assert ended.returncode == 0
    assert end.read_text() == "done"
