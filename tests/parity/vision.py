"""How the vision cases of all families are run: preprocessing, tower, projector, packing.

A family's handler module says what is its own (`Siglip` or `Qwen` below) and takes the handlers from it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from tests.parity.cases import Case, Checks, Fixture
from tests.parity.handlers import Handler
from vision.errors import ImageFormatError
from vision.loading import load_image
from vision.preprocess.anyres import AnyResolution, Views, aspect_named
from vision.preprocess.packing import Packing
from vision.preprocess.patches import QwenPatches, Small, smart_resize
from vision.preprocess.pixels import Backend, Normalization
from vision.projector import MlpProjector
from vision.towers import QwenTower, build_tower
from vision.towers.qwen_layout import bilinear_taps, window_order
from vlm.checkpoints.shards import Shards, read_tensor


def expected(case: Case, name: str) -> Tensor | None:
    """An expected tensor by the name the case gives it, None if it has none."""
    names = case.data.get("tensors") or case.data.get("expected") or {}
    return case.fixture.expected[names[name]] if name in names else None


def picture(case: Case, name: str) -> Image.Image:
    """A picture of the fixture, loaded as the library loads pictures."""
    return load_image(case.fixture.folder / name).rgb


def document(fixture: Fixture, name: str) -> dict[str, Any]:
    """A JSON file of the fixture."""
    found: dict[str, Any] = json.loads((fixture.folder / name).read_text(encoding="utf-8"))
    return found


def filled(module: nn.Module, fixture: Fixture, prefixes: Mapping[str, str]) -> nn.Module:
    """The module with weights of the checkpoint: each of its keys begins with one of `prefixes` -> published prefix."""
    shards = Shards.open(fixture.folder)
    state = {}
    for key in module.state_dict():
        ours = max((p for p in prefixes if key.startswith(p)), key=len)
        state[key] = read_tensor(shards.tensors[prefixes[ours] + key.removeprefix(ours)])
    module.load_state_dict(state)
    return module.eval()


def near(checks: Checks, case: Case, name: str, ours: Tensor) -> None:
    """Compare with the expected tensor `name`, if the case has one."""
    theirs = expected(case, name)
    if theirs is not None:
        checks.close(name, ours, theirs)


def complete(checks: Checks, case: Case) -> None:
    """Every expected tensor of the case has been compared."""
    left = sorted(set(case.data.get("tensors") or case.data.get("expected") or {}) - set(checks.errors))
    if left:
        checks.failures.append(f"not compared: {', '.join(left)}")


def stored(fixture: Fixture, key: str) -> Tensor:
    """A tensor of the checkpoint."""
    return read_tensor(Shards.open(fixture.folder).tensors[key])


@dataclass(frozen=True)
class Siglip:
    """A family of the LLaVA kind: SigLIP, projector, packing.

    Attributes:
        tower_config: file with the tower's ``vision_config``. tower, projector: published prefixes; projector_layers: its
            layers' names. newline: key of the newline embedding. pooled: whether stills are pooled.
    """

    tower_config: str
    tower: str
    projector: str
    projector_layers: tuple[str, str]
    newline: str
    pooled: bool = False
    backend: Backend = "pil"

    @property
    def handlers(self) -> dict[str, Handler]:
        """Handlers by kind of case."""
        return {"image_preprocess": self.preprocess, "vision": self.vision, "pre": self.pixels, "anyres": self.anyres}

    def rules(self, fixture: Fixture) -> tuple[AnyResolution, Packing]:
        """Cutting and packing as the fixture's configuration says."""
        config, vision = document(fixture, "config.json"), document(fixture, self.tower_config)["vision_config"]
        side = int(vision["image_size"])
        if "vision_aspect_ratio" not in config:
            return AnyResolution.from_llava(config, side), Packing.from_llava(config, self.pooled)
        limit = int(str(config["vision_aspect_ratio"]).removeprefix("anyres_max_"))
        points = tuple((w, h) for h, w in config["image_grid_pinpoints"])  # transformers has the height first
        normal = Normalization.from_dict(document(fixture, "preprocessor_config.json"))
        return AnyResolution(side, points, "anyres", normal, backend=self.backend), Packing(max_views=limit, digits=7)

    def views(self, case: Case, name: str) -> Views:
        """Views of a picture of the fixture."""
        named = case.data.get("image_aspect_ratio")
        return self.rules(case.fixture)[0](picture(case, name), aspect_named(named) if named else None)

    def preprocess(self, case: Case, checks: Checks) -> None:
        """Views as pictures, exactly; canvas and number of tokens."""
        cut, packing = self.rules(case.fixture)
        image = picture(case, case.data["image"])
        named = case.data.get("image_aspect_ratio")
        views, grid = cut.cut(image, aspect_named(named) if named else cut.aspect)
        ours = np.concatenate([np.asarray(view) for view in views])
        theirs = np.asarray(picture(case, case.data["views_png"]))
        checks.equal("shape", ours.shape, theirs.shape)
        checks.equal("levels that differ", int((ours != theirs).sum()) if ours.shape == theirs.shape else -1, 0)
        checks.equal("views", len(views), case.data["num_views"])
        if "canvas_wh" in case.data:
            checks.equal("canvas", list(cut.canvas(image.size)), case.data["canvas_wh"])
            checks.equal("grid", list(grid), case.data["grid_cols_rows"])
        side = cut.side // int(document(case.fixture, self.tower_config)["vision_config"]["patch_size"])
        checks.equal("tokens", packing.count(image.size, grid, side), case.data["num_visual_tokens"])

    def pixels(self, case: Case, checks: Checks) -> None:
        """Normalised pixels of all views, and the size."""
        for name in case.data["images"]:
            views = self.views(case, name)
            theirs = expected(case, "pixel_values")
            assert theirs is not None
            checks.close("pixel_values", views.pixels, theirs.flatten(0, -4), tolerance=1e-5)
            near(checks, case, "image_sizes", torch.tensor([views.size[::-1]]))

    def anyres(self, case: Case, checks: Checks) -> None:
        """Canvas and number of tokens for many sizes."""
        cut, packing = self.rules(case.fixture)
        side = cut.side // int(document(case.fixture, self.tower_config)["vision_config"]["patch_size"])
        best, counts = [], []
        for height, width in case.data["hw"]:
            canvas = cut.canvas((width, height))
            best.append(canvas[::-1])
            counts.append(packing.count((width, height), (canvas[0] // cut.side, canvas[1] // cut.side), side))
        for name, ours in (("best_hw", best), ("num_image_tokens", counts)):
            theirs = expected(case, name)
            assert theirs is not None
            checks.equal(name, ours, theirs)

    def vision(self, case: Case, checks: Checks) -> None:
        """Tower, projector, pooling and packing of one picture."""
        config, sizes = document(case.fixture, "config.json"), document(case.fixture, self.tower_config)["vision_config"]
        layer = config.get("mm_vision_select_layer", config.get("vision_feature_layer"))
        tower = filled(build_tower("siglip", sizes, select_layer=layer), case.fixture, {"": self.tower})
        outputs = len(stored(case.fixture, self.newline))
        names = {f"layers.{i}.": f"{self.projector}{name}." for i, name in enumerate(self.projector_layers)}
        projector = filled(MlpProjector(tower.width, outputs), case.fixture, names)  # type: ignore[arg-type]
        packing = self.rules(case.fixture)[1]
        for name in case.data.get("images") or [case.data["image"]]:
            views = self.views(case, name)
            with torch.no_grad():
                features = tower(views.pixels)
                projected = projector(features)
                pooled = packing.pooled(projected)
                packed = packing.pack(pooled, views, stored(case.fixture, self.newline))
                if expected(case, "tower_last_hidden_state") is not None:
                    normed = filled(build_tower("siglip", sizes), case.fixture, {"": self.tower})
                    near(checks, case, "tower_last_hidden_state", normed(views.pixels))
            self._compare(case, checks, features, projected, pooled, packed)
        complete(checks, case)

    def _compare(self, case: Case, checks: Checks, features: Tensor, projected: Tensor, pooled: Tensor, packed: Tensor) -> None:
        """Against the tensors of the case, whole or sampled as it says."""
        near(checks, case, "tower_feature", features)
        near(checks, case, "packed", packed)
        near(checks, case, "sequence", packed[:: case.data.get("sequence_stride", 1)])
        for name, ours, places in (
            ("features", features, case.data.get("sampled_patch_indices")), ("projected", projected, case.data.get("sampled_patch_indices")),
            ("pooled", pooled, case.data.get("sampled_pooled_indices")),
        ):  # fmt: skip
            theirs = expected(case, name)
            if theirs is not None:
                whole = places is None or theirs.shape == ours.shape
                checks.close(name, ours if whole else ours[:, places], theirs)
        for name, ours in (("feature_l2", features), ("projected_l2", projected), ("sequence_l2", packed)):
            if name in case.data:
                checks.close(name, ours.double().norm()[None], torch.tensor([case.data[name]]))
        if "num_visual_tokens" in case.data:
            checks.equal("tokens", len(packed), case.data["num_visual_tokens"])


@dataclass(frozen=True)
class Qwen:
    """A family with a Qwen tower.

    Attributes:
        kind: of the tower. prefixes: of the tower's parts -> published prefix. projector: name in our words -> published
            prefix of a second MLP behind the merger, with its activation; empty for none. small: what happens to small sides.
    """

    kind: str
    prefixes: Mapping[str, str]
    projector: Mapping[str, str]
    act: str = "gelu"
    small: Small = "scale"

    @property
    def handlers(self) -> dict[str, Handler]:
        """Handlers by kind of case."""
        return {"resize": self.resize, "pre": self.pixels, "vision": self.vision}

    def patches(self, fixture: Fixture) -> QwenPatches:
        """Preprocessing as the fixture's configuration says."""
        return QwenPatches.from_dict(document(fixture, "preprocessor_config.json"), small=self.small)

    def resize(self, case: Case, checks: Checks) -> None:
        """Sizes, with the reference's zero sides; ours are the same wherever they are not zero."""
        theirs = expected(case, "hw")
        assert theirs is not None
        limits = (case.data["factor"], case.data["min_pixels"], case.data["max_pixels"])
        quirks, ours = [], []
        for height, width in case.data["hw"]:
            try:
                quirks.append(smart_resize(height, width, *limits, small=self.small, reference_quirks=True))
                ours.append(smart_resize(height, width, *limits, small=self.small))
            except ImageFormatError:
                quirks.append((-1, -1))
                ours.append((-1, -1))
        checks.equal("quirks", quirks, theirs)
        sound = [i for i, (h, w) in enumerate(theirs.tolist()) if h and w]
        checks.equal("sound", [list(ours[i]) for i in sound], theirs[sound])

    def pixels(self, case: Case, checks: Checks) -> None:
        """Patches and grid."""
        pixels, grid = self.patches(case.fixture)([picture(case, name) for name in case.data["images"]])
        theirs = expected(case, "image_grid_thw")
        assert theirs is not None
        checks.equal("grid", grid, theirs)
        near(checks, case, "pixel_values", pixels)

    def tower(self, fixture: Fixture) -> QwenTower:
        """The tower with the fixture's weights."""
        tower = build_tower(self.kind, document(fixture, "config.json")["vision_config"])
        assert isinstance(tower, QwenTower)
        return filled(tower, fixture, self.prefixes)  # type: ignore[return-value]

    def vision(self, case: Case, checks: Checks) -> None:
        """Tower in the order of its blocks, merger, projector, deepstack."""
        tower = self.tower(case.fixture)
        pixels, grid = self.patches(case.fixture)([picture(case, name) for name in case.data["images"]])
        with torch.no_grad():
            out = tower.encode(pixels, grid)
            near(checks, case, "patch_embed", tower.patch_embed(pixels))
            if self.projector:
                width = len(stored(case.fixture, next(iter(self.projector.values())) + "bias"))
                projector = filled(MlpProjector(tower.width, width, act=self.act), case.fixture, self.projector)
                near(checks, case, "projector", projector(out.merged))
        near(checks, case, "merger", out.merged)
        near(checks, case, "tower", out.hidden)
        near(checks, case, "tower_window_order", out.hidden)
        for i, deep in enumerate(out.deepstack):
            near(checks, case, f"deepstack_{i}", deep)
        grids = tuple((t, h, w) for t, h, w in grid.tolist())
        if tower.pos_embed is not None:
            index, weight = bilinear_taps(grids, tower.merge, round(tower.config.learned_positions**0.5))
            near(checks, case, "pos_embed", (tower.pos_embed.weight.detach()[index] * weight[..., None]).sum(1))
        if tower.config.window is not None:
            order = window_order(grids, tower.merge, tower.config.window)
            for name, ours in (("window_index", order.index), ("cu_window_seqlens", torch.tensor([0, *order.lengths]).cumsum(0))):
                theirs = expected(case, name)
                if theirs is not None:
                    checks.equal(name, ours, theirs)
        complete(checks, case)
