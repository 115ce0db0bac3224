"""Dead letters that outlive their job: kept in a file, looked at, and sent again."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sageruntime import CountByKey, DeadLetter, Packet, Pipeline, TaskOptions
from sageruntime.dead_letters.store import DeadLetterStore
from sageruntime.errors import DeadLetterStoreError, JobFailed
from sageruntime.recovery import RetryPolicy
from sageruntime.replay import replay


def letter(payload: Any, stage: str = "work", **fields: Any) -> DeadLetter:
    return DeadLetter(Packet(payload), f"{stage}-0", stage, "ValueError: no", "trace", **fields)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "letters.db"


@pytest.fixture
def store(path: Path) -> Iterator[DeadLetterStore]:
    with DeadLetterStore(path, create=True) as store:
        yield store


# The store.


def test_what_is_kept_of_a_letter(store: DeadLetterStore, path: Path) -> None:
    packet = Packet({"a": [1, 2]}, key="k", timestamp=5, id=2**64 - 1)
    store.add("job", [DeadLetter(packet, "work-0", "work", "ValueError: no", "trace", True)])
    with DeadLetterStore(path) as again:
        (kept,) = again.letters()
        assert again.packet(kept) == packet
    assert (kept.job, kept.stage, kept.task) == ("job", "work", "work-0")
    assert (kept.error, kept.traceback, kept.tries) == ("ValueError: no", "trace", 1)
    assert (kept.is_result, kept.replayable) == (True, True)
    assert (kept.packet_id, kept.payload) == (2**64 - 1, "{'a': [1, 2]}")
    assert time.time_ns() - kept.failed_at < 60e9


def test_the_bytes_of_a_packet_that_could_not_be_decoded(store: DeadLetterStore) -> None:
    undecoded = DeadLetter(None, "work-0", "work", "DecodeError", "trace", raw=b"\x80\x05no")
    store.add("job", [undecoded, letter(1)])
    kept, decoded = store.letters()
    assert (store.raw(kept), kept.payload) == (b"\x80\x05no", repr(b"\x80\x05no"))
    assert store.raw(decoded) is None


def test_a_file_of_the_version_before_is_taken_over(path: Path) -> None:
    with DeadLetterStore(path, create=True) as store:
        store.add("job", [letter(1)])
    with sqlite3.connect(path) as database:
        database.execute("ALTER TABLE letters DROP COLUMN raw")
        database.execute("PRAGMA user_version = 1")
    database.close()
    with DeadLetterStore(path) as store:
        store.add("job", [DeadLetter(None, "work-0", "work", "DecodeError", "trace", raw=b"raw")])
        old, new = store.letters()
        assert (store.packet(old).payload, store.raw(old), store.raw(new)) == (1, None, b"raw")


def test_packets_that_cannot_be_kept(store: DeadLetterStore) -> None:
    store.add("job", [letter(threading.Lock()), letter("<Lock>", is_repr=True)])
    store.add("job", [DeadLetter(None, "work-0", "work", "DecodeError", "trace")])
    lock, told, undecoded = store.letters()
    assert not any(kept.replayable for kept in (lock, told, undecoded))
    assert "lock" in lock.payload
    assert told.payload == "<Lock>"
    assert (undecoded.packet_id, undecoded.payload) == (None, "")
    for kept in (lock, told, undecoded):
        with pytest.raises(DeadLetterStoreError, match=f"letter {kept.id} is not kept"):
            store.packet(kept)


def test_functions_are_kept_too(store: DeadLetterStore) -> None:
    store.add("job", [letter(lambda n: n + 1)])
    assert store.packet(store.letters()[0]).payload(1) == 2


def test_letters_are_found_by_job_and_id(store: DeadLetterStore) -> None:
    store.add("one", [letter(1), letter(2)])
    store.add("two", [letter(3)])
    assert [kept.payload for kept in store.letters()] == ["1", "2", "3"]
    assert [kept.id for kept in store.letters("one")] == [1, 2]
    assert [kept.id for kept in store.letters(ids=[3, 1])] == [1, 3]
    with pytest.raises(DeadLetterStoreError, match="no dead letter 3, 9 of job one"):
        store.letters("one", [1, 3, 9])


def test_ids_are_never_used_again(store: DeadLetterStore) -> None:
    store.add("job", [letter(1), letter(2)])
    with pytest.raises(DeadLetterStoreError, match="no dead letter 7"):
        store.remove([2, 7])
    assert len(store.letters()) == 2
    store.remove([2])
    store.add("job", [letter(3)])
    assert [kept.id for kept in store.letters()] == [1, 3]


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(DeadLetterStoreError, match="there is no such file"):
        DeadLetterStore(tmp_path / "none.db")
    assert not (tmp_path / "none.db").exists()
    (tmp_path / "text.db").write_text("this is no database, and long enough to be sure of it" * 9)
    with pytest.raises(DeadLetterStoreError, match="not a database"):
        DeadLetterStore(tmp_path / "text.db", create=True)
    with sqlite3.connect(tmp_path / "other.db") as other:
        other.execute("CREATE TABLE letters (a)")
    with pytest.raises(DeadLetterStoreError, match="no file of dead letters"):
        DeadLetterStore(tmp_path / "other.db", create=True)
    with pytest.raises(DeadLetterStoreError, match="unable to open"):
        DeadLetterStore(tmp_path / "no" / "folder.db", create=True)


def test_several_processes_write_to_one_file(path: Path) -> None:
    code = """
        import sys
        from sageruntime import DeadLetter, Packet
        from sageruntime.dead_letters.store import DeadLetterStore
        with DeadLetterStore(sys.argv[1], create=True) as store:
            for n in range(50):
                store.add(sys.argv[2], [DeadLetter(Packet(n), "t", "s", "e", "trace")])
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(path)]
    writers = [subprocess.Popen([*command, f"job-{n}"]) for n in range(3)]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    with DeadLetterStore(path) as store:
        assert [len(store.letters(f"job-{n}")) for n in range(3)] == [50, 50, 50]


