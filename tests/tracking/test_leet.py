"""An offline run in the terminal: `wandb leet`, the command that its log names."""

from __future__ import annotations

import os
import pty
import re
import select
import sys
import time
from pathlib import Path

import pytest

ANSWERS = {  # what a terminal answers to the questions that the program asks of it
    b"\x1b[6n": b"\x1b[1;1R",
    b"\x1b[c": b"\x1b[?62;c",
    b"]10;?": b"\x1b]10;rgb:ffff/ffff/ffff\x1b\\",
    b"]11;?": b"\x1b]11;rgb:0000/0000/0000\x1b\\",
}
LIMIT_S = 30


def shown(run: Path, until: str) -> tuple[str, int]:
    """Returns what the program shows until a text appears, and its exit status once `q` was pressed."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ |= {"TERM": "xterm-256color", "COLUMNS": "200", "LINES": "60"}
        os.execv(sys.executable, [sys.executable, "-m", "wandb", "leet", str(run)])
    text, quitting, begun = "", False, time.monotonic()
    while time.monotonic() - begun < LIMIT_S:
        if not select.select([terminal], [], [], 0.2)[0]:
            continue
        try:
            data = os.read(terminal, 65536)
        except OSError:  # the program has ended
            break
        for question, answer in ANSWERS.items():
            if question in data:
                os.write(terminal, answer)
        text += re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", data.decode(errors="replace"))
        if until in text and not quitting:
            os.write(terminal, b"q")
            quitting = True
    _, status = os.waitpid(pid, 0)
    return text, os.waitstatus_to_exitcode(status)


@pytest.mark.slow
def test_an_offline_run_is_shown_in_the_terminal(mirrored: Path) -> None:
    (job, *_) = sorted((mirrored / "multirun" / "mirrored").glob("*/wandb/offline-run-*"))
    text, status = shown(job, until="accuracy/")
    assert status == 0
    assert "accuracy/" in text
