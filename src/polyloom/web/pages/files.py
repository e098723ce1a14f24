"""Files of runs: to look at in a frame of their own, to take along, and tables as CSV."""

from __future__ import annotations

import csv
import io
import mimetypes
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from polyloom.core.result import Cell
from polyloom.web.looking import result_of, see
from polyloom.web.security import FILE_POLICY, confined

router = APIRouter()
RECORD = ("run.json", "config.yaml", "metrics.jsonl", "result.json", "report.html", "job.log")
MAX_LISTED = 200
# What a browser may show; everything else is only handed over.
SHOWN = {
    ".html": "text/html",
    ".json": "text/plain",
    ".jsonl": "text/plain",
    ".yaml": "text/plain",
    ".txt": "text/plain",
    ".log": "text/plain",
    ".md": "text/plain",
    ".csv": "text/plain",
    ".tsv": "text/plain",
    ".svg": "image/svg+xml",
    ".png": "image/png",
}


@dataclass(frozen=True)
class Listed:
    """A file of a run, as the page lists it."""

    path: str
    address: str
    num_bytes: int
    description: str = ""

    @property
    def size(self) -> str:
        """Its size in words."""
        size = float(self.num_bytes)
        for unit in ("B", "kB", "MB"):
            if size < 1000:
                return f"{size:.0f} {unit}" if unit == "B" or size >= 10 else f"{size:.1f} {unit}"
            size /= 1000
        return f"{size:.1f} GB"


def files_of(folder: Path) -> list[Listed]:
    """Return the files of a run that people look for: its record and its artifacts, of very many the first."""
    result = result_of(folder)
    described = {item.path: item.description for item in result.artifacts.values()} if result else {}
    paths = [folder / name for name in RECORD]
    paths += sorted((folder / "artifacts").rglob("*"))[:MAX_LISTED]
    found = []
    for path in paths:
        if path.is_file() and not path.is_symlink():
            name = path.relative_to(folder).as_posix()
            found.append(
                Listed(name, f"/files/{folder.name}/{quote(name)}", path.stat().st_size, described.get(name, ""))
            )
    return found


@router.get("/files/{name}/{path:path}")
def give(request: Request, name: str, path: str, download: bool = False) -> Response:
    """Give a file of a run: to be shown where that is safe, else to be kept."""
    folder = see(request, name).folder
    file = confined(folder, path)
    if not file.is_file() or any(part.startswith(".") for part in file.relative_to(folder).parts):
        raise HTTPException(404)
    shown = SHOWN.get(file.suffix.lower())
    kind = shown or mimetypes.guess_type(file.name)[0] or "application/octet-stream"
    return FileResponse(
        file,
        media_type=f"{kind}; charset=utf-8" if kind.startswith("text/") else kind,
        filename=file.name if download or not shown else None,
        headers={"content-security-policy": FILE_POLICY},
    )


@router.get("/runs/{name}/record.zip")
def record(request: Request, name: str) -> Response:
    """Give a run's record as one file: configuration, metrics, result and report."""
    folder = see(request, name).folder
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for part in RECORD:
            if (folder / part).is_file():
                archive.write(folder / part, f"{folder.name}/{part}")
    return _attachment(buffer.getvalue(), "application/zip", f"{folder.name}.zip")


@router.get("/runs/{name}/tables/{table}.csv")
def table(request: Request, name: str, table: str) -> Response:
    """Give a table of a run's result as CSV."""
    result = result_of(see(request, name).folder)
    if result is None or table not in result.tables:
        raise HTTPException(404)
    found = result.tables[table]
    return _attachment(_csv([found.columns, *found.rows]), "text/csv; charset=utf-8", f"{name}-{table}.csv")


def _csv(rows: Iterable[list[str] | list[Cell]]) -> bytes:
    """Write rows as CSV; a text that a spreadsheet would take for a formula gets an apostrophe before it."""
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    for row in rows:
        writer.writerow([f"'{cell}" if isinstance(cell, str) and cell[:1] in "=+-@\t\r" else cell for cell in row])
    return buffer.getvalue().encode()


def _attachment(data: bytes, kind: str, name: str) -> Response:
    disposition = f"attachment; filename*=utf-8''{quote(name, safe='')}"
    return Response(data, media_type=kind, headers={"content-disposition": disposition})
