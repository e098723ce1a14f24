"""Web pages: the text of HTML, and the records of WARC files."""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from typing import IO, Literal

from polyloom.core.errors import MissingExtra, UserError

Extractor = Literal["auto", "trafilatura", "plain"]
_HIDDEN = {"script", "style", "noscript", "template", "head", "nav", "footer", "aside", "form", "svg", "iframe"}
_BREAKS = {"p", "div", "br", "li", "tr", "h1", "h2", "h3", "h4", "h5", "h6", "article", "section", "table", "pre", "dd"}
_VOID = {"br", "hr", "img", "input", "link", "meta", "area", "base", "col", "embed", "source", "track", "wbr"}
_CHARSET = re.compile(rb"charset\s*=\s*[\"']?\s*([A-Za-z0-9_:.-]+)", re.IGNORECASE)
_HEADER_BYTES = 1 << 16


class _Stripper(HTMLParser):
    """Collects the visible text of a page, one block a line."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.hidden: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a block that begins, or one that is not shown."""
        if tag in _HIDDEN:
            self.hidden.append(tag)
        if tag in _BREAKS:
            self.parts.append("\n")

    def handle_endtag(self, tag: str) -> None:
        """Note a block that ends."""
        if tag in self.hidden:
            del self.hidden[self.hidden.index(tag) :]
        if tag in _BREAKS and tag not in _VOID:
            self.parts.append("\n")

    def handle_data(self, data: str) -> None:
        """Keep text that is shown."""
        if not self.hidden:
            self.parts.append(data)


def extract_html(page: str, extractor: Extractor = "auto") -> str:
    """Return the text of a web page, a block a line.

    Args:
        page: HTML.
        extractor: `trafilatura` keeps the main content; `plain` strips tags, scripts, navigation and footers; `auto`
            is trafilatura where it is installed.

    Raises:
        MissingExtra: trafilatura was asked for and is not installed.
    """
    if resolve_extractor(extractor) == "trafilatura":
        import trafilatura

        return trafilatura.extract(page, include_comments=False, deduplicate=False) or ""
    stripper = _Stripper()
    stripper.feed(page)
    stripper.close()
    lines = (" ".join(line.split()) for line in "".join(stripper.parts).split("\n"))
    return "\n".join(line for line in lines if line)


def resolve_extractor(extractor: Extractor) -> Extractor:
    """Return the extractor that `extractor` stands for on this machine.

    Raises:
        MissingExtra: trafilatura was asked for and is not installed.
    """
    if extractor == "plain":
        return "plain"
    try:
        import trafilatura  # noqa: F401
    except ImportError:
        if extractor == "trafilatura":
            raise MissingExtra("trafilatura", extra="corpus") from None
        return "plain"
    return "trafilatura"


def page_encoding(body: bytes, content_type: str = "") -> str:
    """Return the encoding that a page declares in its header or its first kilobytes; utf-8 where it declares none."""
    found = _CHARSET.search(content_type.encode()) or _CHARSET.search(body[:4096])
    return found.group(1).decode() if found else "utf-8"


@dataclass(frozen=True)
class WebRecord:
    """A page of a WARC file, or the text of a WET file."""

    url: str
    body: bytes
    content_type: str


def read_warc(stream: IO[bytes], max_bytes: int) -> Iterator[WebRecord | str]:
    """Read the pages of a WARC or WET stream that is already decompressed.

    Args:
        stream: its bytes.
        max_bytes: a larger record is left out, and said.

    Yields:
        HTML of `response` and `resource` records, plain text of `conversion` records; for a record that is left out,
        the reason.

    Raises:
        UserError: the stream is no WARC file, or ends inside a record.
    """
    while (head := _read_head(stream)) is not None:
        length = int(head.get("content-length", "0") or 0)
        if length > max_bytes:
            _skip(stream, length)
            yield f"record over {max_bytes} bytes"
            continue
        body = stream.read(length)
        if len(body) < length:
            raise UserError("ends inside a record.")
        kind = head.get("warc-type", "")
        url = head.get("warc-target-uri", "").strip("<>")
        if kind == "conversion":
            yield WebRecord(url, body, "text/plain; charset=utf-8")
        elif kind in ("response", "resource"):
            page = _http_page(url, body) if kind == "response" else WebRecord(url, body, head.get("content-type", ""))
            if page is not None and "html" in page.content_type.lower():
                yield page


def _read_head(stream: IO[bytes]) -> dict[str, str] | None:
    """Read a record's head; None at the end of the stream."""
    first = b"\r\n"
    while first and not first.strip():
        first = stream.readline(_HEADER_BYTES)
    if not first:
        return None
    if not first.startswith(b"WARC/"):
        raise UserError("is no WARC file.", hint="Name .warc or .warc.gz files as a crawler writes them.")
    head: dict[str, str] = {}
    while (line := stream.readline(_HEADER_BYTES)).strip():
        name, _, value = line.decode("utf-8", "replace").partition(":")
        head[name.strip().lower()] = value.strip()
    return head


def _skip(stream: IO[bytes], length: int) -> None:
    while length > 0 and (piece := stream.read(min(length, 1 << 20))):
        length -= len(piece)


def _http_page(url: str, message: bytes) -> WebRecord | None:
    """Return the page of an HTTP answer, or None where it is no success."""
    head, _, body = message.partition(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if " 200" not in status[:16]:
        return None
    if "chunked" in fields.get("transfer-encoding", "").lower():
        body = _join_chunks(body)
    if fields.get("content-encoding", "").lower() in ("gzip", "x-gzip"):
        try:
            body = gzip.decompress(body)
        except (OSError, EOFError, zlib.error):
            return None
    return WebRecord(url, body, fields.get("content-type", ""))


def _join_chunks(body: bytes) -> bytes:
    parts: list[bytes] = []
    position = 0
    while (end := body.find(b"\r\n", position)) >= 0:
        try:
            size = int(body[position:end].split(b";")[0], 16)
        except ValueError:
            # Crawlers often store the body joined already and keep the header.
            return body
        if size == 0:
            break
        parts.append(body[end + 2 : end + 2 + size])
        position = end + 2 + size + 2
    return b"".join(parts) if parts else body
