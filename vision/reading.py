"""Reading a whole picture of any size with a ReaderTower: scale, further looks, tiles, selection.

A page too large for one pass is cut into overlapping tiles. Each tile is as much wider than its core as the tower sees,
and only the cells of its core are kept, so the maps are those of the whole page, and everything after is done once.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vision.lines import Detections
from vision.pooling import pool
from vision.reader import STRIDE, ReaderOutput, ReaderTower
from vision.tokens import Things, VisualTokens, assemble, detect, detect_things

#: Median height of capitals, in pixels, at which the tower reads well; outside it the page is resized to IDEAL.
LOWEST, IDEAL, HIGHEST = 10.5, 14.5, 19.0
#: Pixels the tower takes at once; larger pages are cut into tiles whose cores are about TILE_SIDE wide and high at most.
TILE_PIXELS, TILE_SIDE = 2_600_000, 1280
#: Pixels of context around a core: at least what a cell of the default tower sees (119 to each side).
OVERLAP = 120
#: Pixels of small pages of a size that are taken together.
TOGETHER = 400_000
#: Pixels beyond which a page is scaled down whatever its text.
MAX_READ_PIXELS = 12_000_000
#: Fewer characters than this of this score say nothing about the size of the text.
ENOUGH, SURE = 5, 0.9
#: How much larger the page is shown the second time; and at most, where its text is small.
SECOND, SMALL_SECOND = 1.15, 1.25
#: How much larger, or smaller, it is shown the third time: whichever brings the text nearer to IDEAL.
THIRD = (1.3, 0.8)
#: Text smaller than it should be by more than this is not read as it is at all: enlarged paper shows its grain, and that, too, looks like print.
TINY = 2.0

_MAPS = tuple(ReaderOutput.__dataclass_fields__)


@dataclass
class Reading:
    """What the tower found on a picture.

    Attributes:
        tokens: K entries in reading order, boxes in pixels of the given picture.
        features: [K, F] tower features of the entries, zero where there is no cell.
        size: width and height of the given picture.
        scale: by how much the picture was resized before it was read.
    """

    tokens: VisualTokens
    features: Tensor
    size: tuple[int, int]
    scale: float

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass
class _Look:
    """One pass over the page resized to `size`; `features` [cells, F] are those of all cells that its finds may name."""

    found: Detections
    things: Things
    features: Tensor
    size: tuple[int, int]

    @property
    def sure_boxes(self) -> NDArray[np.float32]:
        """[n, 4] of the characters it is sure of."""
        return self.found.boxes[self.found.score > SURE]


def fast_bf16(device: torch.device | None = None) -> bool:
    """Whether bf16 is faster than float32 (AVX-512 BF16 or AMX, or a GPU) on `device`; None: on the best device there is."""
    if device.type == "cuda" if device is not None else torch.cuda.is_available():
        return True
    capability = getattr(torch.backends.cpu, "get_cpu_capability", lambda: "")()
    return "AVX512" in capability and bool(getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)())


def read_picture(tower: ReaderTower, image: Image.Image, colon: int, rescale: bool = True, pooled: bool = True) -> Reading:
    """Read an RGB picture.

    Args:
        tower: in evaluation mode. image: RGB. colon: character class of ':'.
        rescale: read the page again, resized, if its text is too small or too large for the tower.
        pooled: look at a page with text at two more sizes, and pool what was found (:mod:`vision.pooling`).
    """
    return read_pictures(tower, [image], colon, rescale, pooled)[0]


@torch.inference_mode()
def read_pictures(tower: ReaderTower, images: Sequence[Image.Image], colon: int, rescale: bool = True, pooled: bool = True) -> list[Reading]:
    """Read RGB pictures, each as :func:`read_picture` does; small ones of a size go through the tower together."""
    readers = [_read(image, colon, rescale, pooled) for image in images]
    pages = {number: next(reader) for number, reader in enumerate(readers)}
    done: dict[int, Reading] = {}
    while pages:
        alike: dict[tuple[int, int], list[int]] = {}
        for number, page in pages.items():
            alike.setdefault((-(-page.shape[0] // STRIDE), -(-page.shape[1] // STRIDE)), []).append(number)
        asked, pages = pages, {}
        for numbers in alike.values():
            for number, output in zip(numbers, _maps_of(tower, [asked[number] for number in numbers]), strict=True):
                try:
                    pages[number] = readers[number].send(output)
                except StopIteration as end:
                    done[number] = end.value
    return [done[number] for number in range(len(images))]


def _maps_of(tower: ReaderTower, pages: list[NDArray[np.uint8]]) -> Iterator[ReaderOutput]:
    """The maps of each of some pages of as many cells."""
    together = max(1, TOGETHER // (pages[0].shape[0] * pages[0].shape[1]))
    if together == 1:
        yield from (read_maps(tower, page) for page in pages)
        return
    for first in range(0, len(pages), together):
        some = [_whole_cells(page) for page in pages[first : first + together]]
        output = _run(tower, np.stack(some))
        parts = zip(*(getattr(output, name).split(1) for name in _MAPS), strict=True)
        yield from (ReaderOutput(*part) for part in parts)


#: A reader of one picture: it asks for the maps of a page [H, W, 3], of one after another, and ends with what it read.
_Reader = Generator[NDArray[np.uint8], ReaderOutput, Reading]


def _read(image: Image.Image, colon: int, rescale: bool, pooled: bool) -> _Reader:
    width, height = image.size
    most = (MAX_READ_PIXELS / (width * height)) ** 0.5
    scale = min(1.0, most)
    look, larger = (yield from _look(image, scale)), SECOND
    if rescale and len(sure := look.sure_boxes) >= ENOUGH:
        wanted = min(better_scale(sure, scale), most)
        if pooled and 1.0 < wanted / scale <= TINY:
            larger = max(SECOND, min(SMALL_SECOND, wanted / scale))
        elif abs(np.log(wanted / scale)) > 0.1:
            again = yield from _look(image, wanted)
            # small print is read enlarged, but widgets are known at the size they have beside small print
            look = _with_things_of(again, look) if wanted > scale else again
            scale = wanted
    if pooled and len(look.sure_boxes) >= ENOUGH:
        others = []
        tall = _height(look.sure_boxes)
        for factor in (larger, min(THIRD, key=lambda third: abs(np.log(tall * third / IDEAL)))):
            others.append((yield from _look(image, scale * factor if scale * factor <= most else scale / factor)))
        look = _pooled(look, others)
    tokens = assemble(look.found, look.things, look.size, colon)
    features = torch.zeros(len(tokens), look.features.shape[1])
    cells = torch.from_numpy(tokens.cells)
    features[cells >= 0] = look.features[cells[cells >= 0]]
    return Reading(tokens.scaled(width / look.size[0], height / look.size[1]), features, (width, height), scale)


def _with_things_of(look: _Look, other: _Look) -> _Look:
    """`look` with the things of `other`, in its own pixels; their cells are counted behind its own."""
    things = replace(other.things, boxes=other.things.boxes * _ratio(look, other), cells=other.things.cells + len(look.features))
    return replace(look, things=things, features=torch.cat((look.features, other.features)))


def _pooled(look: _Look, others: list[_Look]) -> _Look:
    """`look` with the characters that all have found."""
    found = [look.found, *(replace(other.found, boxes=other.found.boxes * _ratio(look, other)) for other in others)]
    counts = [len(each.features) for each in (look, *others)]
    features = torch.cat([each.features for each in (look, *others)])
    return replace(look, found=pool(found, [sum(counts[:i]) for i in range(len(counts))]), features=features)


def _ratio(look: _Look, other: _Look) -> NDArray[np.float32]:
    """What turns boxes of `other` into boxes of `look`."""
    sx, sy = look.size[0] / other.size[0], look.size[1] / other.size[1]
    return np.array([sx, sy, sx, sy], np.float32)


def better_scale(boxes: NDArray[np.float32], scale: float) -> float:
    """The scale at which text that has boxes [N, 4] at `scale` would have the ideal size; `scale` itself if it is fine."""
    tall = _height(boxes)
    return scale if LOWEST <= tall <= HIGHEST else scale * float(np.clip(IDEAL / tall, 0.2, 3.0))


def _height(boxes: NDArray[np.float32]) -> float:
    """Median height of boxes [N, 4]."""
    return float(np.median(boxes[:, 3] - boxes[:, 1]))


def _look(image: Image.Image, scale: float) -> Generator[NDArray[np.uint8], ReaderOutput, _Look]:
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    page = image if size == image.size else image.resize(size, Image.Resampling.BICUBIC)
    output = yield np.asarray(page)
    return _Look(detect(output), detect_things(output), output.features[0].flatten(1).T, size)


def _whole_cells(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[H, W, 3] with both sides rounded up to whole cells."""
    height, width = pixels.shape[:2]
    return np.pad(pixels, ((0, -height % STRIDE), (0, -width % STRIDE), (0, 0)), mode="edge")


