"""Shared memory is attached where it is ours and whole, else refused in one sentence or made anew, all together."""
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import uuid
from dataclasses import replace
from pathlib import Path

import numpy as np
import posix_ipc
import pytest

from shm import segments
from shm.fatal_log import fatal
from shm.process import Process, instance_of, memory_id
from shm.records import COMMAND, LAYOUT_VERSION
from shm.segments import CommandWord, RingSizes, Role, SegmentError, posix_name, shapes
from tests import litmus
from tests.launched import ROOT, is_running, wait_for

SIZES = RingSizes(gateways=2, command_slots=64, reply_slots=128, journal_slots=64, event_slots=64)
NAMES = list(shapes(SIZES))


@pytest.fixture
def shared():
    with litmus.shared_memory(SIZES) as shared:
        yield shared


def file_of(instance, segment):
    return Path("/dev/shm") / posix_name(instance, segment)[1:]


def refusal(instance, sizes=SIZES):
    """The one sentence with which attaching is refused."""
    with pytest.raises(SegmentError) as refused:
        segments.attach(instance, sizes)
    assert "\n" not in str(refused.value)
    return str(refused.value)


# Attaching.

def test_what_one_process_writes_another_reads(shared):
    instance, memory = shared
    memory.commands.words[1, CommandWord.TAIL] = 7
    segments.slot_view(memory.commands, COMMAND)[1, 63]["amount"] = 8
    other = segments.attach(instance, SIZES)
    assert other.generation == 1
    assert other.commands.words[1, CommandWord.TAIL] == 7
    assert segments.slot_view(other.commands, COMMAND)[1, 63]["amount"] == 8
    assert np.count_nonzero(other.commands.slots) == 1


def test_a_segment_is_as_large_as_its_shape_says_really_there_and_for_its_user_alone(shared):
    instance, _ = shared
    for name, shape in shapes(SIZES).items():
        status = file_of(instance, name).stat()
        assert status.st_size == shape.bytes <= status.st_blocks * 512
        assert status.st_mode & 0o777 == 0o600


def test_the_defaults_fit_the_64_mib_of_a_container():
    assert sum(shape.bytes for shape in shapes(RingSizes()).values()) < 60 * 2**20


def test_an_inspector_cannot_write(shared):
    instance, _ = shared
    memory = segments.attach(instance, SIZES, write=False)
    with pytest.raises(ValueError, match="read-only"):
        memory.journal.words[0, 0] = 1


@pytest.mark.parametrize("field, value, words", [
    ("magic", 0x1234, "is not an exchange segment (magic 0x1234)"),
    ("ready", 0, "was never finished by its maker"),
    ("layout", LAYOUT_VERSION + 1, f"has layout version {LAYOUT_VERSION + 1}, this program has {LAYOUT_VERSION}"),
    ("capacity", 32, "has (rows, words, capacity, slot bytes) "),
    ("slot_bytes", 8, "has (rows, words, capacity, slot bytes) "),
    ("generation", 9, "the segments are of different generations: "),
])
@pytest.mark.parametrize("segment", ["commands", "counters"])
def test_a_segment_that_is_not_what_it_should_be_is_refused_in_one_sentence(shared, segment, field, value, words):
    instance, memory = shared
    getattr(memory, segment).header[field] = value
    said = refusal(instance)
    assert words in said and posix_name(instance, segment) in said


def test_another_instance_is_named(shared):
    instance, memory = shared
    other = uuid.uuid4()
    memory.events.header["instance"] = np.frombuffer(other.bytes, np.uint8)
    assert refusal(instance) == f"{posix_name(instance, 'events')} belongs to instance {other}, not to {instance}"


def test_other_ring_sizes_are_refused_with_both(shared):
    instance, _ = shared
    said = refusal(instance, replace(SIZES, command_slots=128))
    assert said == (f"{posix_name(instance, 'commands')} has (rows, words, capacity, slot bytes) (2, 64, 64, 192),"
                    " the configuration asks for (2, 64, 128, 192)")


