"""The state of the inspector: a loaded iteration, the selected sample, step and moment, and the changed options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ppo_unified.inspection.heat import HEATS, Scale, make_scale, quantity
from ppo_unified.inspection.sample_list import SampleList
from ppo_unified.inspection.what_if import Moment, Recomputed, Settings, moments, recompute
from ppo_unified.runs.stored_iteration import StoredIteration
from tui.inspector.shown import Look, Shown

SORTS = {  # key -> heading of the list
    "cut": "most clipped first",
    "score": "highest score first",
    "kl": "highest KL first",
    "advantage": "largest |A| first",
    "length": "longest first",
    "number": "in order",
}
MOST_BYTES = 1 << 26  # memory of recomputed iterations
COLUMNS_EACH = 20  # columns of one, about


@dataclass(frozen=True)
class View:
    """The choices that stay the same when another iteration is shown."""

    sort: str = "cut"
    query: str = ""
    heat: str = "advantage"
    moment: Moment = "after"
    changes: Mapping[str, Any] = field(default_factory=dict)  # options of the what-if pane that differ from the run's


class Inspection:
    """One iteration, and the selection in it. Independent of widgets."""

    def __init__(self, stored: StoredIteration, view: View) -> None:
        """Prepare an iteration with the choices of `view`, as far as they are possible for it."""
        self.stored, self.samples, self.own = stored, stored.samples(), Settings.of(stored)
        self._cache: dict[tuple[Settings, Moment], Recomputed] = {}
        self._lists: dict[tuple[Settings, Moment], SampleList] = {}
        self._scales: dict[tuple[str, Settings, Moment], Scale] = {}
        self.moments: list[Moment] = moments(stored)
        self.heats = [
            heat for heat in HEATS if quantity(stored, self.recomputed(self.own, "after"), heat.name) is not None
        ]
        if view.moment not in self.moments:
            view = replace(view, moment="after")
        if view.heat not in [heat.name for heat in self.heats]:
            view = replace(view, heat=self.heats[0].name)
        self.view = view
        self.order: list[int] = []
        self.number = self.step = 0
        self.arrange()
        self.select(self.order[0] if self.order else 0)

    # numbers

    @property
    def settings(self) -> Settings:
        """The options of the what-if pane."""
        return replace(self.own, **self.view.changes)

    @property
    def now(self) -> Recomputed:
        """The iteration recomputed with the options of the what-if pane."""
        return self.recomputed(self.settings, self.view.moment)

    def recomputed(self, settings: Settings, moment: Moment) -> Recomputed:
        """Recompute the iteration, or return the result of an earlier call."""
        key = (settings, moment)
        if key not in self._cache:
            self._make_room(self._cache)
            other = next((found for found in self._cache.values() if found.settings == settings), None)
            self._cache[key] = other.at(moment) if other is not None else recompute(self.stored, settings, moment)
        return self._cache[key]

    @property
    def listing(self) -> SampleList:
        """The samples with their numbers at the shown moment, with the options of the what-if pane."""
        key = (self.settings, self.view.moment)
        if key not in self._lists:
            self._make_room(self._lists)
            self._lists[key] = SampleList.of(self.stored, self.now)
        return self._lists[key]

    def _make_room(self, cache: dict[tuple[Settings, Moment], Any]) -> None:
        """Remove the oldest entry of a full cache."""
        most = MOST_BYTES // (4 * COLUMNS_EACH * self.stored.columns["mask"].size)
        if len(cache) >= max(3, min(most, 30)):
            cache.pop(next(iter(cache)), None)

    def _scale(self) -> Scale:
        key = (self.view.heat, self.settings, self.view.moment)
        if key not in self._scales:
            heat = next(heat for heat in self.heats if heat.name == self.view.heat)
            x = quantity(self.stored, self.now, heat.name)
            assert x is not None
            self._scales[key] = make_scale(heat, x[self.stored.columns["mask"]])
        return self._scales[key]

    def show(self, look: Look) -> Shown:
        """Return the state that the panes show."""
        return Shown(
            self.stored,
            self.number,
            len(self.samples),
            self.samples[self.number],
            self.step,
            self.view.moment,
            self.recomputed(self.own, self.view.moment),
            self.now,
            next(heat for heat in self.heats if heat.name == self.view.heat),
            self._scale(),
            look,
        )

    # the list of samples

    def arrange(self) -> None:
        """Sort and filter the samples. The selected sample stays selected, even if the filter hides it."""
        self.order = self._sorted()

    def _sorted(self) -> list[int]:
        """Return the listed samples. Samples with equally many cut steps are sorted by those outside the clip range."""
        listed = self.listing.filter(self.view.query) if self.view.query else None
        order = self.listing.sort(self.view.sort, listed)
        if self.view.sort == "cut":
            cut, outside = self.listing.columns["cut"], self.listing.columns["outside"]
            order.sort(key=lambda number: (-cut[number], -outside[number], number))
        return order

    def select(self, number: int) -> None:
        """Select a sample, and its first step whose gradient is cut, or that is outside the clip range, if any."""
        self.number = min(max(0, number), len(self.samples) - 1)
        self.step = next(iter(self._marked_steps()), 0)

    def move_sample(self, by: int) -> None:
        """Select the sample `by` lines below in the list."""
        if not self.order:
            return
        at = self.order.index(self.number) + by if self.number in self.order else 0
        self.select(self.order[min(max(0, at), len(self.order) - 1)])

    def select_extreme(self, best: bool) -> None:
        """Select the listed sample with the highest or lowest score."""
        scores = self.listing.columns["score"]
        if self.order:
            self.select((max if best else min)(self.order, key=lambda number: scores[number]))

    # the cursor

    def move_step(self, by: int) -> None:
        """Move the cursor by some steps in the sample."""
        self.select_step(self.step + by)

    def select_step(self, step: int) -> None:
        """Move the cursor to a step of the sample, or to the nearest one."""
        self.step = min(max(0, step), len(self.samples[self.number].columns) - 1)

    def _marked_steps(self) -> list[int]:
        """Return the steps of the sample whose gradient is cut; if there are none, those outside the clip range."""
        sample, columns = self.samples[self.number], self.now.columns
        for name in ("cut", "outside"):
            if len(found := np.flatnonzero(columns[name][sample.row, sample.columns])):
                return [int(step) for step in found]
        return []

    def move_to_cut(self, by: int) -> bool:
        """Move the cursor to the next (1) or previous (-1) cut step, in the following samples of the list if needed.

        Returns False if no further step is cut.
        """
        cut = self.now.columns["cut"]
        at = self.order.index(self.number) if self.number in self.order else 0
        for number in [self.number, *(self.order[at + 1 :] if by > 0 else reversed(self.order[:at]))]:
            sample = self.samples[number]
            steps = np.flatnonzero(cut[sample.row, sample.columns])
            if number == self.number:
                steps = steps[steps > self.step] if by > 0 else steps[steps < self.step]
            if len(steps):
                self.number, self.step = number, int(steps[0 if by > 0 else -1])
                return True
        return False

    # choices

    def move_moment(self, by: int) -> bool:
        """Show the next or previous moment. Returns False at the last or first one."""
        at = self.moments.index(self.view.moment) + by
        if not 0 <= at < len(self.moments):
            return False
        self.view = replace(self.view, moment=self.moments[at])
        self.arrange()
        return True

    def next_heat(self) -> None:
        """Color the steps by the next quantity."""
        names = [heat.name for heat in self.heats]
        self.view = replace(self.view, heat=names[(names.index(self.view.heat) + 1) % len(names)])

    def next_sort(self) -> None:
        """Sort the list by the next key."""
        names = [name for name in SORTS if name in self.listing.columns]
        self.view = replace(self.view, sort=names[(names.index(self.view.sort) + 1) % len(names)])
        self.arrange()

    def set_query(self, query: str) -> None:
        """List only the samples that match a query. Raises UsageError if it is invalid."""
        self.listing.filter(query)
        self.view = replace(self.view, query=query)
        self.arrange()

    def change(self, settings: Settings) -> None:
        """Recompute with other options. The order of the list does not change."""
        changes = {name: value for name, value in vars(settings).items() if value != getattr(self.own, name)}
        self.view = replace(self.view, changes=changes)
