"""Log lines: their forms, what is left out of them, and a reader that does not read."""

import io
import json
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from threading import Thread

import pytest
from cdvft_server import logs
from cdvft_server.logs import CURRENT, Format, Level, logging_to

log = logging.getLogger("cdvft_server.test")


def lines(write: Callable[[], None], form: Format = "json", level: Level = "info") -> list[str]:
    stream = io.StringIO()
    with logging_to(stream, form, level):
        write()
    return stream.getvalue().splitlines()


def fail(message: str) -> None:
    try:
        try:
            raise KeyError(message)
        except KeyError as error:
            raise ValueError(message) from error
    except ValueError:
        log.exception("it failed")


def test_json_lines_have_the_request_and_the_fields() -> None:
    def write() -> None:
        token = CURRENT.set({"request_id": "r1", "tenant": "t", "other": "no"})
        log.info("a %s", "b", extra={"fields": {"status": 200, "adapter": None}})
        CURRENT.reset(token)
        log.warning("bare")

    first, second = map(json.loads, lines(write))
    assert first.pop("time").endswith("Z")
    assert first == {
        "level": "info", "logger": "cdvft_server.test", "message": "a b", "request_id": "r1", "tenant": "t",
        "status": 200,
    }  # fmt: skip
    assert "request_id" not in second


@pytest.mark.parametrize("form", ["text", "json"])
def test_an_exception_is_told_without_its_message(form: Format) -> None:
    (line,) = lines(lambda: fail("secret"), form)
    assert "secret" not in line
    assert "ValueError from KeyError" in line
    assert "test_logs.py" in line
    (line,) = lines(lambda: fail("secret"), form, "debug")
    assert "ValueError: secret" in line


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("text", ["a\nINFO b", "a\r\x1b[2J", "a\u2028b\x85c\x00", "a\udc80"])
def test_no_line_is_made_by_what_was_sent(form: Format, text: str) -> None:
    def write() -> None:
        log.info("%s", text, extra={"fields": {"adapter": text}})
        fail(text)

    found = lines(write, form, "debug")
    assert len(found) == 2
    assert all(line.isprintable() for line in found)


def test_levels() -> None:
    def write() -> None:
        for name in ("cdvft_server.a", "other"):
            for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
                logging.getLogger(name).log(level, "x")

    def told(level: Level) -> list[tuple[str, str]]:
        return [(entry["logger"], entry["level"]) for entry in map(json.loads, lines(write, level=level))]

    others = [("other", "warning"), ("other", "error")]
    names = ["debug", "info", "warning", "error"]
    for k, level in enumerate(("debug", "info", "warning", "error")):
        assert told(level) == [("cdvft_server.a", name) for name in names[k:]] + others  # type: ignore[arg-type]
    assert not logging.getLogger("cdvft_server").isEnabledFor(logging.INFO)


class Unwritable:
    def __repr__(self) -> str:
        raise RuntimeError("secret")


def test_a_record_that_cannot_be_written_is_told() -> None:
    found = lines(lambda: log.warning("x", extra={"fields": {"adapter": Unwritable()}}))
    assert found == ["a log line of cdvft_server.test could not be written: 'x'"]


def test_a_reader_that_does_not_read_stops_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines are left out, and their number is told once there is room."""
    monkeypatch.setattr(logs, "MOST_LINES", 10)
    reading, writing = os.pipe()
    got: list[str] = []

    def read() -> None:
        with os.fdopen(reading) as stream:
            got.extend(stream)

    reader = Thread(target=read)
    with os.fdopen(writing, "w") as stream, logging_to(stream, "json", "info"):
        for _ in range(100):
            log.info("%s", "x" * 10_000)  # the pipe holds 64 KiB
        reader.start()
    reader.join()
    messages = [json.loads(line)["message"] for line in got]
    told = [int(message.split()[0]) for message in messages if "left out" in message]
    assert sum(told) + len(messages) - len(told) == 100
    assert sum(told) > 50


def test_a_reader_that_is_gone_stops_nobody() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    stream = os.fdopen(writing, "w")
    with logging_to(stream, "text", "info"):
        log.info("x")
        log.info("y")
    with suppress(BrokenPipeError):
        stream.close()
