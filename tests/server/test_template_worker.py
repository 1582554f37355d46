"""Real worker processes, real templates."""

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cdvft.errors import InvalidData
from cdvft.templates import PLAIN_TEMPLATE, render
from cdvft_server.exceptions import TemplateWorkerFailed
from cdvft_server.template_process import MAX_FRAME_BYTES
from cdvft_server.template_worker import TemplateWorkers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

FOREVER = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
HELLO = [{"role": "user", "content": "hello"}]
has_proc = pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads /proc")


@pytest.fixture(scope="module")
def workers() -> Iterator[TemplateWorkers]:
    with TemplateWorkers() as started:
        yield started


def ask(workers: TemplateWorkers, source: str, messages: list = HELLO, **options: object) -> str:
    return workers.render(source, messages, bos_token="<s>", eos_token="</s>", **options)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_renders(workers: TemplateWorkers) -> None:
    assert ask(workers, "{{ bos_token }}{{ messages[0]['content'] }}{{ eos_token }}") == "<s>hello</s>"
    assert ask(workers, PLAIN_TEMPLATE) == "<s>user: hello\nassistant:"
    assert ask(workers, PLAIN_TEMPLATE, add_generation_prompt=False) == "<s>user: hello\n"
    assert workers.render(PLAIN_TEMPLATE, HELLO, bos_token=None, eos_token=None) == "user: hello\nassistant:"


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.fixed_dictionaries({"role": st.text(), "content": st.text(st.characters(codec=None))}), max_size=4))
def test_same_as_in_process(workers: TemplateWorkers, messages: list) -> None:
    expected = render(PLAIN_TEMPLATE, messages, bos_token="<s>", eos_token="</s>")
    assert ask(workers, PLAIN_TEMPLATE, messages) == expected


def test_text_of_a_whole_request() -> None:
    content = "é😀" * (1 << 20)
    with TemplateWorkers(output_bytes=6 << 20) as workers:
        assert ask(workers, "{{ messages[0].content }}", [{"role": "user", "content": content}]) == content


def test_what_a_template_writes_is_limited(workers: TemplateWorkers) -> None:
    assert len(ask(workers, "{{ 'é' * (2**19) }}")) == 1 << 19
    many = "{% for i in range(300) %}{{ 'a' * 100000 }}{% endfor %}"
    for source, size in (("{{ 'é' * (2**19) }}a", (1 << 20) + 1), (many, 30_000_000)):
        with pytest.raises(InvalidData, match=f"wrote {size} bytes, at most 1048576 are allowed"):
            ask(workers, source)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ messages[", "not valid Jinja"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ ().__class__.__bases__[0].__subclasses__() }}", "cannot take these messages"),
        ("{{ 'a' * 10**10 }}", "MemoryError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
    ],
)
def test_a_template_that_fails(workers: TemplateWorkers, source: str, message: str) -> None:
    before = workers.pids
    with pytest.raises(InvalidData, match=message):
        ask(workers, source)
    assert workers.pids == before  # it answered: no need of another
    assert ask(workers, "fine") == "fine"


@pytest.mark.parametrize(
    "source", [FOREVER, "{{ 7 ** (7 ** 12) }}", "{{ 'a' * (90 * 2**20) }}{{ 'b' * (90 * 2**20) }}"]
)
def test_a_template_that_takes_too_long_or_too_much_is_ended(workers: TemplateWorkers, source: str) -> None:
    ask(workers, "started")
    started = time.monotonic()
    with pytest.raises(InvalidData, match=r"longer than 200 ms|Memory"):
        ask(workers, source)
    assert time.monotonic() - started < 10
    assert ask(workers, "fine") == "fine"


def test_killed_and_replaced(workers: TemplateWorkers) -> None:
    [before] = workers.pids
    with pytest.raises(InvalidData, match="the chat template took longer than 200 ms"):
        ask(workers, FOREVER)
    [after] = workers.pids
    assert after != before
    assert not alive(before)
    assert ask(workers, "fine") == "fine"
    assert workers.pids == [after]


def test_what_is_counted_is_processor_time() -> None:
    def used() -> float:
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return children.ru_utime + children.ru_stime

    before = used()
    with TemplateWorkers(timeout=0.2) as workers, pytest.raises(InvalidData, match="longer than 200 ms"):
        ask(workers, FOREVER)
    assert 0.2 <= used() - before < 1.2  # by the clock it may take ten times 200 ms


def test_the_clock_ends_a_worker_that_does_not_run() -> None:
    with TemplateWorkers(timeout=0.02) as workers:
        ask(workers, "started")
        [pid] = workers.pids
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(InvalidData, match="longer than 20 ms"):
            ask(workers, "never")
        assert not alive(pid)
        assert ask(workers, "fine") == "fine"


