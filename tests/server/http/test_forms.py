"""The charset of an upload's form: utf-8, whatever codecs Python has."""

import pytest
from cdvft.checkpoint import adapter_files

from tests.server.http.harness import Fleet, error_of
from tests.tiny import random_adapter


def form(fleet: Fleet, *extra: tuple[bytes, bytes]) -> bytes:
    files = adapter_files(random_adapter(fleet.base.info, 77), fleet.base.info)
    parts = [
        (b'name="name"', b"charsets"),
        (b'name="config"; filename="c"', files.config),
        (b'name="weights"; filename="w"', files.weights),
        *extra,
    ]
    body = b"".join(b"--XX\r\nContent-Disposition: form-data; %s\r\n\r\n%s\r\n" % part for part in parts)
    return body + b"--XX--\r\n"


@pytest.mark.parametrize(
    "charset", ["undefined", "punycode", "idna", "unicode_escape", "utf-7", "utf-16", "hex", "latin-1", "nosuch", '""']
)
@pytest.mark.parametrize("extra", [(b'name="description"', rb"\ud800"), (rb'name="\ud800x"', b"+2AA-")])
def test_other_charsets_are_refused(decoder: Fleet, charset: str, extra: tuple[bytes, bytes]) -> None:
    headers = {"content-type": f"multipart/form-data; boundary=XX; charset={charset}"}
    with decoder.unharmed():
        answer = decoder.live.client.post("/v1/adapters", content=form(decoder, extra), headers=headers)
        assert (answer.status_code, error_of(answer)["code"]) == (400, "invalid_request")
        assert "charset" in answer.text


@pytest.mark.parametrize("charset", ["", "; charset=utf-8", '; charset="UTF-8"', "; charset=utf8"])
def test_utf_8_is_read(decoder: Fleet, charset: str) -> None:
    headers = {"content-type": f"multipart/form-data; boundary=XX{charset}"}
    body = form(decoder, (b'name="description"', "ü 🦊".encode()))
    answer = decoder.live.client.post("/v1/adapters", content=body, headers=headers)
    assert answer.status_code in (200, 201)
    assert decoder.live.client.delete("/v1/adapters/charsets").status_code == 200