def read_maps(tower: ReaderTower, pixels: NDArray[np.uint8]) -> ReaderOutput:
    """The tower's maps of a page [H, W, 3] of any size, in float32 on the CPU; sides are rounded up to whole cells."""
    padded = _whole_cells(pixels)
    cuts = tiles(padded.shape[1], padded.shape[0])
    if len(cuts) == 1:
        return _run(tower, padded[None])
    rows, columns = padded.shape[0] // STRIDE, padded.shape[1] // STRIDE
    whole: dict[str, Tensor] = {}
    for tile in cuts:
        output = _run(tower, padded[None, tile.y0 : tile.y1, tile.x0 : tile.x1])
        left, top, right, bottom = (v // STRIDE for v in tile.core)
        x, y = tile.x0 // STRIDE, tile.y0 // STRIDE
        for name in _MAPS:
            part: Tensor = getattr(output, name)
            if name not in whole:
                whole[name] = part.new_empty(*part.shape[:-2], rows, columns)
            whole[name][..., top:bottom, left:right] = part[..., top - y : bottom - y, left - x : right - x]
    return ReaderOutput(**whole)


@dataclass(frozen=True)
class Tile:
    """A window x0, y0, x1, y1 of a page and the part of it that counts, core = (left, top, right, bottom); pixels."""

    x0: int
    y0: int
    x1: int
    y1: int
    core: tuple[int, int, int, int]


def tiles(width: int, height: int) -> list[Tile]:
    """Tiles that cover a page of whole cells; their cores divide it without gap or overlap.

    A page of up to TILE_PIXELS is one tile. All edges are multiples of the stride, so that cells line up.
    """
    if width * height <= TILE_PIXELS:
        return [Tile(0, 0, width, height, (0, 0, width, height))]
    xs, ys = _cuts(width), _cuts(height)
    return [
        Tile(
            max(0, left - OVERLAP), max(0, top - OVERLAP), min(width, right + OVERLAP), min(height, bottom + OVERLAP),
            (left, top, right, bottom),
        )
        for top, bottom in pairwise(ys)
        for left, right in pairwise(xs)
    ]  # fmt: skip


def _cuts(length: int) -> list[int]:
    """Edges 0 ... length of equal parts of at most TILE_SIDE, up to rounding to whole cells."""
    parts = -(-length // TILE_SIDE)
    return [round(length * i / parts / STRIDE) * STRIDE for i in range(parts)] + [length]


def _run(tower: ReaderTower, pixels: NDArray[np.uint8]) -> ReaderOutput:
    """The maps of pixels [B, H, W, 3], H and W multiples of the stride."""
    device = next(tower.parameters()).device
    batch = torch.from_numpy(np.ascontiguousarray(pixels)).to(device).permute(0, 3, 1, 2).float().div_(255)
    with torch.autocast(device.type, torch.bfloat16, enabled=fast_bf16(device)):
        output: ReaderOutput = tower(batch.contiguous(memory_format=torch.channels_last))
    return ReaderOutput(*(getattr(output, name).float().cpu() for name in _MAPS))
