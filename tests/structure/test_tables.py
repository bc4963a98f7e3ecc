"""Lifting at a vocabulary of merged bytes, posteriors, the cache on disk, and text of any kind through slots."""

import itertools
import json

import numpy as np
import pytest
import torch

from benchmarks.vocabulary import tokenizer
from tests.structure.test_trellis import ORACLE, accepted, random_scores, scores_of, table_of
from vlm.structure.automaton import leaf_dfa
from vlm.structure.fields import NumberField, StringField, UnionField
from vlm.structure.fill import blank
from vlm.structure.lift import Symbols, lift, token_table
from vlm.structure.reduction import FLOOR, Reducer, Space
from vlm.structure.scaffold import compile_scaffold
from vlm.structure.schema import parse_schema
from vlm.structure.slot_engine import SlotEngine
from vlm.structure.trellis import posterior


@pytest.fixture(scope="module")
def vocabulary():
    return tokenizer(5000)


FIELDS = [
    StringField(), StringField(max_length=5), StringField(patterns=("^[a-f]+[0-9]{2}$",)), StringField(format="date"), NumberField(),
    UnionField(options=(StringField(max_length=6), NumberField(integer=True))),
]  # fmt: skip


@pytest.mark.parametrize("field", FIELDS, ids=range(len(FIELDS)))
def test_tokens_move_as_their_bytes_do(vocabulary, field):
    """Every token from every state, against reading its bytes one by one; equal columns share a class."""
    dfa = leaf_dfa(field)
    symbols = Symbols.of(vocabulary)
    table = lift(dfa, vocabulary, symbols, absent=False)
    reach = {0: 0}  # state of the table -> state of the automaton
    todo = [0]
    rng = np.random.default_rng(0)
    some = rng.permutation(vocabulary.vocab_size)[:1500].tolist()
    while todo:
        state = todo.pop()
        for token in some:
            if token in vocabulary.control_ids:
                continue
            expected = reach[state]
            for byte in vocabulary.token_bytes(token):
                expected = int(dfa.table[expected, byte]) if expected >= 0 else -1
            found = int(table.moves[state, table.class_of[token]])
            if found < 0:
                assert expected < 0  # all bytes are tokens, so whatever the automaton can finish, tokens can
                continue
            assert expected >= 0
            if found not in reach:
                reach[found] = expected
                todo.append(found)
            assert reach[found] == expected
    assert table.null is None and all(table.class_of[i] == 0 for i in vocabulary.control_ids if i != symbols.pad)


@pytest.mark.parametrize("seed", range(30))
def test_posteriors_against_enumeration(seed):
    rng = np.random.default_rng(seed)
    states, symbols, length = int(rng.integers(2, 6)), int(rng.integers(2, 4)), int(rng.integers(1, 6))
    delta = np.where(rng.random((states, symbols)) < 0.6, rng.integers(0, states, (states, symbols)), -1)
    table = table_of(delta, rng.random(states) < 0.5)
    scores = random_scores(rng, 4, length, symbols + 1, 0.2)
    strings = accepted(table, length)
    law = posterior(table, scores)
    for slot in range(4):
        weights = np.exp([scores[slot, np.arange(length), p].sum() for p in strings]) if strings else np.zeros(0)
        if not weights.sum():
            assert law.total[slot] == -np.inf and not law.classes[slot].any()
            continue
        assert law.total[slot] == pytest.approx(np.log(weights.sum()))
        expected = np.zeros_like(law.classes[slot])
        for path, weight in zip(strings, weights / weights.sum(), strict=True):
            expected[np.arange(length), path] += weight
        np.testing.assert_allclose(law.classes[slot], expected, atol=1e-9)


@pytest.mark.parametrize("null", [True, False])
def test_posteriors_of_free_text(null):
    """The closed form against the general passes on the same automaton."""
    from tests.structure.test_trellis import free_table
    from vlm.structure.trellis import _posterior_general

    rng = np.random.default_rng(1)
    for least, length in itertools.product((0, 1), (1, 2, 5)):
        table = free_table(null, least)
        scores = random_scores(rng, 6, length, table.classes, 0.2)
        fast, slow = posterior(table, scores), _posterior_general(table, scores)
        np.testing.assert_allclose(fast.classes, slow.classes, atol=1e-9)
        np.testing.assert_allclose(fast.total, slow.total)


@pytest.mark.skipif(not ORACLE.exists(), reason=f"{ORACLE} is not there")
def test_recorded_posteriors():
    seen = 0
    for case in json.loads(ORACLE.read_text())["cases"]:
        if "marginals" not in case or not case["n_accepted"]:
            continue
        dfa = case["dfa"]
        table = table_of(dfa["delta"], np.isin(np.arange(dfa["n_states"]), dfa["accept"]))
        law = posterior(table, scores_of(case["log_probs"], case["fixed"]))
        np.testing.assert_allclose(law.classes[0][:, 1:], case["marginals"], atol=1e-9, err_msg=case["id"])
        seen += 1
    assert seen >= 5


