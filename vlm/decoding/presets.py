"""Named presets: each published method as a combination of parts, with its paper's defaults."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

from vlm.decoding.commits import Bernoulli, Factor, Leftmost, QuotaOrMore, Threshold, ThresholdElseQuota, TopK
from vlm.decoding.loop import Recipe
from vlm.decoding.proposers import EndPenalty, SampleProposer
from vlm.decoding.quotas import DimpleQuota, DreamQuota, TableQuota
from vlm.decoding.scorers import ConfidenceScorer
from vlm.decoding.stops import StopAt
from vlm.decoding.uniform import Candidates, Cooling, EntropyBound, Renoise, Settled
from vlm.decoding.windows import BlockWindow, FullWindow
from vlm.errors import OptionError

_COMMON: dict[str, Any] = {"temperature": 0.0, "top_k": None, "top_p": None, "max_forwards": None, "banned": (), "stop_at": (), "reference_quirks": False}
_LLADA = {"steps_per_block": 32, "step_ratio": None, "block_length": 32, "score": "prob", "ignore_confidence_of": (), "sampling": "gumbel"}
_PENALTY: dict[str, Any] = {"end_penalty": 0.0, "penalised": (), "pooled": False}
_DREAM = {
    "steps": 512, "step_ratio": None, "eps": 1e-3, "alg_temp": 0.0, "sampling": "multinomial", "shape": None, "shift": 1 / 3, "first_cell": False, **_PENALTY,
}  # fmt: skip
_BLOCK: dict[str, Any] = {
    "block_length": 4, "steps_per_block": 4, "score": "prob", "tempered": False, "filtered": False, "sampling": "multinomial", "part": None,
    "first_cell": False,
}  # fmt: skip

#: Options and defaults of every preset, besides the common ones.
PRESETS: dict[str, dict[str, Any]] = {
    "dimple": {"gamma": 0.95, "steps": None, "eps": 1e-3, "score": "prob", "filtered": False, "order": "score", "sampling": "multinomial", "pooled": False},
    "llada": dict(_LLADA),
    "llada-random": {**_LLADA, "score": "random"},
    "lavida": {**_LLADA, "shape": "shift", "shift": 1 / 3, "steps_per_block": 16},
    "lavida-linear": {**_LLADA, "shape": "linear", "shift": 1.0, "steps_per_block": 16},
    "lavida-cosine": {**_LLADA, "shape": "cosine", "shift": 1.0, "steps_per_block": 16},
    "threshold": {"threshold": 0.9, "block_length": 32, "sampling": "gumbel", "score": "prob"},
    "factor": {"factor": 1.0, "block_length": 32, "sampling": "gumbel", "score": "prob"},
    "dream-origin": {"steps": 512, "eps": 1e-3, "sampling": "multinomial", "first_cell": False, **_PENALTY},
    "dream-maskgit-plus": {**_DREAM, "score": "prob"},
    "dream-topk-margin": {**_DREAM, "score": "margin"},
    "dream-entropy": {**_DREAM, "score": "entropy"},
    "block-static": dict(_BLOCK),
    "block-dynamic": {**_BLOCK, "threshold": 0.9},
    "block-sequential": dict(_BLOCK),
    "one-by-one": {"score": "prob", "sampling": "gumbel"},
}  # fmt: skip
DEFAULT = "dimple"
#: Options and defaults of the presets of models of uniform noise, besides ``banned`` and ``reference_quirks``.
UNIFORM: dict[str, dict[str, Any]] = {
    "entropy-bound": {"steps": 48, "entropy_bound": 0.1, "t_min": 0.4, "t_max": 0.8, "stability": 1, "confidence": 0.005},
}  # fmt: skip


def preset(name: str = DEFAULT, **options: Any) -> Recipe:
    """The recipe of a published method.

    Args:
        name: one of :data:`PRESETS`, or of :data:`UNIFORM` for models of uniform noise.
        options: any of the preset's own options and, of PRESETS, temperature, top_k, top_p, max_forwards, banned (ids), stop_at (ids, or
            runs of ids: nothing is decoded from there on), reference_quirks.

    Raises:
        OptionError: unknown name or option; the message lists what there is.
    """
    if name not in PRESETS and name not in UNIFORM:
        raise OptionError(f"unknown preset {name!r}{_hint(name, [*PRESETS, *UNIFORM])}", remedy=f"use one of {', '.join([*PRESETS, *UNIFORM])}")
    known = {**_COMMON, **PRESETS[name]} if name in PRESETS else {"banned": (), "reference_quirks": False, **UNIFORM[name]}
    for option in options:
        if option not in known:
            raise OptionError(f"preset {name!r} has no option {option!r}{_hint(option, known)}", remedy=f"it knows {', '.join(sorted(known))}")
    o = {**known, **options, "preset": name}
    try:
        if name in UNIFORM:
            return _uniform(o)
        proposer = SampleProposer(o["temperature"], o["top_k"], o["top_p"], o.get("sampling", "multinomial"))
        parts = _BUILDERS[name.split("-")[0]](o)
    except TypeError as error:
        raise OptionError(f"an option of preset {name!r} has the wrong type: {error}", remedy="see vlm.decoding.presets.PRESETS") from error
    if o["stop_at"]:
        parts["stop"] = StopAt(tuple((run,) if isinstance(run, int) else tuple(run) for run in o["stop_at"]))
    common = {"max_forwards": o["max_forwards"], "banned": tuple(o["banned"]), "reference_quirks": o["reference_quirks"]}
    return Recipe(proposer=proposer, **common, **parts)


def _hint(word: str, known: Any) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _window(length: int | None, part: int | None = None) -> BlockWindow | FullWindow:
    return FullWindow() if length is None else BlockWindow(length, part)


def _llada(o: dict[str, Any]) -> dict[str, Any]:
    quota = TableQuota(o["steps_per_block"], o.get("shape", "even"), o.get("shift", 1 / 3), o["step_ratio"], o["block_length"])
    scorer = ConfidenceScorer(o["score"], ignore=tuple(o["ignore_confidence_of"]))
    return {"window": _window(o["block_length"]), "scorer": scorer, "quota": quota, "commit": TopK()}


def _dream(o: dict[str, Any]) -> dict[str, Any]:
    parts: dict[str, Any] = {"pooled": o["pooled"] and o["reference_quirks"], "first_cell": o["first_cell"]}
    if o["end_penalty"]:
        parts["transforms"] = (EndPenalty(tuple(o["penalised"]), o["end_penalty"], o["steps"], o["eps"]),)
    if "score" not in o:
        return {**parts, "scorer": ConfidenceScorer("prob", filtered=True), "quota": None, "commit": Bernoulli(o["steps"], o["eps"])}
    quota: DreamQuota | TableQuota = DreamQuota(o["steps"], o["eps"], o["step_ratio"])
    if o["shape"] is not None:
        quota = TableQuota(o["steps"] or 512, o["shape"], o["shift"], o["step_ratio"])
    return {**parts, "scorer": ConfidenceScorer(o["score"], filtered=True), "quota": quota, "commit": TopK(o["alg_temp"])}


def _block(o: dict[str, Any]) -> dict[str, Any]:
    quota = TableQuota(o["steps_per_block"], cells=o["block_length"])
    commit: TopK | QuotaOrMore | Leftmost = TopK()
    if o["preset"] != "block-static":
        commit = QuotaOrMore(o["threshold"]) if "threshold" in o else Leftmost()
    scorer = ConfidenceScorer(o["score"], o["filtered"], temperature=o["temperature"] or 1.0 if o["tempered"] else 1.0)
    return {"window": _window(o["block_length"], o["part"]), "scorer": scorer, "quota": quota, "commit": commit, "first_cell": o["first_cell"]}


def _threshold(o: dict[str, Any]) -> dict[str, Any]:
    return {"window": _window(o["block_length"]), "scorer": ConfidenceScorer(o["score"]), "quota": None, "commit": Threshold(o["threshold"])}


def _factor(o: dict[str, Any]) -> dict[str, Any]:
    commit = Factor(o["factor"], o["reference_quirks"])
    return {"window": _window(o["block_length"]), "scorer": ConfidenceScorer(o["score"]), "quota": None, "commit": commit}


def _dimple(o: dict[str, Any]) -> dict[str, Any]:
    commit = ThresholdElseQuota(o["gamma"], o["steps"], o["order"])
    scorer = ConfidenceScorer(o["score"], filtered=o["filtered"])
    return {"scorer": scorer, "quota": DimpleQuota(o["steps"], o["eps"]), "commit": commit, "pooled": o["pooled"] and o["reference_quirks"]}


def _one_by_one(o: dict[str, Any]) -> dict[str, Any]:
    return {"scorer": ConfidenceScorer(o["score"]), "quota": None, "commit": Threshold(float("inf"))}


def _uniform(o: dict[str, Any]) -> Recipe:
    settle = None if o["confidence"] is None else Settled(o["stability"], o["confidence"])
    driver = Renoise(EntropyBound(o["entropy_bound"]), Cooling(o["t_min"], o["t_max"], o["steps"]), settle)
    return Recipe(proposer=Candidates(), banned=tuple(o["banned"]), reference_quirks=o["reference_quirks"], driver=driver)


#: By the first word of a preset's name.
_BUILDERS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "llada": _llada, "lavida": _llada, "block": _block, "dream": _dream, "threshold": _threshold, "factor": _factor, "dimple": _dimple, "one": _one_by_one,
}  # fmt: skip
