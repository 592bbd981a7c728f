"""The first signal ends a process in order, the second one at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.skipif(os.name == "nt", reason="sends POSIX signals")

INT, TERM = signal.SIGINT, signal.SIGTERM

STUCK = """
import ctypes
mutex = ctypes.create_string_buffer(256)
lock = ctypes.CDLL(None).pthread_mutex_lock
lock(mutex)
threading.Timer(0.5, ready).start()
"""


def ending(body: str, *sent: signal.Signals, grace_s: float = 60, ignored: bool = False) -> tuple[int, str]:
    """Returns status and output of a process that runs `body` and gets a signal whenever it prints "ready"."""
    script = f"""
import os, sys, time, signal, threading
from stasc.machine import signals
signals.GRACE_S = {grace_s}
signals.install()
def ready(): print("ready", flush=True)
try:
{chr(10).join("    " + line for line in body.strip().splitlines())}
except signals.Stopped as stop:
    print(stop, flush=True)
    sys.exit(stop.status)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
        preexec_fn=lambda: signal.signal(INT, signal.SIG_IGN if ignored else signal.SIG_DFL),
    )
    assert process.stdout
    for number in sent:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
    output, _ = process.communicate(timeout=20)
    return process.returncode, output


@pytest.mark.parametrize(("number", "status"), [(INT, 130), (TERM, 143)])
def test_a_signal_is_raised_in_the_main_thread_and_its_status_tells_which(number: signal.Signals, status: int) -> None:
    assert ending("ready()\ntime.sleep(60)", number) == (status, f"{number.name}\n")


@pytest.mark.parametrize("second", [INT, TERM])
def test_the_second_signal_ends_the_process_at_once(second: signal.Signals) -> None:
    body = """
try:
    ready()
    time.sleep(60)
finally:
    ready()
    time.sleep(60)
"""
    assert ending(body, TERM, second) == (-second, "")


def test_the_second_signal_ends_a_process_that_is_stuck_in_native_code() -> None:
    assert ending(STUCK + "threading.Timer(1, ready).start()\nlock(mutex)", TERM, TERM) == (143, "")


@pytest.mark.parametrize(
    "stuck",
    [
        STUCK + "lock(mutex)",
        "threading.Thread(target=time.sleep, args=(60,)).start()\nready()\ntime.sleep(60)",
    ],
    ids=["native code", "another thread"],
)
def test_a_process_that_cannot_stop_ends_when_its_time_is_up(stuck: str) -> None:
    began = time.monotonic()
    status, _ = ending(stuck, TERM, grace_s=0.5)
    assert status == 143 and time.monotonic() - began < 10


def test_what_made_another_error_of_the_signal_is_found_out() -> None:
    body = """
try:
    ready()
    time.sleep(60)
except BaseException:
    pass
signals.check()
"""
    assert ending(body, TERM) == (143, "SIGTERM\n")


def test_a_signal_that_is_ignored_from_the_start_stays_ignored() -> None:
    assert ending("ready()\ntime.sleep(0.3)\nprint('done')", INT, ignored=True) == (0, "done\n")


@pytest.mark.parametrize(
    ("own_handler", "status"), [("pass", -15), ("signal.signal(signal.SIGTERM, lambda *_: os._exit(5))", 5)]
)
def test_a_forked_process_has_the_usual_signals_and_its_end_is_not_ours(own_handler: str, status: int) -> None:
    body = f"""
child = os.fork()
if not child:
    {own_handler}
    time.sleep(60)
time.sleep(0.3)
os.kill(child, signal.SIGTERM)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
time.sleep(0.5)
"""
    assert ending(body, grace_s=0.1) == (0, f"{status}\n")


def test_the_time_that_the_end_may_take_is_enough_for_wandb_and_less_than_half_a_minute() -> None:
    from stasc.machine.signals import GRACE_S
    from stasc.tracking import service, wandb

    assert wandb.UPLOAD_S + 2 * service.SHUT_DOWN_S < GRACE_S < 30


def test_importing_the_command_changes_no_signal() -> None:
    before = signal.getsignal(TERM)
    import stasc.run  # noqa: F401

    assert signal.getsignal(TERM) is before
