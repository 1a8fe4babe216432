"""The pages of docs/ that show measurements are what their recorded data gives."""

import pytest
from measurements import DOCS, PAGES


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_what_its_recorded_data_gives(page):
    assert (DOCS / page).read_text(encoding="utf-8") == PAGES[page](), "run: python docs/generate/measurements.py"


def test_a_changed_record_changes_its_page(monkeypatch):
    import measurements

    rows = measurements.recorded("zoo")
    rows[0] |= {"status": {"tf": "verified", "keras": "disagrees (2)", "onnx": "refused"}, "remarks": ["onnx: no GRU"]}
    monkeypatch.setattr(measurements, "recorded", lambda name: rows)
    text = measurements.zoo()
    assert f"{len(rows) - 1} of them are verified" in text
    assert "| verified | disagrees (2) | refused |" in text
    assert f"- {rows[0]['name']}: onnx: no GRU" in text