# A job that has one.


def fragile(n: int) -> int:
    if n % 10 == 3:
        raise LookupError(f"no place for {n}")
    return n * 2


def failing(name: str = "numbers", function: Any = fragile, **stage: Any) -> Pipeline:
    pipeline = Pipeline(name, options=TaskOptions(batch_size=7)).source(range(100))
    return pipeline.map(function, name="work", error_policy="dead_letter", **stage).sink()


@pytest.mark.parametrize("on", ["thread", "process"])
def test_a_job_keeps_its_letters_in_the_file(path: Path, on: Any) -> None:
    result = failing().run(on, dead_letters=path)
    assert (len(result.sink_result), result.dead_letters) == (90, [])
    with DeadLetterStore(path) as store:
        kept = store.letters("numbers")
        assert sorted(store.packet(one).payload for one in kept) == list(range(3, 100, 10))
    assert {one.stage for one in kept} == {"work"}
    assert all("in fragile" in one.traceback for one in kept)


def test_letters_survive_the_job_that_is_killed(path: Path) -> None:
    code = f"""
        import time
        from sageruntime import Pipeline, TaskOptions

        def numbers():
            yield from range(5)
            time.sleep(600)

        def fail(n):
            raise ValueError(n)

        if __name__ == "__main__":
            pipeline = Pipeline("killed").source(numbers).map(fail, error_policy="dead_letter")
            pipeline.sink().run(dead_letters={str(path)!r})
    """
    child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)])
    deadline = time.monotonic() + 60
    while not path.exists() or len(letters_in(path)) < 5:
        assert child.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert [one.payload for one in letters_in(path)] == ["0", "1", "2", "3", "4"]


def letters_in(path: Path) -> list[Any]:
    with DeadLetterStore(path, create=True) as store:
        return store.letters()


def test_a_file_that_cannot_be_used_is_told_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(DeadLetterStoreError, match="unable to open"):
        failing().start(dead_letters=tmp_path / "no" / "folder.db")


def test_where_nothing_can_become_a_letter_there_is_no_file(path: Path) -> None:
    Pipeline("none").source(range(3)).sink().run(dead_letters=path)
    assert not path.exists()


def test_letters_that_the_file_does_not_take_are_in_the_result(path: Path) -> None:
    """A store that another process holds for longer than a job may wait, or a full disk."""
    DeadLetterStore(path, create=True).close()
    with sqlite3.connect(path) as database:
        database.execute(
            "CREATE TRIGGER full BEFORE INSERT ON letters WHEN NEW.payload = '43' "
            "BEGIN SELECT RAISE(ABORT, 'the disk is full'); END"
        )
    result = failing().run(dead_letters=path)
    told = [one.packet.payload for one in result.dead_letters if one.packet]
    assert 43 in told
    assert sorted([*told, *(int(one.payload) for one in letters_in(path))]) == [*range(3, 100, 10)]