def test_a_missing_segment_is_named(shared):
    instance, _ = shared
    posix_ipc.unlink_shared_memory(posix_name(instance, "replies"))
    assert refusal(instance) == f"{posix_name(instance, 'replies')} is missing"


@pytest.mark.parametrize("size", [0, 100, 4096, 4097])
def test_a_segment_cut_short_is_refused_and_not_touched_beyond_its_end(shared, size):
    instance, _ = shared
    os.truncate(file_of(instance, "journal"), size)
    assert f"{posix_name(instance, 'journal')} has {size} bytes" in refusal(instance)


def test_a_segment_of_another_user_is_refused_in_one_sentence(shared, monkeypatch):
    def denied(*_arguments, **_options):
        raise posix_ipc.PermissionsError("No permission to use this segment")
    instance, _ = shared
    monkeypatch.setattr(posix_ipc, "SharedMemory", denied)
    assert refusal(instance) == f"{posix_name(instance, 'commands')} belongs to another user"
    monkeypatch.setattr(posix_ipc, "unlink_shared_memory", denied)
    with pytest.raises(SegmentError, match="belongs to another user"):
        segments.create(instance, SIZES, 2)


# Making.

def test_made_anew_all_segments_are_empty_and_of_the_new_generation(shared):
    instance, memory = shared
    memory.commands.words[:] = 5
    again = segments.create(instance, SIZES, 2)
    assert segments.attach(instance, SIZES).generation == again.generation == 2
    assert np.count_nonzero(segments.attach(instance, SIZES).commands.words) == 0
    assert (memory.commands.words == 5).all()  # who is still attached keeps its own


def test_another_instance_s_segments_are_never_touched(shared):
    instance, memory = shared
    memory.sleepers.words[3, 0] = 9
    with litmus.shared_memory(SIZES) as (other, _):
        assert other != instance
        segments.create(other, SIZES, 2)
    assert not file_of(other, "sleepers").exists()
    assert segments.attach(instance, SIZES).sleepers.words[3, 0] == 9


IN_A_SMALL_DEV_SHM = """
import sys, uuid
from shm import segments
instance = uuid.uuid4()
try:
    segments.create(instance, segments.RingSizes(), 1)
except segments.SegmentError as refused:
    print(refused)
import os
print(os.listdir("/dev/shm"))
"""


