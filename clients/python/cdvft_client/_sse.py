"""Server-sent events from bytes that arrive in any pieces. Knows nothing of JSON or of HTTP."""

import re

LINE_END = re.compile(rb"\r\n|\r|\n")
BOM = b"\xef\xbb\xbf"


class EventDecoder:
    """Feeds on bytes, gives each whole event's data (WHATWG HTML, section "Server-sent events").

    Lines end in LF, CR or CRLF and nowhere else: JSON may hold U+2028, at which `str.splitlines` would cut.
    Comments and the fields event, id and retry are passed over; an event that was not ended is never given.
    """

    def __init__(self) -> None:
        self._rest = b""  # the unfinished last line
        self._data: list[str] = []  # of the event so far
        self._after_cr = False
        self._at_start = True

    def feed(self, piece: bytes) -> list[str]:
        """The data of the events that `piece` completes, in order."""
        if not piece:
            return []
        if self._after_cr:  # CRLF cut in two is one line end
            piece = piece.removeprefix(b"\n")
        self._after_cr = piece.endswith(b"\r")
        *lines, self._rest = LINE_END.split(self._rest + piece)
        return [data for line in lines if (data := self._line(line)) is not None]

    def _line(self, line: bytes) -> str | None:
        if self._at_start:
            line, self._at_start = line.removeprefix(BOM), False
        if line:
            field, _, value = line.decode("utf-8", "replace").partition(":")
            if field == "data":
                self._data.append(value.removeprefix(" "))
            return None
        if not self._data:
            return None
        data, self._data = "\n".join(self._data), []
        return data
