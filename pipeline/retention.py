"""What of the journal is kept: what the oldest kept snapshot and the followers still need, and what is done with the
rest.

A segment is let go when all that it holds lies before the record that every one of them stands on. A follower that
keeps more than `journal.keep_bytes` alive is not waited for: it is told, and begins anew at a snapshot or from the
archive. Which segments may go is decided anew each time from the files, so a kill between two of them is harmless.
"""
import os
import shutil
from pathlib import Path

from pipeline.journal import START, Place, is_behind
from pipeline.segment_content import SegmentContent, runs_of
from pipeline.segment_file import segments_of, sync_directory

FOLLOWERS = "followers"        # folder of a data directory: a file each, with the place up to which its sink has all


def note_place(data, name, place):
    """Say how far the sink of a follower has come, so that what it needs is kept; on disk when this returns, as a place
    that is lost keeps nothing. Cost: three syncs, so not after each batch."""
    directory = data / FOLLOWERS
    directory.mkdir(mode=0o700, exist_ok=True)
    temporary = directory / f"{name}.new"
    with open(temporary, "w", encoding="ascii") as file:
        file.write(f"{place.sequence} {place.chain:016x}\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, directory / name)
    sync_directory(directory)
    sync_directory(data)


def places_of_followers(data):
    """{name: Place} of all that have noted one."""
    places = {}
    for path in sorted((data / FOLLOWERS).glob("*")):
        if path.suffix != ".new":
            sequence, chain = path.read_text(encoding="ascii").split()
            places[path.name] = Place(int(sequence), int(chain, 16))
    return places


def needed(data, instance, saved, keep, keep_bytes, tell):
    """The Places that the kept part of the journal goes on from: of the newest `keep` snapshots, and of each follower
    behind them the snapshot that it begins at, or START, where there is none. `saved`: the Places of all snapshots, the
    newest first; `tell(text)` hears of followers that are not waited for."""
    kept, oldest = list(saved[:keep]), saved[:keep][-1]
    segments = segments_of(data / "journal", instance)
    for name, place in places_of_followers(data).items():
        if place.sequence < oldest.sequence:
            begin = next((other for other in saved if other.sequence <= place.sequence), START)
            size = sum(segment.path.stat().st_size for segment in segments
                       if is_behind(segment, oldest) and not is_behind(segment, begin))
            if size > keep_bytes:
                tell(f"follower {name} stands at sequence {place.sequence} and would keep {size} bytes of journal, more"
                     f" than journal.keep_bytes = {keep_bytes}: they are let go, and it has to be rebuilt")
            else:
                kept.append(begin)
    return kept


def let_go(directory, instance, sequence, archive=None):
    """Take the segments out of the journal that hold nothing from the record of this sequence on: into the folder
    `archive`, or for good. Returns their paths."""
    if sequence == START.sequence:
        return []              # one that is empty too: by the first one's number it is known that all is there
    place, gone = Place(sequence, 0), []
    for segment in segments_of(directory, instance)[:-1]:
        if is_behind(segment, place) or _holds_only_less(segment, sequence):
            if archive is not None:
                _copy(segment.path, Path(archive))
            segment.path.unlink()
            gone.append(segment.path)
    if gone:
        sync_directory(directory)
    return gone


def _holds_only_less(segment, sequence):
    """Whether a segment without a seal, that a killed journaler left, has only records before this sequence."""
    runs, _known_synced = runs_of(SegmentContent(segment, lambda: None))
    return all(run.last_sequence < sequence for run in runs)


def _copy(path, archive):
    """Put a copy into the archive, on disk with its name when this returns."""
    archive.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = archive / f"{path.name}.new"
    shutil.copyfile(path, temporary)
    with open(temporary, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(temporary, archive / path.name)
    sync_directory(archive)