def test_a_dev_shm_that_is_too_small_is_said_with_needed_and_available_bytes():
    unshare = [shutil.which("unshare") or pytest.skip("there is no unshare command here"), "--mount"]
    if os.geteuid() != 0:
        unshare.append("--map-root-user")
    mount = subprocess.run([*unshare, "mount", "-t", "tmpfs", "tmpfs", "/dev/shm"], capture_output=True, text=True)
    if mount.returncode != 0:
        pytest.skip(f"no private /dev/shm can be mounted here: {mount.stderr.strip()}")
    said = subprocess.run(
        [*unshare, "sh", "-c", 'mount -t tmpfs -o size=1048576 tmpfs /dev/shm && exec "$@"', "sh", sys.executable, "-c",
         IN_A_SMALL_DEV_SHM], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    needed = sum(shape.bytes for shape in shapes(RingSizes()).values())
    assert said == [
        f"the shared memory segments need {needed} bytes and /dev/shm has 1048576 free (No space left on device): make"
        " /dev/shm larger or the [rings] of the configuration smaller",
        "[]"]


# Starting.

class Member:
    """A process of an exchange that only starts, tells its generation, and stays until it is ended."""

    def __init__(self, data, name, role, sizes=SIZES):
        self.told, self.errors = data / f"{name}.told", data / f"{name}.errors"
        self.told.unlink(missing_ok=True)
        self.pid = litmus.fork(self._run, data, name, role, sizes)
        self.status = None
        wait_for(lambda: self.told.exists() or self.has_ended(), f"{name} started or refused")
        self.generation = json.loads(self.told.read_text()) if self.told.exists() else None

    def _run(self, data, name, role, sizes):
        sys.stderr = self.errors.open("w", encoding="utf-8")
        process = Process(name, role, data, sizes)
        unready = self.told.with_suffix(".unready")
        unready.write_text(json.dumps(process.memory.generation))
        os.replace(unready, self.told)
        while not process.stopping:
            time.sleep(0.01)

    def has_ended(self):
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.status = status if pid else None
        return self.status is not None

    def said(self):
        return self.errors.read_text()

    def end(self, number=signal.SIGTERM):
        if not self.has_ended():
            os.kill(self.pid, number)
            _, self.status = os.waitpid(self.pid, 0)


@pytest.fixture
def data(tmp_path):
    yield tmp_path
    segments.unlink(memory_id(tmp_path))


@pytest.fixture
def start(data):
    """Starts members of one data directory; all are ended afterwards."""
    members = []

    def start(name, role, sizes=SIZES):
        members.append(Member(data, name, role, sizes))
        return members[-1]
    yield start
    for member in members:
        member.end(signal.SIGKILL)


def test_the_first_to_start_makes_the_segments_and_the_next_attaches(start):
    journaler = start("journaler", Role.JOURNALER)
    matcher = start("matcher", Role.MATCHER)
    assert journaler.generation == matcher.generation > 0
    assert "is missing; all segments made anew, generation" in journaler.said()
    assert matcher.said() == ""


def test_after_a_clean_or_a_hard_end_the_segments_are_used_again(start):
    first = start("matcher", Role.MATCHER)
    first.end()
    second = start("matcher", Role.MATCHER)
    second.end(signal.SIGKILL)
    assert start("matcher", Role.MATCHER).generation == second.generation == first.generation


@pytest.mark.parametrize("segment", NAMES)
def test_where_one_is_missing_all_are_made_anew_together_in_a_new_generation(start, data, segment):
    first = start("matcher", Role.MATCHER)
    first.end()
    instance = memory_id(data)
    before = {name: file_of(instance, name).stat().st_ino for name in NAMES}
    posix_ipc.unlink_shared_memory(posix_name(instance, segment))
    second = start("matcher", Role.MATCHER)
    assert second.generation > first.generation
    assert second.said().endswith(f"Z matcher[{second.pid}]: {posix_name(instance, segment)} is missing; all segments"
                                  f" made anew, generation {second.generation}\n")
    memory = segments.attach(instance, SIZES)
    assert memory.generation == second.generation
    assert all(file_of(instance, name).stat().st_ino != inode for name, inode in before.items())


def test_other_sizes_another_layout_and_a_half_made_segment_are_reasons_too(start, data):
    start("matcher", Role.MATCHER).end()
    generations = []
    for spoil in (lambda memory: None,
                  lambda memory: memory.journal.header.__setitem__("layout", LAYOUT_VERSION + 1),
                  lambda memory: memory.events.header.__setitem__("ready", 0)):
        sizes = replace(SIZES, journal_slots=128)
        if generations:
            spoil(segments.attach(memory_id(data), sizes))
        member = start("matcher", Role.MATCHER, sizes)
        member.end()
        generations.append(member.generation)
    assert generations[0] < generations[1] < generations[2]


@pytest.mark.parametrize("damage", ["", "\n", "a line", "12.5"])
def test_a_damaged_generation_is_replaced_by_a_later_one(start, data, damage):
    first = start("matcher", Role.MATCHER)
    first.end()
    segments.unlink(memory_id(data))
    (data / "generation").write_text(damage)
    second = start("matcher", Role.MATCHER)
    assert second.generation >= first.generation > 0
    assert (data / "generation").read_text() == f"{second.generation}\n"


def test_a_start_leaves_other_instances_alone(start, shared):
    instance, memory = shared
    memory.counters.words[5, 5] = 55
    start("matcher", Role.MATCHER)
    assert segments.attach(instance, SIZES).counters.words[5, 5] == 55


def test_while_somebody_runs_on_the_old_ones_nobody_makes_them_anew(start, data):
    matcher = start("matcher", Role.MATCHER)
    instance = memory_id(data)
    posix_ipc.unlink_shared_memory(posix_name(instance, "events"))
    inode = file_of(instance, "commands").stat().st_ino
    refused = start("journaler", Role.JOURNALER)
    sentence = (f"{posix_name(instance, 'events')} is missing, and matcher (process {matcher.pid}) still run on the old"
                " ones: stop the exchange and start it again")
    assert refused.generation is None and os.WEXITSTATUS(refused.status) == 1
    assert refused.said().endswith(f"Z journaler[{refused.pid}]: fatal: {sentence}\n")
    fatal = json.loads((data / "log" / "fatal.log").read_text())
    assert (fatal["process"], fatal["text"]) == ("journaler", sentence)
    assert file_of(instance, "commands").stat().st_ino == inode
    matcher.end(signal.SIGKILL)
    assert start("journaler", Role.JOURNALER).generation > matcher.generation


@pytest.mark.parametrize("number", [signal.SIGSTOP, None])
def test_a_role_is_held_by_one_process_even_while_it_is_stopped(start, data, number):
    first = start("matcher", Role.MATCHER)
    if number:
        os.kill(first.pid, number)
    second = start("matcher", Role.MATCHER)
    assert second.generation is None
    assert second.said().endswith(f": fatal: matcher already runs on {data} as process {first.pid}\n")


def test_a_generation_is_never_used_twice_whatever_the_clock_and_the_file_say(start, data):
    first = start("matcher", Role.MATCHER)
    first.end()
    assert first.generation >= int(time.time()) - 60
    (data / "generation").write_text(f"{2**40}\n")
    segments.unlink(memory_id(data))
    second = start("matcher", Role.MATCHER)
    second.end()
    assert second.generation == 2**40 + 1


# Members of an exchange.

CHILD = """
import sys, time
from shm.process import die_with_parent
sys.stdin.read()
die_with_parent()
print("alive", file=sys.stderr, flush=True)
time.sleep(600)
"""


PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {CHILD!r}], stdout=subprocess.PIPE)"