# Sending again.


def correct(n: int) -> int:
    return n * 2


def test_what_was_corrected_goes_through(store: DeadLetterStore, path: Path) -> None:
    failing().run(dead_letters=path)
    outcome = replay(failing(function=correct), store)
    assert outcome.gone == list(range(1, 11))
    assert (outcome.again, outcome.new) == ([], 0)
    assert sorted(outcome.results[0].sink_result) == [2 * n for n in range(3, 100, 10)]
    assert store.letters() == []


def test_what_fails_again_stays(store: DeadLetterStore, path: Path) -> None:
    failing().run(dead_letters=path)

    def better(n: int) -> int:
        if n < 50:
            raise TypeError(f"still none for {n}")
        return n

    outcome = replay(failing(function=better), store)
    assert (len(outcome.gone), len(outcome.again), outcome.new) == (5, 5, 0)
    kept = store.letters()
    assert {(one.id, one.tries) for one in kept} == {(number, 2) for number in outcome.again}
    assert all(one.error.startswith("TypeError: still none") for one in kept)
    assert all("in better" in one.traceback for one in kept)


def test_only_some(store: DeadLetterStore, path: Path) -> None:
    failing().run(dead_letters=path)
    assert replay(failing(function=correct), store, [2, 4]).gone == [2, 4]
    assert len(store.letters()) == 8


@pytest.mark.parametrize("on", ["process", "ray"])
def test_on_another_host(store: DeadLetterStore, path: Path, on: Any, request: Any) -> None:
    if on == "ray":
        request.getfixturevalue("ray_cluster")
    failing().run(dead_letters=path)
    outcome = replay(failing(function=lambda n: n), store, on=on)
    assert sorted(outcome.results[0].sink_result) == list(range(3, 100, 10))


def test_a_packet_is_what_it_was(store: DeadLetterStore) -> None:
    """The key still chooses the instance, and the id names the packet."""
    packet = Packet("word", key="word", timestamp=5, id=77)
    store.add("wc", [DeadLetter(packet, "count-0", "count", "e", "t")])
    seen: list[Packet] = []

    class Look(CountByKey):
        def process(self, packet: Packet) -> None:
            seen.append(packet.copy())
            return super().process(packet)  # type: ignore[return-value]

    pipeline = Pipeline("wc").source([]).key_by(len, name="keys").map(
        Look, name="count", parallelism=2
    ).sink()  # fmt: skip
    outcome = replay(pipeline, store)
    assert outcome.results[0].sink_result == [("word", 1)]
    assert [(one.id, one.timestamp, one.key) for one in seen] == [(77, 5, "word")]


def test_failing_further_on_makes_a_letter_there(store: DeadLetterStore, path: Path) -> None:
    def pipeline(first: Any) -> Pipeline:
        return (
            Pipeline("two")
            .source(range(3))
            .map(first, name="first", error_policy="dead_letter")
            .map(fail, name="second", error_policy="dead_letter")
            .sink()
        )

    def fail(n: Any) -> Any:
        raise ValueError(n)

    pipeline(fail).run(dead_letters=path)
    before = store.letters()
    assert [one.stage for one in before] == ["first"] * 3
    outcome = replay(pipeline(str), store)
    assert (outcome.gone, outcome.again, outcome.new) == ([1, 2, 3], [], 3)
    kept = store.letters()
    # a map keeps the packet, so the id is the same: it is another letter all the same
    assert {one.packet_id for one in kept} == {one.packet_id for one in before}
    assert [(one.id, one.stage, one.payload, one.tries) for one in kept] == [
        (4, "second", "'0'", 1),
        (5, "second", "'1'", 1),
        (6, "second", "'2'", 1),
    ]


def test_letters_of_several_stages_enter_where_they_belong(store: DeadLetterStore) -> None:
    store.add("calls", [letter("a", "first"), letter("b", "second"), letter("c", "first")])
    calls: list[str] = []

    def note(stage: str) -> Any:
        return lambda payload: calls.append(f"{stage} {payload}") or payload

    pipeline = (
        Pipeline("calls")
        .source([])
        .map(note("first"), name="first")
        .map(note("second"), name="second")
        .sink()
    )
    outcome = replay(pipeline, store)
    assert sorted(calls) == ["first a", "first c", "second a", "second b", "second c"]
    assert sorted(outcome.gone) == [1, 2, 3]
    assert len(outcome.results) == 2


