"""Dead processes come back at once, stuck ones are ended; with a real supervisord, stand-ins for the processes."""
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from launched import Launched, is_running, settings_with, wait_for

from pipeline.watcher import BAD_LIVES_MAX, Supervisor, Watcher
from shm.segments import COUNTER_WORDS, ROLES, CounterWord, Role

MEMBERS = ("journaler", "matcher", "gateway-0")


@pytest.fixture(scope="module")
def exchange(tmp_path_factory):
    settings = settings_with(watcher={"stuck_after_ms": 2000})
    with Launched(tmp_path_factory.mktemp("watched") / "data", settings) as exchange:
        exchange.serving()
        time.sleep(1.1)  # every page was seen
        yield exchange


@pytest.mark.parametrize("name", MEMBERS)
def test_a_killed_process_runs_again_in_under_a_second(exchange, name):
    old_pid = exchange.kill(name)
    killed_at = time.monotonic()
    exchange.back(name, old_pid)
    assert time.monotonic() - killed_at < 1.0
    wait_for(lambda: any(f"{name} (process {old_pid}) died" in line for line in exchange.fatal_lines()),
             "the death is told")


def test_processes_killed_together_come_back_together(exchange):
    old_pids = {name: exchange.kill(name) for name in MEMBERS}
    killed_at = time.monotonic()
    for name, old_pid in old_pids.items():
        exchange.back(name, old_pid)
    assert time.monotonic() - killed_at < 2.0


def test_a_process_killed_again_right_after_it_came_back_comes_back_again(exchange):
    for _ in range(3):
        old_pid = exchange.kill("matcher")
        exchange.back("matcher", old_pid)


def test_a_stopped_process_is_killed_for_its_missing_heartbeat_and_comes_back(exchange):
    old_pid = exchange.kill("matcher", signal.SIGSTOP)
    exchange.back("matcher", old_pid)
    assert not is_running(old_pid)
    stuck = [line for line in exchange.fatal_lines() if "stuck" in line]
    assert any(f"matcher (process {old_pid}) is stuck" in line and "stuck_after_ms=2000" in line for line in stuck)


def test_a_killed_watcher_comes_back_and_goes_on_watching(exchange):
    old_pid = exchange.kill("watcher")
    exchange.back("watcher", old_pid)
    time.sleep(1.1)
    old_pid = exchange.kill("gateway-0")
    killed_at = time.monotonic()
    exchange.back("gateway-0", old_pid)
    assert time.monotonic() - killed_at < 1.0


def test_a_process_that_an_operator_stops_stays_stopped_and_is_watched_again_once_started(exchange):
    # given a gateway stopped through supervisorctl
    conf = exchange.data / "run" / "supervisord.conf"
    supervisorctl = [sys.executable, "-m", "supervisor.supervisorctl", "-c", str(conf)]
    subprocess.run([*supervisorctl, "stop", "gateway:gateway-0"], check=True, stdout=subprocess.DEVNULL)
    time.sleep(1.5)
    assert exchange.pid("gateway-0") == 0
    # when it is started again and later killed
    subprocess.run([*supervisorctl, "start", "gateway:gateway-0"], check=True, stdout=subprocess.DEVNULL)
    wait_for(lambda: exchange.is_ready("gateway-0"), "the gateway")
    time.sleep(1.1)
    old_pid = exchange.kill("gateway-0")
    killed_at = time.monotonic()
    # then it is back at once
    exchange.back("gateway-0", old_pid)
    assert time.monotonic() - killed_at < 1.0


def test_a_process_that_dies_again_and_again_is_told_of_once_and_still_comes_back(exchange):
    fails = exchange.data / "fail-matcher"
    fails.touch()
    exchange.kill("matcher")
    wait_for(lambda: any("times in a row" in line for line in exchange.fatal_lines()), "the word on it")
    starts = exchange.log("matcher").count("matcher starts")
    time.sleep(4)
    later = exchange.log("matcher").count("matcher starts")
    fails.unlink()
    wait_for(lambda: exchange.is_ready("matcher"), "the matcher")
    assert 1 <= later - starts <= 12  # of some 40 that are possible
    told = [line for line in exchange.fatal_lines() if f"matcher died {BAD_LIVES_MAX} times in a row" in line]
    assert len(told) == 1


def pages_with(row, pid, heartbeat_age_s):
    pages = np.zeros((ROLES, COUNTER_WORDS), np.int64)
    pages[row, CounterWord.PID] = pid
    pages[row, CounterWord.STARTED_NS] = time.time_ns()
    pages[row, CounterWord.HEARTBEAT_NS] = time.monotonic_ns() - int(heartbeat_age_s * 1e9)
    return pages


@pytest.fixture
def stranger():
    """A process that is no child of supervisord, as a page left by an earlier run may name one."""
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


@pytest.fixture
def watcher_on(exchange):
    made = []

    def make(pages, url=None):
        earlier = signal.set_wakeup_fd(-1)
        watcher = Watcher(pages, Supervisor(url) if url else exchange.supervisor, exchange.data, 2000)
        made.append((earlier, watcher))
        return watcher
    yield make
    for earlier, _watcher in made:
        signal.set_wakeup_fd(earlier)


def test_a_process_that_is_no_child_of_supervisord_is_never_killed(watcher_on, stranger):
    watcher = watcher_on(pages_with(Role.MATCHER, stranger.pid, heartbeat_age_s=60))
    for _ in range(3):
        watcher.step()
    assert stranger.poll() is None and not watcher.members


def test_an_unreachable_supervisord_is_asked_again_quietly(watcher_on, stranger, exchange, capfd, tmp_path):
    watcher = watcher_on(pages_with(Role.MATCHER, stranger.pid, heartbeat_age_s=60), f"unix://{tmp_path}/none.sock")
    for _ in range(3):
        watcher.step()
    assert stranger.poll() is None and not watcher.members
    assert capfd.readouterr() == ("", "")
    # when it answers again, what was not decided is decided
    watcher.supervisor = exchange.supervisor
    pid = exchange.pid("matcher")
    watcher.pages[Role.MATCHER, CounterWord.PID] = pid
    watcher.pages[Role.MATCHER, CounterWord.HEARTBEAT_NS] = 0
    watcher.step()
    assert [member.pid for member in watcher.members.values()] == [pid]


def test_old_heartbeats_are_no_sign_of_a_stuck_process_when_the_watcher_itself_was_held_up(watcher_on, exchange):
    pid = exchange.pid("gateway-0")
    watcher = watcher_on(pages_with(Role.GATEWAY, pid, heartbeat_age_s=60))
    watcher._last_look -= 60  # as after a pause of the whole host
    watcher.step()
    watcher.step()
    assert exchange.pid("gateway-0") == pid and os.path.exists(f"/proc/{pid}")
