"""What an earlier version wrote is read by this one: a data directory of every released version, as it was left."""
import json
import tarfile
import uuid
from pathlib import Path

import numpy as np
import pytest

from pipeline import journal, recovery, snapshot
from pipeline.digest import state_digest
from shm.records import LAYOUT_VERSION, LIMITS

RELEASED = sorted(Path(__file__).with_name("released").glob("*.tar.xz"))


@pytest.fixture(params=RELEASED, ids=lambda path: path.name.partition(".")[0])
def released(request, tmp_path):
    """(data directory, what its core said of it)"""
    with tarfile.open(request.param) as archive:
        archive.extractall(tmp_path)
    return tmp_path / "data", json.loads((tmp_path / "expected.json").read_text(encoding="utf-8"))


def recovered(data):
    instance = uuid.UUID((data / "instance").read_text().strip())
    told = []
    found = recovery.recover(data, instance, np.zeros((), LIMITS), told.append, np.zeros(1, np.int64), 0)
    assert told == []
    return found


def as_expected(found, expected):
    assert found.replica.sequence == expected["sequence"]
    assert f"{np.uint64(state_digest(found.replica.state)):016x}" == expected["state_digest"]
    assert f"{found.found.end_chain:016x}" == expected["chain"]


def test_every_version_has_left_one():
    assert [path.name for path in RELEASED] == ["journal-1-snapshot-1.tar.xz"]
    assert (LAYOUT_VERSION, snapshot.VERSION) == (1, 1)


def test_snapshot_and_journal_lead_to_the_state_that_they_led_to(released):
    data, expected = released
    found = recovered(data)
    assert found.snapshot.sequence == expected["snapshot"]
    as_expected(found, expected)


def test_the_journal_alone_does_too(released):
    data, expected = released
    for found in snapshot.snapshots_of(data / recovery.SNAPSHOTS):
        found.path.unlink()
    as_expected(recovered(data), expected)


def test_what_is_read_is_what_was_written(released):
    data, expected = released
    instance = uuid.UUID((data / "instance").read_text().strip())
    kinds = {}
    for record, _payload in journal.records(data / recovery.JOURNAL, instance):
        kinds[str(record["kind"])] = kinds.get(str(record["kind"]), 0) + 1
    assert kinds == expected["kinds"]
