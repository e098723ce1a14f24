from __future__ import annotations

import gzip
import io
from typing import Any

import pytest

from polyloom.core.errors import UserError
from polyloom.data.web import WebRecord, extract_html, page_encoding, read_warc

PAGE = """<!DOCTYPE html><html><head><title>T</title><style>p {x}</style></head><body><nav>Menu</nav>
<h1>Head</h1><p>One <b>bold</b> &amp; two.<br>Three</p><script>var x = "<p>no</p>";</script>
<ul><li>a</li><li>b</li></ul><footer>Foot</footer></body></html>"""


def warc(kind: str, body: bytes, url: str = "http://example.org/") -> bytes:
    head = f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: <{url}>\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body + b"\r\n\r\n"


def http(body: bytes, *fields: str, status: str = "200 OK") -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", "Content-Type: text/html; charset=utf-8", *fields]).encode() + (
        b"\r\n\r\n" + body
    )


def records(data: bytes, max_bytes: int = 10_000) -> list[Any]:
    return list(read_warc(io.BytesIO(data), max_bytes))


def test_plain_extraction_keeps_visible_blocks() -> None:
    assert extract_html(PAGE, "plain") == "Head\nOne bold & two.\nThree\na\nb"


def test_broken_markup_is_no_error() -> None:
    assert extract_html("<p>a<div>b</span></p></nav>c<!-- d -->", "plain").split() == ["a", "b", "c"]


def test_trafilatura_where_it_is_installed() -> None:
    pytest.importorskip("trafilatura")
    body = (
        "<p>" + "</p><p>".join("A paragraph of ordinary words that is long enough to keep." for _ in range(3)) + "</p>"
    )
    text = extract_html(f"<html><body><nav>Menu</nav><article>{body}</article></body></html>", "trafilatura")
    assert "ordinary words" in text
    assert "Menu" not in text


def test_declared_encodings() -> None:
    assert page_encoding(b"", "text/html; charset=GB2312") == "GB2312"
    assert page_encoding(b'<meta charset="shift_jis">') == "shift_jis"
    assert page_encoding(b"<p>") == "utf-8"


def test_pages_of_a_warc_file() -> None:
    chunked = b"4\r\n<p>a\r\n5;x=1\r\nb</p>\r\n0\r\n\r\n"
    data = b"".join(
        [
            warc("warcinfo", b"software: x"),
            warc("response", http(b"<p>one</p>")),
            warc("response", http(b"gone", status="404 Not Found")),
            warc("response", http(chunked, "Transfer-Encoding: chunked")),
            warc("response", http(gzip.compress(b"<p>two</p>"), "Content-Encoding: gzip")),
            warc("response", http(b"broken", "Content-Encoding: gzip")),
            warc("response", b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\n\r\nx"),
            warc("conversion", "plain é".encode()),
            warc("response", http(b"x" * 20_000)),
        ]
    )
    found = records(data)
    pages = [record.body for record in found if isinstance(record, WebRecord)]
    assert pages == [b"<p>one</p>", b"<p>ab</p>", b"<p>two</p>", "plain é".encode()]
    assert found[-1] == "record over 10000 bytes"
    assert found[0].url == "http://example.org/"


def test_a_body_that_only_claims_to_be_chunked() -> None:
    data = warc("response", http(b"<p>whole</p>\r\n", "Transfer-Encoding: chunked"))
    assert records(data)[0].body == b"<p>whole</p>\r\n"


def test_what_is_no_warc_file_and_one_that_is_cut() -> None:
    with pytest.raises(UserError, match="is no WARC file"):
        records(b"hello\n")
    with pytest.raises(UserError, match="ends inside a record"):
        records(warc("conversion", b"x" * 100)[:120])
