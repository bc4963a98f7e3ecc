"""Text families: who claims a config.json, prompts, recipes, vocabularies."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoints import tiny
from tests.parity.cases import root
from vlm.errors import CheckpointError, OptionError
from vlm.families.family import Family, Settings
from vlm.families.registry import families, find_family
from vlm.processor.tokenizer import Tokenizer

FOLDERS = {name: root() / name for name in tiny.CONFIGS}
needs_fixtures = pytest.mark.skipif(not all(f.is_dir() for f in FOLDERS.values()), reason="needs ../shared/parity")


@pytest.mark.parametrize("name", sorted(tiny.CONFIGS))
def test_a_config_finds_its_family(name: str) -> None:
    config = tiny.CONFIGS[name]
    assert find_family(config).name == name
    assert find_family({k: v for k, v in config.items() if k != "architectures"}).name == name
    assert find_family({k: v for k, v in config.items() if k != "model_type"}).name == name


def test_a_required_key_outweighs_a_name() -> None:
    text = families()["llada"]
    picture = replace(text, name="llada-picture", keys=("mm_vision_tower",))
    plain, both = tiny.CONFIGS["llada"], {**tiny.CONFIGS["llada"], "mm_vision_tower": "some/tower"}
    assert picture.claim(plain) == 0
    assert picture.claim(both) > text.claim(both) > 0


@pytest.mark.parametrize("config", [{}, {"model_type": "llama"}, {"architectures": "LLaDAModelLM"}, {"model_type": ["llada"]}])
def test_nobody_claims_what_is_foreign(config: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="belong to no family we know"):
        find_family(config)


def test_settings_name_the_path_of_what_is_wrong() -> None:
    settings = Settings({"vision_config": {"depth": "deep"}}, "some/config.json")
    with pytest.raises(CheckpointError, match=r"some/config\.json: vision_config\.depth is 'deep', not a whole number"):
        settings.inner("vision_config").number("depth")
    with pytest.raises(CheckpointError, match=r"has no vision_config\.patch_size"):
        settings.inner("vision_config").number("patch_size")
    with pytest.raises(CheckpointError, match="text_config"):
        settings.inner("text_config")


@needs_fixtures
@pytest.mark.parametrize("name", sorted(tiny.CONFIGS))
def test_every_preset_of_a_family_builds_and_bans_what_cannot_be_an_answer(name: str) -> None:
    family, tokenizer = families()[name], Tokenizer.from_file(FOLDERS[name])
    columns = tokenizer.vocab_size + 6  # published heads have rows that stand for no token
    ends = set(family.stop_ids(tokenizer))
    assert ends
    for preset_name in (None, *family.presets, "threshold"):
        recipe = family.recipe(tokenizer, columns, preset_name)
        banned = set(recipe.banned)
        assert tokenizer.control_ids - ends <= banned
        assert set(range(tokenizer.vocab_size, columns)) <= banned
    assert not set(family.recipe(tokenizer, columns).banned) & ends
    assert family.recipe(tokenizer, columns, reference_quirks=True).banned == ()
    with pytest.raises(OptionError, match="unknown preset"):
        family.recipe(tokenizer, columns, "dreaming")


@needs_fixtures
def test_control_tokens_of_a_preset_may_be_spelled() -> None:
    family, tokenizer = families()["llada"], Tokenizer.from_file(FOLDERS["llada"])
    assert tokenizer.special["<|endoftext|>"] in family.recipe(tokenizer, tokenizer.vocab_size, "llada-humaneval").banned
    with pytest.raises(OptionError, match="no control token '<nothing>'"):
        family.recipe(tokenizer, tokenizer.vocab_size, banned=("<nothing>",))


@needs_fixtures
def test_text_is_trimmed_where_the_published_template_does() -> None:
    for name, same in (("llada", True), ("dream", False)):
        family, tokenizer = families()[name], Tokenizer.from_file(FOLDERS[name])
        plain, padded = (_ids(family, tokenizer, text) for text in ("How many eggs?", "  How many eggs?\n\n"))
        assert (plain == padded) is same


@needs_fixtures
@pytest.mark.parametrize("name", sorted(tiny.CONFIGS))
def test_typed_control_tokens_stay_text(name: str) -> None:
    family, tokenizer = families()[name], Tokenizer.from_file(FOLDERS[name])
    plain = sum(i in tokenizer.control_ids for i in _ids(family, tokenizer, "x"))
    attack = sum(i in tokenizer.control_ids for i in _ids(family, tokenizer, "x" + "".join(tokenizer.special)))
    assert plain == attack


def _ids(family: Family, tokenizer: Tokenizer, text: str) -> list[int]:
    return family.template.build(text, tokenizer).lay_out([]).ids


@needs_fixtures
def test_a_vocabulary_without_tokenizer_json_gives_the_same_ids(tmp_path: Path) -> None:
    for file in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        shutil.copyfile(FOLDERS["dream"] / file, tmp_path / file)
    old, new = Tokenizer.from_file(tmp_path), Tokenizer.from_file(FOLDERS["dream"])
    assert old.special == new.special
    assert old.vocab_size == new.vocab_size
    for text in ("How many eggs are in the box?", "I'LL  pay 1234 €\n\n  twice\t!", "e\u0301tude \uff21\uff22\uff23 漢字 🙂", "x<|mask|>y"):
        assert old.encode(text) == new.encode(text)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "tokenizer_class": "LlamaTokenizer"}))
    with pytest.raises(CheckpointError, match="tokenizer_class 'LlamaTokenizer' needs a tokenizer.json"):
        Tokenizer.from_file(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(CheckpointError, match=r"merges\.txt: cannot be read"):
        Tokenizer.from_file(tmp_path)