def test_a_result_that_had_no_way_out_is_not_processed_again(
    store: DeadLetterStore, path: Path
) -> None:
    def pipeline(key: Any) -> Pipeline:
        return (
            Pipeline("keys")
            .source(["a", "b"])
            .map(lambda word: word * 2, name="double", error_policy="dead_letter")
            .key_by(key)
            .map(CountByKey, name="count")
            .sink()
        )

    def broken(word: str) -> str:
        raise KeyError(word)

    pipeline(broken).run(dead_letters=path)
    assert [(one.stage, one.is_result, one.payload) for one in store.letters()] == [
        ("double", True, "'aa'"),
        ("double", True, "'bb'"),
    ]
    outcome = replay(pipeline(broken), store)
    assert (outcome.gone, outcome.again, outcome.new) == ([], [1, 2], 0)
    assert [(one.stage, one.tries) for one in store.letters()] == [("double", 2)] * 2
    outcome = replay(pipeline(lambda word: word), store)
    assert sorted(outcome.results[0].sink_result) == [("aa", 1), ("bb", 1)]
    assert store.letters() == []


@pytest.mark.parametrize("policy", ["fail", "skip", "retry"])
def test_whatever_the_policy_of_the_stage_is_now(
    store: DeadLetterStore, path: Path, policy: str
) -> None:
    failing().run(dead_letters=path)
    options = TaskOptions(retry=RetryPolicy(2, backoff=0.0))
    pipeline = Pipeline("numbers", options=options).source([])
    pipeline = pipeline.map(fragile, name="work", error_policy=policy).sink()
    assert len(replay(pipeline, store).again) == 10
    assert {one.tries for one in store.letters()} == {2}


class AtHome:
    """Is unpickled by the process that pickled it, and refuses elsewhere."""

    def __reduce__(self) -> Any:
        return at_home, (os.getpid(),)


def at_home(pid: int) -> AtHome:
    if pid != os.getpid():
        raise OSError("not here")
    return AtHome()


def test_a_message_that_cannot_be_decoded_keeps_all_letters(store: DeadLetterStore) -> None:
    """It is not known whose packets were in it."""
    store.add("numbers", [letter(3), letter(AtHome())])
    pipeline = Pipeline("numbers").source([]).map(str, name="work", on="process").sink()
    outcome = replay(pipeline, store)
    assert (outcome.gone, outcome.again, outcome.new) == ([], [1, 2], 0)
    for kept in store.letters():
        assert (kept.tries, "not here" in kept.error) == (2, True)


def test_packets_that_cannot_be_unpickled_any_more(store: DeadLetterStore) -> None:
    store.add("numbers", [letter(1), letter(2)])
    with sqlite3.connect(store.path) as database:  # as after a class was renamed
        data = database.execute("SELECT packet FROM letters WHERE id = 1").fetchone()[0]
        renamed = data.replace(b"Packet", b"Parcel")
        database.execute("UPDATE letters SET packet = ? WHERE id = 1", (renamed,))
    with pytest.raises(DeadLetterStoreError, match="letter 1 cannot be unpickled here: .*Parcel"):
        replay(failing(function=correct), store)
    assert replay(failing(function=correct), store, [2]).gone == [2]
    assert [one.id for one in store.letters()] == [1]


def test_a_job_that_fails_keeps_all_letters(store: DeadLetterStore, path: Path) -> None:
    failing().run(dead_letters=path)

    def broken(n: int) -> None:
        raise ValueError(n)

    pipeline = Pipeline("numbers").source([]).map(correct, name="work").sink(broken)
    with pytest.raises(JobFailed):
        replay(pipeline, store)
    assert len(store.letters()) == 10


def test_letters_of_a_stage_that_is_gone(store: DeadLetterStore) -> None:
    store.add("numbers", [letter(1, "elsewhere")])
    with pytest.raises(DeadLetterStoreError, match="'elsewhere', which numbers has not: .*work"):
        replay(failing(), store)


def test_letters_without_a_packet_are_left_alone(store: DeadLetterStore) -> None:
    store.add("numbers", [letter("<Lock>", is_repr=True), letter(1)])
    assert replay(failing(function=correct), store).gone == [2]
    with pytest.raises(DeadLetterStoreError, match="letter 1 is not kept"):
        replay(failing(function=correct), store, [1])


# As a user does it.

