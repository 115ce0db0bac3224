"""Configuration: the spec's YAML as written, units, the environment, the schema, the docs."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import jsonschema
import pytest
import yaml

from sageruntime import TaskOptions
from sageruntime.config import load_job, load_settings
from sageruntime.config.reference import job_schema, options_table
from sageruntime.core.options import Options, list_options
from sageruntime.core.task_options import TaskKeywords
from sageruntime.errors import ConfigError, InvalidOption
from sageruntime.job_file import build_pipeline
from sageruntime.recovery import CheckpointOptions, RestartPolicy, RetryPolicy
from sageruntime.service.options import ServiceKeywords, ServiceOptions
from sageruntime.task import ErrorPolicy
from sageruntime.tracing import Tracing

ROOT = Path(__file__).parents[2]

STAGES = "name: job\nstages:\n  - source: a:b\n  - sink: collect\n"

TASK_AS_IN_THE_SPEC = """\
task:
  local:
    max_buffer_size: 30000
    queue_maxsize: 50000
    worker_threads: 1

  ray:
    lifetime: "detached"
    resources: {"CPU": 1}
    memory: "1GB"
"""

PERFORMANCE_AS_IN_THE_SPEC = """\
performance:
  batch_processing: true
  batch_size: 100
  processing_timeout: 30
  monitoring_interval: 5
