"""From RGB pictures to what the towers of the published families take, to the last detail of each reference."""

from __future__ import annotations

from vision.preprocess.anyres import AnyResolution, Views
from vision.preprocess.gemma import GemmaPatches
from vision.preprocess.packing import Packing
from vision.preprocess.patches import NaflexPatches, QwenPatches, naflex_patches, smart_resize
from vision.preprocess.pixels import Normalization, resize

__all__ = ["AnyResolution", "GemmaPatches", "NaflexPatches", "Normalization", "Packing", "QwenPatches", "Views", "naflex_patches", "resize", "smart_resize"]
