"""The state that all panes of the inspector show: one step of one sample, at one moment, with two sets of options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ppo_unified.inspection.heat import Heat, Scale, quantity
from ppo_unified.inspection.what_if import Moment, Recomputed
from ppo_unified.runs.stored_iteration import Sample, StoredIteration


class Look(NamedTuple):
    """What the terminal and the theme allow."""

    dark: bool
    colors: bool
    unicode: bool
    background: str  # hex color


@dataclass(frozen=True, eq=False)
class Shown:
    """One step of one sample. Instances are equal only if they are identical."""

    stored: StoredIteration
    number: int  # of the sample, from 0
    count: int  # number of samples
    sample: Sample
    step: int  # index in the sample
    moment: Moment
    run: Recomputed  # with the run's options
    now: Recomputed  # with the options of the what-if pane
    heat: Heat
    scale: Scale
    look: Look

    @property
    def dark(self) -> bool:
        return self.look.dark

    @property
    def colors(self) -> bool:
        return self.look.colors

    @property
    def unicode(self) -> bool:
        return self.look.unicode

    @property
    def background(self) -> str:
        return self.look.background

    @property
    def column(self) -> int:
        """The column of the step in the rollout."""
        return int(self.sample.columns[self.step])

    @property
    def has_text(self) -> bool:
        """True if the steps are tokens."""
        return "text" in self.stored.columns

    @property
    def is_changed(self) -> bool:
        """True if the what-if pane has changed an option."""
        return self.run.settings != self.now.settings

    def values(self, name: str) -> np.ndarray:
        """Return a quantity at each step of the sample."""
        found = quantity(self.stored, self.now, name)
        assert found is not None, name
        return np.asarray(found[self.sample.row, self.sample.columns])