"""


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write_(text: str) -> Path:
        path = tmp_path / "file.yaml"
        path.write_text(text)
        return path

    return write_


@pytest.mark.parametrize("stages", ["", STAGES], ids=["alone", "in a job"])
def test_the_snippets_of_the_spec(write: Any, stages: str) -> None:
    load = load_job if stages else load_settings
    task = load(write(stages + TASK_AS_IN_THE_SPEC)).task
    assert task.local.model_dump() == {
        "max_buffer_size": 30000,
        "queue_maxsize": 50000,
        "worker_threads": 1,
    }
    assert task.ray.model_dump() == {
        "lifetime": "detached",
        "resources": {"CPU": 1.0},
        "memory": 1_000_000_000,
    }
    options = load(write(stages + PERFORMANCE_AS_IN_THE_SPEC)).task_options()
    assert options == TaskOptions(
        batch_processing=True, batch_size=100, processing_timeout=30.0, monitoring_interval=5.0
    )


# Every field of TaskOptions, as YAML and as what it has to become.
OPTIONS = [
    ("max_buffer_size", "task: {local: {max_buffer_size: 7}}", 7),
    ("queue_maxsize", "task: {local: {queue_maxsize: 777}}", 777),
    ("worker_threads", "task: {local: {worker_threads: 3}}", 3),
    ("batch_processing", "performance: {batch_processing: false}", False),
    ("batch_size", "performance: {batch_size: 12}", 12),
    ("flush_interval", "performance: {flush_interval: 5ms}", 0.005),
    ("max_concurrency", "performance: {max_concurrency: 9}", 9),
    ("processing_timeout", "performance: {processing_timeout: 1.5m}", 90.0),
    ("error_policy", "task: {error_policy: dead_letter}", ErrorPolicy.DEAD_LETTER),
    (
        "retry",
        "task: {retry: {attempts: 5, backoff: 0, max_backoff: 1s, then: skip}}",
        RetryPolicy(5, 0.0, 1.0, "skip"),
    ),
    (
        "restart",
        "task: {restart: {max_restarts: 2, window: 1h, backoff: 100ms, max_backoff: 2}}",
        RestartPolicy(2, 3600.0, 0.1, 2.0),
    ),
    ("max_deliveries", "task: {max_deliveries: 8}", 8),
    ("monitoring_interval", "performance: {monitoring_interval: 500ms}", 0.5),
]


def test_every_option_of_a_task_is_among_them() -> None:
    assert [name for name, _, _ in OPTIONS] == [field.name for field in fields(TaskOptions)]


@pytest.mark.parametrize(("name", "text", "value"), OPTIONS)
def test_every_option_of_a_task_can_be_configured(
    write: Any, name: str, text: str, value: object
) -> None:
    assert getattr(TaskOptions(), name) != value
    assert getattr(load_settings(write(text)).task_options(), name) == value


def test_the_keywords_for_type_checkers_are_the_options() -> None:
    for keywords, options, instead in (
        (TaskKeywords, TaskOptions, {"error_policy": ErrorPolicy | str}),
        (ServiceKeywords, ServiceOptions, {}),
    ):
        types = get_type_hints(options)
        declared = {field.name: types[field.name] for field in fields(options)}
        assert get_type_hints(keywords) == {**declared, **instead}


@pytest.mark.parametrize("options", [TaskOptions, ServiceOptions, RetryPolicy, RestartPolicy])
def test_every_option_is_declared(options: type[Options]) -> None:
    declared = list_options(options)
    assert [each.name for each in declared] == [field.name for field in fields(options)]
    for each in declared:
        assert each.meaning in (options.__doc__ or "")


@pytest.mark.parametrize(
    ("options", "given", "said"),
    [
        (TaskOptions, {"batch_size": 0}, "batch_size=0 .*an int from 1"),
        (TaskOptions, {"worker_threads": True}, "worker_threads=True .*an int from 1"),
        (TaskOptions, {"max_deliveries": 1.0}, "max_deliveries=1.0 .*an int from 2"),
        (TaskOptions, {"flush_interval": 0}, "flush_interval=0 .*seconds above 0"),
        (TaskOptions, {"flush_interval": "1"}, "flush_interval='1' .*seconds above 0"),
        (TaskOptions, {"processing_timeout": -1}, "=-1 .*seconds above 0 or None"),
        (TaskOptions, {"processing_timeout": float("nan")}, "=nan .*seconds above 0"),
        (TaskOptions, {"batch_processing": 1}, "batch_processing=1 .*True or False"),
        (TaskOptions, {"error_policy": "panic"}, "error_policy='panic' .*one of fail, skip"),
        (TaskOptions, {"retry": 3}, "retry=3 .*a RetryPolicy"),
        (TaskOptions, {"batch_size": 9, "queue_maxsize": 8}, "9 is more than queue_maxsize=8"),
        (RetryPolicy, {"then": "retry"}, "retry.then='retry' .*fail, skip or dead_letter"),
        (RetryPolicy, {"backoff": 11.0}, "retry.backoff=11.0 .*max_backoff, which is 10.0"),
        (RestartPolicy, {"max_restarts": -1}, "restart.max_restarts=-1 .*an int from 0"),
        (RestartPolicy, {"backoff": -0.1}, "restart.backoff=-0.1 .*seconds from 0"),
        (RestartPolicy, {"window": 0}, "restart.window=0 .*seconds above 0"),
        (ServiceOptions, {"idempotent": "no"}, "idempotent='no' .*True or False"),
    ],
)
def test_values_that_are_not_allowed(options: Any, given: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidOption, match=said):
        options(**given)


def test_an_error_policy_may_be_given_by_name() -> None:
    options = TaskOptions(error_policy="retry", retry=RetryPolicy(then="dead_letter"))  # type: ignore[arg-type]
    assert options.error_policy is ErrorPolicy.RETRY
    assert options.writes_dead_letters


def test_delays_double_up_to_the_longest() -> None:
    policy = RetryPolicy(backoff=0.5, max_backoff=3.0)
    assert [policy.delay(failures) for failures in (1, 2, 3, 4, 10_000)] == [0.5, 1, 2, 3, 3]
    assert RestartPolicy(backoff=0.0).delay(10_000) == 0


def test_a_stage_has_its_own(write: Any) -> None:
    job = load_job(
        write("""
            name: job
            task: {error_policy: skip, retry: {attempts: 9, max_backoff: 60s}}
            performance: {processing_timeout: 30s}
            stages:
              - source: collections:Counter
              - map: builtins:str
              - map: builtins:str
                worker_threads: 2
                max_concurrency: 3
                error_policy: retry
                retry: {backoff: 20s, then: dead_letter}
                restart: {max_restarts: 1}
                processing_timeout: null
                max_deliveries: 2
              - sink: collect
                error_policy: null
        """)
    )
    _, inherits, own, sink = (stage.options for stage in build_pipeline(job, Path()).stages)
    assert inherits == sink == job.task_options()
    assert own == TaskOptions(
        worker_threads=2,
        max_concurrency=3,
        processing_timeout=None,
        error_policy=ErrorPolicy.RETRY,
        retry=RetryPolicy(9, 20.0, 60.0, "dead_letter"),
        restart=RestartPolicy(1),
        max_deliveries=2,
    )


def test_how_a_stage_shares_its_input(write: Any, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def first(packet, instances): return 0\n"
        "from sageruntime.communication.router import RoundRobin\n"
        "class Own(RoundRobin): pass\n"
    )
    names = ["round_robin", "key", "broadcast", "least_loaded", "mine:first", "mine:Own"]
    stages = "".join(f"  - {{map: 'builtins:str', partition: '{name}'}}\n" for name in names)
    file = write(STAGES.replace("a:b", "builtins:list").replace("  - sink", stages + "  - sink"))
    pipeline = build_pipeline(load_job(file), tmp_path)
    kinds = [type(stage.partitioner()).__name__ for stage in pipeline.stages[1:]]
    assert kinds == [
        "RoundRobin", "KeyHash", "Broadcast", "LeastLoaded", "PartitionFunction", "Own",
        "RoundRobin",
    ]  # fmt: skip
    file.write_text(file.read_text().replace("mine:first", "mine:last"))
    with pytest.raises(ConfigError, match=r"stages\[5\].partition: 'mine:last' leads nowhere"):
        build_pipeline(load_job(file), tmp_path)
    file.write_text(file.read_text().replace("least_loaded", "least"))
    with pytest.raises(ConfigError, match=r":7: stages\[4\].partition: .*module:attribute"):
        load_job(file)


def test_what_a_job_is_started_with(write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    text = """
        checkpoint: {store: "folder:states", interval: 500ms, keep: 5, resume: false, timeout: 2m}
        dead_letters: {file: letters.db}
        metrics: {prometheus_port: 9100, prometheus_address: ""}
        tracing: {setup: "traces:setup"}
    """
    assert load_settings(write(text)).start_options() == {
        "checkpoint": CheckpointOptions("folder:states", 0.5, 5, False, 120.0),
        "dead_letters": "letters.db",
        "prometheus_port": 9100,
        "prometheus_address": "",
        "tracing": Tracing("traces:setup"),
    }
    assert load_settings().start_options() == {
        "checkpoint": None,
        "dead_letters": None,
        "prometheus_port": None,
        "prometheus_address": "127.0.0.1",
        "tracing": None,
    }
    monkeypatch.setenv("SAGERT_CHECKPOINT__STORE", "other.db")
    assert load_settings().start_options()["checkpoint"] == CheckpointOptions("other.db")


def test_what_is_not_configured_is_as_the_code_has_it() -> None:
    assert load_settings().task_options() == TaskOptions()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30s", 30), ("500ms", 0.5), ("2m", 120), ("1h", 3600), ("1.5 s", 1.5), ("7", 7)],
)
def test_times(write: Any, text: str, seconds: float) -> None:
    settings = load_settings(write(f"performance: {{processing_timeout: {text}}}"))
    assert settings.performance.processing_timeout == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["30", "1d", "s", "-1s", "1e3s", "nan", "", "5 parsecs"])
def test_what_is_no_time(write: Any, text: str) -> None:
    with pytest.raises(ConfigError, match=r"processing_timeout: .*is no time; expected .*30s"):
        load_settings(write(f"performance: {{processing_timeout: '{text}'}}"))


@pytest.mark.parametrize("text", ["0", "-1", ".inf", ".nan", "0s", "true"])
def test_times_that_are_not_allowed(write: Any, text: str) -> None:
    with pytest.raises(ConfigError, match=r":1: performance.processing_timeout: "):
        load_settings(write(f"performance: {{processing_timeout: {text}}}"))


@pytest.mark.parametrize(
    ("text", "size"),
    [("1GB", 10**9), ("512MiB", 512 << 20), ("1.5 GiB", 3 << 29), ("64k", 64_000), ("4096", 4096)],
)
def test_sizes(write: Any, text: str, size: int) -> None:
    assert load_settings(write(f"task: {{ray: {{memory: {text}}}}}")).task.ray.memory == size


@pytest.mark.parametrize("text", ["huge", "1 parsec", "-1GB", "GB"])
def test_what_is_no_size(write: Any, text: str) -> None:
    with pytest.raises(ConfigError, match=r":1: task.ray.memory: .*is no size; expected .*1GB"):
        load_settings(write(f"task: {{ray: {{memory: {text}}}}}"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\n", ":1: a: unknown key"),
        ("task:\n  retry:\n    backoff: 20s\n", ":2: task.retry: .*max_backoff, which is 10"),
        ("task:\n  restart:\n    window: 0\n", ":3: task.restart.window: "),
        ("checkpoint: {keep: 0}", ":1: checkpoint.keep: "),
        (
            "task:\n  local: {queue_maxsize: 50}\nperformance:\n  batch_size: 60\n",
            ":4: performance.batch_size: 60 is more than task.local.queue_maxsize, which is 50",
        ),
        ("task: {}\nperformance: {}\ntask: {}\n", ":3: is not YAML: 'task' is there twice"),
        ("- 1\n", ":1: the file: "),
    ],
)
def test_mistakes(write: Any, text: str, said: str) -> None:
    path = write(text)
    with pytest.raises(ConfigError, match=said) as caught:
        load_settings(path)
    assert str(caught.value).startswith(str(path))


def test_policies_of_a_stage_have_to_fit_those_of_the_job(write: Any) -> None:
    text = STAGES.replace("a:b", "a:b\n    retry: {backoff: 20s}")
    with pytest.raises(ConfigError, match=r":4: stages\[0\].retry: .*max_backoff, which is 10"):
        load_job(write(text))
    load_job(write(text + "task: {retry: {max_backoff: 20s}}"))


def test_the_environment_overrides_the_file(write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(STAGES + TASK_AS_IN_THE_SPEC + PERFORMANCE_AS_IN_THE_SPEC)
    monkeypatch.setenv("SAGERT_PERFORMANCE__BATCH_SIZE", "50")
    monkeypatch.setenv("SAGERT_PERFORMANCE__BATCH_PROCESSING", "false")
    monkeypatch.setenv("SAGERT_PERFORMANCE__PROCESSING_TIMEOUT", "500ms")
    monkeypatch.setenv("SAGERT_TASK__RAY__MEMORY", "2GB")
    monkeypatch.setenv("SAGERT_TASK__RAY__RESOURCES", "{GPU: 1, fast: 0.5}")
    monkeypatch.setenv("SAGERT_TASK__RETRY", '{"attempts": 7}')
    monkeypatch.setenv("SAGERT_TASK__RETRY__THEN", "skip")
    for settings in (load_job(path), load_settings()):
        assert settings.performance.batch_size == 50
        assert settings.performance.batch_processing is False
        assert settings.performance.processing_timeout == 0.5
        assert settings.task.ray.memory == 2 * 10**9
        assert (settings.task.retry.attempts, settings.task.retry.then) == (7, "skip")
    assert load_job(path).performance.monitoring_interval == 5.0  # the file's
    assert load_job(path).task.ray.resources == {"CPU": 1, "GPU": 1, "fast": 0.5}
    assert load_settings().performance.monitoring_interval == 0.2  # the default


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("PERFORMANCE__BATCH_SIZE", "many", "performance.batch_size: .*integer; got 'many'"),
        ("PERFORMANCE__BATCH_SIZE", "0", "performance.batch_size: .*greater"),
        ("PERFORMANCE__BATCH_SIZE", "60000", "performance.batch_size: 60000 is more than"),
        ("PERFORMANCE__BATCH_SIZ", "1", "performance.batch_siz: unknown key"),
        ("PERFORMANCE__PROCESSING_TIMEOUT", "long", "performance.processing_timeout: .*no time"),
        ("TASK__RAY__RESOURCES", "{]", "task.ray.resources: .*dictionary; got '{]'"),
        ("TASK__RETRY", "{attempts: 0}", "task.retry.attempts: .*greater"),
        ("TASK__RETRY__BACKOFF", "11", "task.retry: .*max_backoff"),
    ],
)
def test_mistakes_in_the_environment_name_the_variable(
    write: Any, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, said: str
) -> None:
    monkeypatch.setenv(f"SAGERT_{variable}", value)
    for load in (load_settings, lambda: load_job(write(STAGES))):
        with pytest.raises(ConfigError, match=f"^environment variable SAGERT_{variable}: {said}"):
            load()


def test_a_variable_of_no_section(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAGERT_PERFORMNCE__BATCH_SIZE", "1")
    with pytest.raises(ConfigError, match="SAGERT_PERFORMNCE__BATCH_SIZE: .*performance"):
        load_settings()


def test_mistakes_of_the_file_and_the_environment_together(
    write: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAGERT_PERFORMANCE__BATCH_SIZE", "0")
    path = write("task: {local: {worker_threads: 0}}\nperformance: {batch_size: 10}\n")
    with pytest.raises(ConfigError) as caught:
        load_settings(path)
    of_the_file, of_the_environment = caught.value.problems
    assert of_the_file.startswith(f"{path}:1: task.local.worker_threads: ")
    assert of_the_environment.startswith("environment variable SAGERT_PERFORMANCE__BATCH_SIZE: ")


EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_the_examples_fit_the_schema(path: Path) -> None:
    schema = job_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(yaml.safe_load(path.read_text().replace(" on:", " 'on':")), schema)
    load_job(path)


def test_the_schema_refuses_what_the_loader_refuses(write: Any) -> None:
    validator = jsonschema.Draft202012Validator(job_schema())
    for text in (
        STAGES + "performance: {batch_sizes: 1}",
        STAGES + "performance: {batch_size: 0}",
        STAGES + "performance: {processing_timeout: 5 parsecs}",
        STAGES + "task: {ray: {memory: huge}}",
        STAGES + "task: {error_policy: panic}",
        STAGES.replace("sink: collect", "parallelism: 2"),
        STAGES.replace("sink: collect", "sink: collect\n    map: a:b"),
        "name: job\n",
    ):
        assert not validator.is_valid(yaml.safe_load(text)), text
        with pytest.raises(ConfigError):
            load_job(write(text))
    assert validator.is_valid(yaml.safe_load(STAGES + "performance: {processing_timeout: 500ms}"))


def test_sagert_schema() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sageruntime", "schema"], capture_output=True, text=True, timeout=60
    )
    assert json.loads(done.stdout) == job_schema()


def test_the_documented_options_are_those_of_the_code() -> None:
    """After a change: sagert schema --markdown, between the two marks."""
    documented = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    _, _, rest = documented.partition("<!-- options -->\n")
    table, mark, _ = rest.partition("<!-- end of options -->\n")
    assert mark
    assert table == options_table()


def test_every_option_is_explained() -> None:
    rows = options_table().splitlines()[2:]
    assert len(rows) > 30
    assert all(row.rsplit("|", 2)[1].strip() for row in rows), rows
