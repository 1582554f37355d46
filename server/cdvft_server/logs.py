"""Log lines: text for people or JSON for programs, with the request they belong to, and nothing of what it said.

An exception is told by its type and the lines it passed, not by its message, which may quote a prompt; at the level
debug by its message, too. What is written goes through a queue: a standard error that nobody reads stops no request.
"""

import json
import logging
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from queue import Full, Queue
from threading import Lock, Thread
from typing import Any, Literal, TextIO

__all__ = ["CURRENT", "Format", "Level", "logging_to"]

Format = Literal["text", "json"]
Level = Literal["debug", "info", "warning", "error"]

CURRENT: ContextVar[Mapping[str, Any] | None] = ContextVar("cdvft_request", default=None)
"""The state of the request that this task serves; its `request_id` and `tenant` go into each line."""

MOST_LINES = 10_000  # that wait to be written; then lines are left out, and that is told
MOST_CAUSES = 5
CLOSE_SECONDS = 2.0
OWN = "cdvft_server"


@contextmanager
def logging_to(stream: TextIO, form: Format, level: Level) -> Iterator[None]:
    """Inside, this program's loggers write there from `level` on, and others' from warning on."""
    root, own = logging.getLogger(), logging.getLogger(OWN)
    before, above = own.level, root.level
    writer = _Writer(stream)
    writer.setFormatter(_Lines(form, messages=level == "debug"))
    root.addHandler(writer)
    own.setLevel(level.upper())
    root.setLevel(logging.WARNING)
    try:
        yield
    finally:
        root.removeHandler(writer)
        own.setLevel(before)
        root.setLevel(above)
        writer.close()


class _Writer(logging.Handler):
    """Formats in the caller's thread, so that nothing of a request waits here, and writes in one of its own."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self._lines: Queue[str | None] = Queue(MOST_LINES)
        self._left_out, self._counting = 0, Lock()
        self._thread = Thread(target=self._write, name="cdvft-log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception:
            line = f"a log line of {record.name} could not be written: {str(record.msg)!r}"
        try:
            self._lines.put_nowait(line)
        except Full:
            with self._counting:
                self._left_out += 1

    def close(self) -> None:
        super().close()
        try:
            self._lines.put(None, timeout=CLOSE_SECONDS)
        except Full:
            return  # nobody reads: the thread ends with the process
        self._thread.join(CLOSE_SECONDS)

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            with self._counting:
                left_out, self._left_out = self._left_out, 0
            if left_out:
                line = f"{self.format(_told(left_out))}\n{line}"
            try:
                self._stream.write(f"{line}\n")
                self._stream.flush()
            except (OSError, ValueError):
                continue  # the reader is gone; the server is not


def _told(left_out: int) -> logging.LogRecord:
    message = "%d log lines were left out: they came faster than they could be written"
    return logging.LogRecord(__name__, logging.WARNING, __file__, 0, message, (left_out,), None)


class _Lines(logging.Formatter):
    """One line for each record, whatever it has in it. `extra={"fields": {...}}` adds names and values."""

    def __init__(self, form: Format, *, messages: bool) -> None:
        super().__init__()
        self._form, self._messages = form, messages

    def format(self, record: logging.LogRecord) -> str:
        current = CURRENT.get() or {}
        request = {name: current[name] for name in ("request_id", "tenant") if name in current}
        fields = {**request, **getattr(record, "fields", {})}
        fields = {name: value for name, value in fields.items() if value is not None}
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            fields |= {"exception": _described(error, self._messages), "trace": _trace(error)}
        head = {"time": _time(record.created), "level": record.levelname.lower(), "logger": record.name}
        if self._form == "json":
            return json.dumps({**head, "message": record.getMessage(), **fields}, default=str)
        words = [*head.values(), record.getMessage(), *(f"{name}={_word(value)}" for name, value in fields.items())]
        return " ".join(map(_printable, words))


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    for _ in range(MOST_CAUSES):
        if cause is None:
            return
        yield cause
        cause = cause.__cause__ or cause.__context__


def _described(error: BaseException, messages: bool) -> str:
    """ "KeyError from ValueError"."""
    names = (f"{type(cause).__name__}: {cause}" if messages else type(cause).__name__ for cause in _causes(error))
    return " from ".join(names)


def _trace(error: BaseException) -> list[str]:
    """The lines that it passed, the innermost last."""
    frames = traceback.extract_tb(error.__traceback__)
    return [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]


def _word(value: Any) -> str:
    if isinstance(value, list):
        return json.dumps(value)
    text = str(value)
    return json.dumps(text) if " " in text or '"' in text else text


def _printable(text: str) -> str:
    """No line of a log is made by what a client sent: what is not printed is escaped."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