@pytest.mark.parametrize("parent_ends, words", [
    (True, "the parent ended while this process started"), (False, "alive")])
def test_a_process_whose_parent_ended_while_it_started_ends(tmp_path, parent_ends, words):
    said = tmp_path / "said"
    go, hold = os.pipe()       # the child goes on once nobody holds the other end
    with open(said, "w", encoding="utf-8") as errors:
        parent = subprocess.Popen(
            [sys.executable, "-c", PARENT], cwd=ROOT, stdin=go, stdout=subprocess.DEVNULL, stderr=errors)
    os.close(go)
    wait_for(lambda: children_of(parent.pid), "the child")
    child, = children_of(parent.pid)
    if parent_ends:
        parent.kill()
        parent.wait()
        wait_for(lambda: parent_of(child) != parent.pid, "the child has another parent")
    os.close(hold)
    wait_for(lambda: words in said.read_text(), words)
    parent.kill()
    parent.wait()
    wait_for(lambda: not is_running(child), "the end of the child")


def children_of(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def parent_of(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_an_alert_that_cannot_be_written_ends_nobody(tmp_path, capsys):
    (tmp_path / "data").touch()  # no folder, so there is no log in it
    fatal(tmp_path / "data", "matcher", "the sky falls")
    said = capsys.readouterr().err
    stamp = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"
    assert re.fullmatch(rf"{stamp} matcher\[{os.getpid()}\]: fatal: the sky falls\n", said)


def test_a_copy_of_a_data_directory_has_shared_memory_of_its_own(tmp_path):
    original, copy = tmp_path / "original", tmp_path / "copy"
    first = memory_id(original)
    shutil.copytree(original, copy)
    assert instance_of(copy) == instance_of(original) and memory_id(copy) != first
    assert memory_id(original.rename(tmp_path / "renamed")) == first