JOB = """\
name: halves
stages:
  - source: mine:numbers
  - map: mine:half
    name: half
    on: {on}
    error_policy: dead_letter
  - sink: mine:write
dead_letters:
  file: letters.db
"""
BROKEN = """\
def numbers(): return range(10)
def half(n):
    if n % 4 == 1: raise ValueError(f"[{n}] is odd")
    return n / 2
def write(n):
    with open("out.txt", "a") as file: file.write(f"{n}\\n")
"""


def sagert(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sageruntime", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=folder,
        env={**os.environ, "COLUMNS": "200"},
    )


def written(folder: Path) -> list[float]:
    return sorted(float(line) for line in (folder / "out.txt").read_text().splitlines())


@pytest.mark.parametrize("on", ["thread", "process"])
def test_a_job_is_corrected_and_its_letters_are_sent_again(tmp_path: Path, on: str) -> None:
    (tmp_path / "job.yaml").write_text(JOB.format(on=on))
    (tmp_path / "mine.py").write_text(BROKEN)
    done = sagert(tmp_path, "run", "job.yaml")
    assert done.returncode == 0, done.stderr
    assert "sagert dlq ls letters.db" in done.stdout
    assert written(tmp_path) == [n / 2 for n in range(10) if n % 4 != 1]

    listed = json.loads(sagert(tmp_path, "dlq", "ls", "letters.db", "--json").stdout)
    assert [(one["id"], one["payload"], one["tries"]) for one in listed] == [
        (1, "1", 1),
        (2, "5", 1),
        (3, "9", 1),
    ]
    assert "ValueError: [5] is odd" in sagert(tmp_path, "dlq", "ls", "letters.db").stdout
    shown = sagert(tmp_path, "dlq", "show", "letters.db", "2").stdout
    assert str(listed[1]["packet_id"]) in shown
    assert "Traceback" in shown
    assert "ValueError: [5] is odd" in shown

    again = sagert(tmp_path, "dlq", "replay", "job.yaml")
    assert again.returncode == 1
    assert "0 went through, 3 failed again" in again.stdout
    listed = json.loads(sagert(tmp_path, "dlq", "ls", "letters.db", "--json").stdout)
    assert [one["tries"] for one in listed] == [2, 2, 2]

    (tmp_path / "mine.py").write_text(BROKEN.replace("n % 4 == 1", "n == 9"))
    corrected = sagert(tmp_path, "dlq", "replay", "job.yaml", "--ids", "2-3")
    assert corrected.returncode == 1
    assert "1 went through, 1 failed again" in corrected.stdout
    assert sagert(tmp_path, "dlq", "rm", "letters.db", "3").returncode == 0
    corrected = sagert(tmp_path, "dlq", "replay", "job.yaml")
    assert corrected.returncode == 0, corrected.stderr
    assert json.loads(sagert(tmp_path, "dlq", "ls", "letters.db", "--json").stdout) == []
    assert written(tmp_path) == [n / 2 for n in range(9)]


def test_the_result_of_the_job_stays_as_it_is(tmp_path: Path) -> None:
    text = JOB.format(on="thread").replace("mine:write", "collect")
    (tmp_path / "job.yaml").write_text(text + "result: {file: result.json}\n")
    (tmp_path / "mine.py").write_text(BROKEN)
    sagert(tmp_path, "run", "job.yaml")
    before = (tmp_path / "result.json").read_text()
    (tmp_path / "mine.py").write_text(BROKEN.replace("n % 4 == 1", "False"))
    assert sagert(tmp_path, "dlq", "replay", "job.yaml").returncode == 0
    assert (tmp_path / "result.json").read_text() == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["ls", "none.db"], "no such file"),
        (["show", "letters.db", "99"], "no dead letter 99"),
        (["rm", "letters.db", "all"], "'all' are no ids; expected numbers"),
        (["replay", "job.yaml", "--ids", "99"], "no dead letter 99 of job halves"),
        (["replay", "job.yaml", "--on", "moon"], "thread, process, ray"),
        (["replay", "job.yaml", "--file", "none.db"], "no such file"),
        (["replay", "bare.yaml"], "bare.yaml: dead_letters.file: is not there"),
    ],
)
def test_what_is_wrong_is_told(tmp_path: Path, arguments: list[str], said: str) -> None:
    (tmp_path / "job.yaml").write_text(JOB.format(on="thread"))
    (tmp_path / "bare.yaml").write_text(JOB.format(on="thread").partition("dead_letters")[0])
    (tmp_path / "mine.py").write_text(BROKEN)
    DeadLetterStore(tmp_path / "letters.db", create=True).close()
    done = sagert(tmp_path, "dlq", *arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