def test_exact_scores_are_probabilities_of_whole_values(vocabulary):
    """With 'posterior', the score of a cell is the share of all valid completions that agree with the proposal there."""
    schema = {"type": "object", "properties": {"c": {"enum": ["ab", "ba", "abba", "b"]}}, "required": ["c"]}
    scaffold = compile_scaffold(parse_schema(schema), vocabulary, budgets={"/c": 3})
    slot = scaffold.slots[0]
    canvas = blank([scaffold])
    logits = torch.randn(slot.budget, vocabulary.vocab_size, generator=torch.Generator().manual_seed(0))
    ids, score = SlotEngine(scaffold, score="posterior").propose(canvas, canvas.masked, logits)
    table, strings = slot.constraint, []
    tokens = [i for i in range(vocabulary.vocab_size) if table.class_of[i] > 0]
    for row in itertools.product(tokens, repeat=slot.budget):
        state = 0
        for token in row:
            state = int(table.moves[state, table.class_of[token]]) if state >= 0 else -1
        if state >= 0 and table.accept[state]:
            strings.append(row)
    weights = np.exp([sum(float(logits[c, t]) for c, t in enumerate(row)) for row in strings])
    for cell in range(slot.budget):
        share = sum(w for row, w in zip(strings, weights, strict=True) if row[cell] == int(ids[cell])) / weights.sum()
        assert float(score[cell]) == pytest.approx(share, rel=1e-4)
    assert tuple(ids.tolist()) == strings[int(weights.argmax())]


def test_reductions_against_plain_ones(vocabulary):
    table = token_table(StringField(), vocabulary, Symbols.of(vocabulary))
    logits = torch.randn(3, vocabulary.vocab_size + 7, generator=torch.Generator().manual_seed(0))
    logits[0, ::3] = -torch.inf
    logits[2, int(np.flatnonzero(table.class_of == table.class_of[-1])[0])] = 300.0  # other classes are far below: exact all the same
    reducer = Reducer.of(table, logits.device)
    space = Space()
    values = reducer.gather(logits, torch.tensor([0, 2]), space)
    top, total = reducer.reduce(values, space)
    scattered = reducer._scattered(reducer._mend(values.clone()))  # as on an accelerator
    np.testing.assert_allclose(top[:, reducer.labels], scattered[0], rtol=1e-6)
    np.testing.assert_allclose(total[:, reducer.labels], scattered[1], rtol=1e-5)
    for row, source in enumerate((0, 2)):
        for label in range(1, table.classes):
            mine = logits[source, : vocabulary.vocab_size][torch.from_numpy(table.class_of == label)]
            if bool(torch.isfinite(mine).any()):
                assert top[row, label] == pytest.approx(float(mine.max()), rel=1e-6)
                assert total[row, label] == pytest.approx(float(mine.logsumexp(0)), rel=1e-5)
    chosen = np.array([1, 2])
    tokens, place = reducer.pick(values, chosen)
    for row, label in enumerate(chosen):
        assert table.class_of[int(tokens[row])] == label
        assert float(values[row, place[row]]) == pytest.approx(float(top[row, label]), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("odd", [float("nan"), torch.inf, -torch.inf])
def test_logits_that_are_no_numbers_do_not_spread(vocabulary, odd, dtype):
    table = token_table(StringField(), vocabulary, Symbols.of(vocabulary))
    reducer, space = Reducer.of(table, torch.device("cpu")), Space()
    logits = torch.zeros(3, vocabulary.vocab_size, dtype=dtype)
    logits[0] = odd
    logits[1, reducer.tokens[reducer.first[0]]] = odd
    for rows in ([0, 1], [2, 0, 1]):  # in memory that held other rows before
        top, total = reducer.reduce(reducer.gather(logits, torch.tensor(rows), space), space)
        assert np.isfinite(top).all() and np.isfinite(total).all()
        plain = rows.index(1)
        assert (top[plain, reducer.labels[1:]] == 0).all() and (top[rows.index(0), reducer.labels] == (-FLOOR if odd == torch.inf else FLOOR)).all()
    picked, _ = reducer.pick(reducer.gather(logits, torch.tensor([0, 1]), space), np.array([reducer.labels[-1]] * 2))
    assert (table.class_of[picked.numpy()] == reducer.labels[-1]).all()


def test_tables_come_back_from_disk(vocabulary, tmp_path, monkeypatch):
    from vlm.structure import automaton, dfa_cache, lift

    monkeypatch.setenv("VLM_CACHE", str(tmp_path))
    monkeypatch.setattr("vlm.structure.table_cache.SMALL", 100)
    monkeypatch.setattr(dfa_cache, "SLOW", 0.0)
    field, symbols = StringField(format="email", max_length=31), Symbols.of(vocabulary)

    def forget():
        lift._TABLES.clear()
        automaton._leaf_dfa.cache_clear()

    forget()
    made = token_table(field, vocabulary, symbols)
    files = list(tmp_path.rglob("*.npz"))
    assert len(files) >= 2
    forget()
    monkeypatch.setattr(lift, "lift", None)  # nothing is made again
    read = token_table(field, vocabulary, symbols)
    assert read is not made and read.null == made.null
    for name in ("class_of", "moves", "accept"):
        np.testing.assert_array_equal(getattr(read, name), getattr(made, name))
    monkeypatch.undo()
    monkeypatch.setenv("VLM_CACHE", str(tmp_path))
    monkeypatch.setattr("vlm.structure.table_cache.SMALL", 100)
    for file in files:
        file.write_bytes(b"torn")
    forget()
    assert np.array_equal(token_table(field, vocabulary, symbols).moves, made.moves)
    forget()


def test_values_of_any_script_come_through(vocabulary):
    """Texts whose characters are split over tokens, quotes, and marks that would end a slot in JSON."""
    schema = {"type": "object", "required": ["a", "b"], "properties": {"a": {"type": "string"}, "b": {"type": ["string", "integer"]}}}
    scaffold = compile_scaffold(parse_schema(schema), vocabulary, budget=40)
    for text in ('a "b" \\ c', "кириллица", "日本", "𝄞 é", "<|endoftext|>"):
        row = scaffold.fill({"/a": text, "/b": json.dumps(text, ensure_ascii=False)})
        data, fields = scaffold.read(row)
        assert data == {"a": text, "b": text} and not any(f.forced for f in fields.values())
    assert scaffold.read(scaffold.fill({"/a": "x", "/b": "-12"}))[0]["b"] == -12
