"""Events come out whole and in order, however the bytes are cut."""

from typing import Any

from cdvft_client._sse import EventDecoder
from hypothesis import given
from hypothesis import strategies as st

LINE = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=12)
ENDS = st.sampled_from([("\n", "\r\n"), ("\r", "\r\n")])  # CR and LF do not mix: they would make a CRLF
NOISE = st.one_of(LINE.map(lambda text: ":" + text), st.sampled_from(["event: x", "id: 7", "retry: 10", "data_: no"]))


def decode(pieces: list[bytes]) -> list[str]:
    decoder = EventDecoder()
    return [data for piece in pieces for data in decoder.feed(piece)]


def cut(content: bytes, data: st.DataObject) -> list[bytes]:
    places = data.draw(st.lists(st.integers(0, len(content)), max_size=12).map(sorted))
    return [content[a:b] for a, b in zip([0, *places], [*places, len(content)], strict=True)]


@st.composite
def streams(draw: Any) -> tuple[bytes, list[str]]:
    """An event stream written by the rules, and the data that it holds."""
    end = st.sampled_from(draw(ENDS))
    written, expected = draw(st.sampled_from(["", "\ufeff"])), []
    for lines in draw(st.lists(st.lists(LINE, max_size=3), max_size=5)):
        for line in lines:
            for noise in draw(st.lists(NOISE, max_size=2)):
                written += noise + draw(end)
            written += "data:" + draw(st.sampled_from([" ", ""] if not line.startswith(" ") else [" "])) + line
            written += draw(end)
        written += draw(end)
        expected += ["\n".join(lines)] if lines else []
    return written.encode(), expected


@given(streams(), st.data())
def test_whole_events_in_order_however_cut(stream: tuple[bytes, list[str]], data: st.DataObject) -> None:
    content, expected = stream
    assert decode(cut(content, data)) == expected


@given(st.lists(st.sampled_from([b"\r", b"\n", b"data:", b":", b" ", b"x", b"\xe2\x82\xac", b"\xff"])), st.data())
def test_the_cut_never_matters(parts: list[bytes], data: st.DataObject) -> None:
    content = b"".join(parts)
    assert decode(cut(content, data)) == decode([content])


def test_line_separators_inside_json_do_not_cut_it() -> None:
    text = "one\u2028two\u2029three\x0bfour\x85five"
    assert decode([f"data: {text}\n\n".encode()]) == [text]


def test_an_event_without_its_empty_line_is_not_given() -> None:
    assert decode([b"data: half\n"]) == []


def test_an_event_is_given_as_soon_as_its_empty_line_came() -> None:
    for end in (b"\n", b"\r\n", b"\r"):
        assert decode([b"data: now" + end, end]) == ["now"]


def test_a_field_without_colon_and_one_leading_blank() -> None:
    assert decode([b"data\n\ndata:  two blanks\n\n"]) == ["", " two blanks"]
