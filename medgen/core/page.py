"""Reports as HTML pages that need nothing outside themselves: the frame, the shared style, tables and pictures."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

import numpy as np

STYLE = Path(__file__).with_name("page.css")


def document(title: str, parts: Iterable[str], style: Path | None = None) -> str:
    """The whole page of its parts (HTML; empty ones are left out).

    Args:
        style: a style sheet of the report's own, after the shared one.
    """
    sheets = "".join(path.read_text(encoding="utf-8") for path in (STYLE, style) if path is not None)
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><title>{escape(title)}</title>'
    body = "\n".join(part for part in parts if part)
    return f'<!doctype html>\n<html lang="en"><head>{head}<style>\n{sheets}</style></head>\n<body>\n{body}\n</body></html>\n'


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are HTML; on a narrow screen the table scrolls alone."""
    top = "".join(f"<th>{escape(head)}</th>" for head in heads)
    lines = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{top}</tr>{lines}</table></div>'


def image(png: bytes, label: str) -> str:
    """A PNG in the page."""
    return f'<img src="data:image/png;base64,{base64.b64encode(png).decode()}" alt="{escape(label)}">'


def png(picture: np.ndarray) -> bytes:
    """(H, W) or (H, W, 3) uint8 as a PNG."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG", optimize=True)
    return file.getvalue()