def test_a_worker_that_died_while_idle_costs_nobody_an_answer(workers: TemplateWorkers) -> None:
    ask(workers, "started")
    for pid in workers.pids:
        os.kill(pid, signal.SIGKILL)
    assert ask(workers, "fine") == "fine"


def test_a_start_is_not_counted() -> None:
    with TemplateWorkers(timeout=0.05) as workers:  # Python and jinja2 alone take longer
        assert ask(workers, "{{ 1 + 1 }}") == "2"


def test_too_much_to_send(workers: TemplateWorkers) -> None:
    with pytest.raises(InvalidData, match="longer than a chat template may take"):
        ask(workers, "x", [{"role": "user", "content": "x" * MAX_FRAME_BYTES}])
    with pytest.raises(InvalidData, match="JSON"):
        ask(workers, "x", [{"role": "user", "content": object()}])


def test_many_threads_get_their_own_answers() -> None:
    with TemplateWorkers(count=2) as workers, ThreadPoolExecutor(8) as threads:

        def call(number: int) -> tuple[int, str]:
            try:
                return number, ask(
                    workers, FOREVER if number % 20 == 7 else "{{ messages[0].content }}", message(number)
                )
            except InvalidData as error:
                return number, type(error).__name__

        def message(number: int) -> list[dict[str, str]]:
            return [{"role": "user", "content": f"number {number}"}]

        for number, answer in threads.map(call, range(100)):
            assert answer == ("InvalidData" if number % 20 == 7 else f"number {number}")
        assert len(workers.pids) == 2


def test_close_leaves_no_process() -> None:
    workers = TemplateWorkers(count=3)
    ask(workers, "started")
    pids = workers.pids
    assert len(pids) == 3
    workers.close()
    workers.close()
    assert workers.pids == []
    assert not any(alive(pid) for pid in pids)
    with pytest.raises(TemplateWorkerFailed, match="closed"):
        ask(workers, "x")


def test_close_waits_for_the_render_in_progress() -> None:
    workers = TemplateWorkers(timeout=0.3)
    ask(workers, "started")
    outcome: list[str] = []

    def busy() -> None:
        try:
            outcome.append(ask(workers, FOREVER))
        except (InvalidData, TemplateWorkerFailed) as error:
            outcome.append(type(error).__name__)

    thread = threading.Thread(target=busy)
    thread.start()
    workers.close()
    thread.join()
    assert outcome in (["InvalidData"], ["TemplateWorkerFailed"])  # the second where close came first
    assert workers.pids == []


def test_a_worker_ends_with_its_server() -> None:
    code = (
        "import os, signal; from cdvft_server.template_worker import TemplateWorkers\n"
        "workers = TemplateWorkers(); workers.render('x', [], bos_token='', eos_token='')\n"
        "print(workers.pids[0], flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    ended = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=False)
    assert ended.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 30
    while alive(int(ended.stdout)) and not _zombie(int(ended.stdout)):
        assert time.monotonic() < deadline, "the worker outlived its server"


def _zombie(pid: int) -> bool:
    """Ended, but nobody reaps it: a container's first process may not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return False


def test_a_worker_that_cannot_start(monkeypatch: pytest.MonkeyPatch) -> None:
    python = sys.executable
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with TemplateWorkers() as workers:
        for _ in range(2):
            with pytest.raises(TemplateWorkerFailed, match=r"did not start \(status 1\)"):
                ask(workers, "x")
        monkeypatch.setattr(sys, "executable", python)
        with pytest.raises(TemplateWorkerFailed, match="did not start"):  # the one that was started before
            ask(workers, "x")
        assert ask(workers, "x") == "x"
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(TemplateWorkerFailed, match="could not be started"):
        TemplateWorkers(count=2)


@pytest.mark.parametrize("options", [{"count": 0}, {"timeout": 0.0}])
def test_options(options: dict) -> None:
    with pytest.raises(ValueError, match="count >= 1 and timeout > 0"):
        TemplateWorkers(**options)


@has_proc
def test_the_worker_is_light_and_knows_nothing(workers: TemplateWorkers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CDVFT_API_KEY", "secret")
    with TemplateWorkers() as fresh:
        ask(fresh, "started")
        process = Path(f"/proc/{fresh.pids[0]}")
        assert "torch" not in (process / "maps").read_text()
        assert b"secret" not in (process / "environ").read_bytes()
        resident = next(line for line in (process / "status").read_text().splitlines() if line.startswith("VmRSS"))
        assert int(resident.split()[1]) < 64 << 10  # KiB


def test_imports_stay_light() -> None:
    code = (
        "import sys, cdvft_server.template_worker as w\n"
        "print([m for m in ('torch', 'transformers', 'fastapi', 'numpy') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


@has_proc
def test_no_descriptor_is_leaked() -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with TemplateWorkers(count=2) as workers:
            ask(workers, "x")
            with pytest.raises(InvalidData):
                ask(workers, FOREVER)
    assert len(os.listdir("/proc/self/fd")) == before
