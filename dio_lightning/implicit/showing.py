"""A solution in a notebook: numbers of every sample and a picture of the first, with the standard library alone."""

import struct
import zlib
from base64 import b64encode
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from dio_lightning.implicit.solution import Solution

MOST = 8
"""Samples that are listed."""


def solution_html(solution: "Solution") -> str:
    """A table of steps, residual and end of every sample, beside a picture of how large the first one's value is."""
    rows = []
    for index in range(min(MOST, len(solution.residual))):
        end = "failed" if solution.failed[index] else "converged" if solution.converged[index] else "steps ran out"
        numbers = f"<td>{int(solution.steps[index])}</td><td>{float(solution.residual[index]):.3g}</td>"
        rows.append(f"<tr><th>{index}</th>{numbers}<td>{end}</td></tr>")
    left = len(solution.residual) - len(rows)
    more = f"<p>and {left} more samples</p>" if left > 0 else ""
    head = "<tr><th>sample</th><th>steps</th><th>relative residual</th><th>end</th></tr>"
    shape = " × ".join(str(n) for n in solution.value.shape)
    table = f"<table>{head}{''.join(rows)}</table>{more}"
    return f"<div><b>Solution</b>, value of shape {shape}{_picture(solution.value)}{table}</div>"


def _picture(value: Tensor) -> str:
    """The norm over channels of the first sample (b, c, *s), in the middle of a volume; nothing for other shapes."""
    if value.ndim not in (4, 5) or not value[0].isfinite().all():
        return ""
    size = value[0].detach().float().norm(dim=0).cpu()
    plane = size if size.ndim == 2 else size[:, :, size.shape[2] // 2]
    top = float(plane.max())
    grey = (plane / (top or 1.0) * 255).round().to(torch.uint8).T.flip(0)
    data = b64encode(png(grey)).decode()
    height = f"height:{min(160, 4 * grey.shape[0])}px;image-rendering:pixelated;display:block;margin:.4em 0"
    title = f'alt="norm of the value" title="norm, 0 to {top:.3g}"'
    return f'<img {title} style="{height}" src="data:image/png;base64,{data}">'


def png(grey: Tensor) -> bytes:
    """A picture (h, w) of bytes as a PNG file."""
    height, width = grey.shape
    lines = b"".join(b"\0" + bytes(row) for row in grey.tolist())

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
