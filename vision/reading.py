"""Reading a whole picture of any size with a ReaderTower: scale, tiles, selection."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vision.lines import Detections, suppress
from vision.reader import STRIDE, ReaderOutput, ReaderTower
from vision.tokens import Things, VisualTokens, assemble, detect, detect_things

#: Median height of capitals, in pixels, at which the tower reads well; outside it the page is resized to IDEAL.
LOWEST, IDEAL, HIGHEST = 8.0, 12.0, 19.0
#: Pixels the tower takes at once; larger pages are cut into overlapping tiles.
TILE_PIXELS, TILE_SIDE, OVERLAP = 2_600_000, 1280, 64
#: Pixels beyond which a page is scaled down whatever its text.
MAX_READ_PIXELS = 12_000_000


@dataclass
class Reading:
    """What the tower found on a picture.

    Attributes:
        tokens: entries in reading order, boxes in pixels of the given picture.
        features: [K, F] tower features of the entries, zero where there is no cell.
        size: width and height of the given picture.
        scale: by how much the picture was resized before it was read.
    """

    tokens: VisualTokens
    features: Tensor
    size: tuple[int, int]
    scale: float


def fast_bf16() -> bool:
    """Whether bf16 is faster than float32 here (AVX-512 BF16 or AMX, or a GPU)."""
    if torch.cuda.is_available():
        return True
    capability = getattr(torch.backends.cpu, "get_cpu_capability", lambda: "")()
    return "AVX512" in capability and bool(getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)())


@torch.inference_mode()
def read_picture(tower: ReaderTower, image: Image.Image, colon: int, rescale: bool = True) -> Reading:
    """Read an RGB picture.

    Args:
        tower: in evaluation mode. image: RGB. colon: character class of ':'.
        rescale: resize the page when its text is too small or too large for the tower.
    """
    width, height = image.size
    scale = min(1.0, (MAX_READ_PIXELS / (width * height)) ** 0.5)
    found, things, features, used = _look(tower, image, scale)
    if rescale and len(found) >= 5:
        tall = float(np.median(found.boxes[:, 3] - found.boxes[:, 1]))
        if not LOWEST <= tall <= HIGHEST:
            wanted = min(used * float(np.clip(IDEAL / tall, 0.2, 3.0)), (MAX_READ_PIXELS / (width * height)) ** 0.5)
            if abs(np.log(wanted / used)) > 0.1:
                found, things, features, used = _look(tower, image, wanted)
    size = (max(1, round(width * used)), max(1, round(height * used)))
    tokens = assemble(found, things, size, colon)
    gathered = torch.zeros(len(tokens), features.shape[1])
    cells = torch.from_numpy(tokens.cells)
    gathered[cells >= 0] = features[cells[cells >= 0]]
    return Reading(tokens.scaled(width / size[0], height / size[1]), gathered, (width, height), used)


def _look(tower: ReaderTower, image: Image.Image, scale: float) -> tuple[Detections, Things, Tensor, float]:
    """Detections, things, features [cells, F] and the scale used. ``cells`` of the detections index the features."""
    width, height = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    page = image if (width, height) == image.size else image.resize((width, height), Image.Resampling.BICUBIC)
    pixels = np.asarray(page)
    found: list[Detections] = []
    things: list[Things] = []
    features: list[Tensor] = []
    start = 0
    for x0, y0, x1, y1, core in tiles(width, height):
        output = _run(tower, pixels[y0:y1, x0:x1])
        flat = output.features[0].float().flatten(1).T  # [cells, F]
        here, there = detect(output), detect_things(output)
        here.boxes += np.array([x0, y0, x0, y0], np.float32)
        there.boxes += np.array([x0, y0, x0, y0], np.float32)
        here.cells += start
        there.cells += start
        start += len(flat)
        keep = _inside(here.boxes, core)
        found.append(here.take(keep))
        keep = _inside(there.boxes, core)
        things.append(Things(there.boxes[keep], there.classes[keep], there.colors[keep], there.score[keep], there.cells[keep]))
        features.append(flat)
    if len(found) == 1:
        return found[0], things[0], features[0], width / image.width
    joined = suppress(Detections(*(np.concatenate([getattr(f, n) for f in found]) for n in Detections.__dataclass_fields__)))
    together = Things(*(np.concatenate([getattr(t, n) for t in things]) for n in Things.__dataclass_fields__))
    return joined, together, torch.cat(features), width / image.width


def _inside(boxes: NDArray[np.float32], core: tuple[float, float, float, float]) -> NDArray[np.bool_]:
    cx, cy = (boxes[:, 0] + boxes[:, 2]) / 2, (boxes[:, 1] + boxes[:, 3]) / 2
    return (cx >= core[0]) & (cx < core[2]) & (cy >= core[1]) & (cy < core[3])


def tiles(width: int, height: int) -> list[tuple[int, int, int, int, tuple[float, float, float, float]]]:
    """Tiles (x0, y0, x1, y1, core) that cover a page; the cores divide it without overlap.

    A page of up to TILE_PIXELS is one tile. Origins are multiples of the stride, so that cells line up.
    """
    if width * height <= TILE_PIXELS:
        return [(0, 0, width, height, (-1e9, -1e9, 1e9, 1e9))]
    xs, ys = _cuts(width), _cuts(height)
    out = []
    for top, bottom in pairwise(ys):
        for left, right in pairwise(xs):
            core = (left if left else -1e9, top if top else -1e9, right if right < width else 1e9, bottom if bottom < height else 1e9)
            out.append((max(0, left - OVERLAP), max(0, top - OVERLAP), min(width, right + OVERLAP), min(height, bottom + OVERLAP), core))
    return out


def _cuts(length: int) -> list[int]:
    parts = -(-length // TILE_SIDE)
    return [min(length, round(length * i / parts / STRIDE) * STRIDE) if i < parts else length for i in range(parts + 1)]


def _run(tower: ReaderTower, pixels: NDArray[np.uint8]) -> ReaderOutput:
    height, width = pixels.shape[:2]
    padded = np.pad(pixels, ((0, -height % STRIDE), (0, -width % STRIDE), (0, 0)), mode="edge")
    device = next(tower.parameters()).device
    batch = torch.from_numpy(padded).to(device).permute(2, 0, 1).unsqueeze(0).float().div_(255).contiguous(memory_format=torch.channels_last)
    with torch.autocast(device.type, torch.bfloat16, enabled=fast_bf16()):
        output: ReaderOutput = tower(batch)
    return ReaderOutput(*(getattr(output, n).float().cpu() for n in ReaderOutput.__dataclass_fields__))
