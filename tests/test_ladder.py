"""The page and the figure of the ladder show the committed measurements, and its statistics are correct."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _import_benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def test_page_and_figure_show_the_measurements() -> None:
    import ladder
    import ladder_figure

    rows = ladder.read_rows()
    assert ladder.PAGE.read_text(encoding="utf-8") == ladder.format_page(rows)
    assert ladder.FIGURE.read_text(encoding="utf-8") == ladder_figure.draw(rows)
    for rung in ladder.RUNGS:
        assert (ROOT / "envs" / "presets" / f"{ladder.preset_of(rung)}.toml").is_file()
        assert [curve["seed"] for curve in ladder.curves_of(rows, rung)] == [1, 2, 3, 4, 5]


def test_noise_and_cosine_have_their_expected_values() -> None:
    """Gradients with mean (3, 0, 0, 0) and standard deviation 3 have a noise of 4 * 9 / 9."""
    from ladder_measure import describe

    sample = np.random.default_rng(1).normal([3.0, 0.0, 0.0, 0.0], 3.0, (400, 4))
    found = describe(sample, np.array([2.0, 0.0, 0.0, 0.0]), repetitions=200)
    for name, expected in (("noise", 4.0), ("mean_cosine", 1.0), ("cosine", 0.44)):
        value, low, high = (x if x is not None else float("inf") for x in found[name])
        assert low < value < high, name
        assert value == pytest.approx(expected, rel=0.1), name
    assert describe(sample - sample.mean(0), np.ones(4), repetitions=2)["noise"][0] is None
