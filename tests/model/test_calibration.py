"""Isotonic calibration against its definition, and its file."""

import itertools
import json

import numpy as np
import pytest

from vlm.calibration import NAME, Calibration, Curve, expected_calibration_error, pool_adjacent_violators, weights_digest
from vlm.errors import CheckpointError, ConfigError
from vlm.results import FieldInfo


@pytest.mark.parametrize("seed", range(20))
def test_pav_is_the_best_rising_sequence(seed):
    """Against a search over all ways to cut the sequence into blocks of equal value."""
    rng = np.random.default_rng(seed)
    values, weights = rng.random(7), rng.integers(1, 5, 7).astype(float)
    best, found = np.inf, None
    for cuts in itertools.product((False, True), repeat=6):
        blocks, start = [], 0
        for i, cut in enumerate((*cuts, True)):
            if cut:
                blocks.append(slice(start, i + 1))
                start = i + 1
        means = [np.average(values[b], weights=weights[b]) for b in blocks]
        if means == sorted(means):
            fit = np.concatenate([np.full(b.stop - b.start, m) for b, m in zip(blocks, means, strict=True)])
            loss = float((weights * (fit - values) ** 2).sum())
            if loss < best:
                best, found = loss, fit
    np.testing.assert_allclose(pool_adjacent_violators(values, weights), found, atol=1e-9)


def test_calibration_repairs_overconfidence():
    rng = np.random.default_rng(0)
    raw = rng.random(4000)
    right = rng.random(4000) < raw**3
    absent = rng.random(4000) < 0.3
    right[absent] = rng.random(int(absent.sum())) < 0.5
    made = Calibration.fit(raw[:2000], right[:2000], absent[:2000])
    assert made.samples == 2000
    infos = [FieldInfo(None if a else "x", float(c)) for c, a in zip(raw[2000:], absent[2000:], strict=True)]
    after = [made(info) for info in infos]
    assert [info.raw_confidence for info in after] == [info.confidence for info in infos]
    before, now = (expected_calibration_error([i.confidence for i in rows], right[2000:]) for rows in (infos, after))
    assert before > 0.15 and now < 0.04
    values = [made.value(c) for c in np.linspace(0, 1, 50)]
    assert values == sorted(values) and values[0] > 0 and values[-1] < 1
    assert made(FieldInfo("x", 0.0, forced=True)).confidence == 0.0


def test_expected_calibration_error():
    assert expected_calibration_error([0.95] * 10, [True] * 9 + [False]) == pytest.approx(0.05)
    assert expected_calibration_error([1.0, 0.0], [False, True]) == 1.0
    with pytest.raises(ConfigError):
        expected_calibration_error([], [])


def test_file(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    made = Calibration(Curve((0.1, 0.9), (0.2, 0.8)), Curve(), weights_digest(tmp_path), 5, "test")
    assert Calibration.load(tmp_path) is None
    made.save(tmp_path)
    assert Calibration.load(tmp_path) == made and made.value(0.5) == pytest.approx(0.5) and made.absent(0.3) == 0.3
    (tmp_path / "model.safetensors").write_bytes(b"other weights")
    assert Calibration.load(tmp_path) is None
    for broken in ("{", "{}", json.dumps({"value": {"x": [1, 0], "y": [0, 1]}, "absent": {"x": [], "y": []}, "weights": "", "samples": 1})):
        (tmp_path / NAME).write_text(broken)
        with pytest.raises(CheckpointError, match="calibration"):
            Calibration.load(tmp_path)
