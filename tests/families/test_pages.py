"""Every family has a page that says what a user must know before fetching gigabytes."""

from pathlib import Path

import pytest

from vlm.families.registry import families

PAGES = {page.name: page.read_text(encoding="utf-8") for page in (Path(__file__).parents[2] / "docs" / "families").glob("*.md")}
SAID = ("licence of the weights", "memory of the weights", "prompt", "preset", "proven", "not proven")


@pytest.mark.parametrize("name", sorted(families()))
def test_a_page_names_presets_licence_memory_and_proof(name: str) -> None:
    family = families()[name]
    pages = {file: text for file, text in PAGES.items() if all(_named(preset, text) for preset in family.presets) and name in text}
    assert pages, f"no page of docs/families names {name} and all of {', '.join(family.presets)}"
    for file, text in pages.items():
        assert [word for word in SAID if word not in text.lower()] == [], file


def _named(preset: str, text: str) -> bool:
    """Spelled out, or as `-ending` behind its siblings."""
    return f"`{preset}`" in text or f"`-{preset.split('-')[-1]}`" in text
