"""The page of the fleet file says what the code does."""

from __future__ import annotations

from scripts.generate_profile_docs import FLEET_PAGE, fleet_page


def test_the_tables_of_keys_are_those_of_the_models():
    assert fleet_page(FLEET_PAGE.read_text()) == FLEET_PAGE.read_text(), "run python scripts/generate_profile_docs.py"


def test_the_shortest_file_of_the_page_is_valid(tmp_path):
    from workflow_composer.fleet.file import load_fleet

    path = tmp_path / "fleet.yaml"
    path.write_text(FLEET_PAGE.read_text().partition("```yaml\n")[2].partition("```")[0])

    assert load_fleet(path, {}).servers() == ("coder",)
