"""Creates the JSON document that the page of `inspect --html` shows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import chain, zip_longest
from typing import Any, NamedTuple

import numpy as np

from ppo_unified.inspection.actions import action_components, action_labels
from ppo_unified.inspection.clip_sentence import describe_clip
from ppo_unified.inspection.formulas import Array
from ppo_unified.inspection.heat import HEATS, Heat, make_scale, quantity
from ppo_unified.inspection.sample_list import COLUMNS as LIST_COLUMNS
from ppo_unified.inspection.sample_list import Row, SampleList
from ppo_unified.inspection.step_formulas import Step, explain
from ppo_unified.inspection.step_path import epoch_ratios
from ppo_unified.inspection.token_text import SIGNS, pieces_of, visible_text
from ppo_unified.inspection.what_if import Recomputed, Settings, recompute
from ppo_unified.runs.metrics import METRICS
from ppo_unified.runs.stored_iteration import QUANTITIES, Sample, StoredIteration
from ppo_unified.text import clean

MAX_SAMPLES = 40  # in a selection
MAX_STEPS = 12_000  # in a selection; the page has about 1 kB per step
MAX_TITLE = 120  # characters of a prompt in a title
MAX_NUMBERS = 32  # of an observation; larger ones are omitted

LABELS = {"number": "#", "kl": "KL", "advantage": "|A|"}  # headers of the list that differ from its columns
STORED = ("logprob_old", "logprob_new", "logprob_ref", "ratio", "kl", "kl_full", "score", "reward", "value",
          "next_value", "delta", "advantage", "advantage_used", "return")  # fmt: skip
STEP_COLUMNS = {  # header and meaning of the table's columns
    **{name: (QUANTITIES[name].header, QUANTITIES[name].meaning) for name in STORED},
    "loss": ("loss", "policy loss of the step"),
    "derivative": ("d loss", "derivative of the policy loss with respect to the log-prob; negative: more likely"),
    "entropy": ("entropy", "entropy of the action distribution in the last epoch that reached the step"),
}


class Page(NamedTuple):
    """A stored iteration with everything that is computed once for all samples."""

    stored: StoredIteration
    run: Recomputed
    listed: SampleList
    columns: dict[str, Array]  # [N, T] each: those of STEP_COLUMNS that the iteration has, and outside and cut
    heats: list[tuple[Heat, Array]]


def make_document(stored: StoredIteration, name: str, numbers: Sequence[int] | None = None) -> dict[str, Any]:
    """Return the document. `name` is the run's name. `numbers` are the samples to include; by default, a selection."""
    own = Settings.of(stored)
    run = recompute(stored, own)
    known = {name: quantity(stored, run, name) for name in (*STEP_COLUMNS, "outside", "cut")}
    columns = {name: x for name, x in known.items() if x is not None}
    heats = [(heat, x) for heat in HEATS if (x := quantity(stored, run, heat.name)) is not None]
    page = Page(stored, run, SampleList.of(stored, run), columns, heats)
    chosen = select_samples(page.listed) if numbers is None else numbers
    texts = _Pool()
    formulas = _Pool()
    samples = [_sample(page, page.listed.row(number), formulas, texts) for number in chosen]
    return {
        **_head(page, name, len(chosen)),
        "tokens": "text" in stored.columns,
        "list": [
            (key, LABELS.get(key, key), about.meaning)
            for key, about in LIST_COLUMNS.items()
            if key in page.listed.columns
        ],
        "sort": "cut" if page.listed.columns["cut"].any() else "number",
        "columns": [(key, *STEP_COLUMNS[key]) for key in columns if key in STEP_COLUMNS],
        "heats": [_describe_heat(heat, x[stored.columns["mask"]]) for heat, x in heats],
        "limits": [1 - own.terms.below, 1 + own.terms.above],
        "strips": _strips(stored, columns),
        "samples": samples,
        "formulas": formulas.entries,
        "sentences": texts.entries,
    }


class _Pool:
    """Numbers equal entries, so that the document contains each only once."""

    def __init__(self) -> None:
        self.numbers: dict[Any, int] = {}

    def number(self, entry: Any) -> int:
        return self.numbers.setdefault(entry, len(self.numbers))

    @property
    def entries(self) -> list[Any]:
        return list(self.numbers)


def select_samples(listed: SampleList) -> list[int]:
    """Return the numbers of at most MAX_SAMPLES samples that have at most MAX_STEPS steps in total, but at least one.

    The best, the worst, the most clipped and evenly spread samples take turns.
    """
    best = listed.sort("score")
    quarter = MAX_SAMPLES // 4
    spread = [best[i] for i in np.linspace(0, len(best) - 1, min(len(best), MAX_SAMPLES)).astype(int)]
    clipped = sorted(listed.sort("outside"), key=lambda number: -listed.columns["cut"][number])
    turns = zip_longest(clipped[:quarter], best[:quarter], listed.sort("score", reverse=True)[:quarter], spread)
    chosen: list[int] = []
    steps = 0
    for number in dict.fromkeys(x for x in chain.from_iterable(turns) if x is not None):
        length = int(listed.columns["length"][number])
        if not chosen or (len(chosen) < MAX_SAMPLES and steps + length <= MAX_STEPS):
            chosen.append(number)
            steps += length
    return sorted(chosen)


def _head(page: Page, name: str, included: int) -> dict[str, Any]:
    """Return the texts above the samples."""
    stored, count = page.stored, len(page.listed.samples)
    unit = "token" if "text" in stored.columns else "step"
    held = int(stored.columns["mask"].sum())
    partial = "" if held == stored.steps else f"; the first {held:,} are stored"
    cut, outside = (int((page.columns[flag][stored.columns["mask"]] != 0).sum()) for flag in ("cut", "outside"))
    facts = [f"up to step {stored.step:,}", _count(count, "sample"), _count(stored.steps, unit) + partial]
    facts += [f"gamma {stored.gamma:.6g}", f"lam {stored.lam:.6g}", f"clip {stored.clip:.6g}"]
    facts += [f"upper clip {stored.clip_high:.6g}"] * (stored.clip_high != stored.clip)
    facts += [f"{outside:,} ratios outside the clip range after the update, {cut:,} of them cut"]
    command = f"ppo-unified inspect {name} --iteration {stored.iteration} --sample N --html FILE"
    return {
        "title": f"{clean(name)}, iteration {stored.iteration}",
        "about": "; ".join(facts),
        "included": "" if included == count else f"This page contains {included} of {count:,} samples",
        "command": clean(command),
        "metrics": [
            (tag, METRICS[tag].meaning if tag in METRICS else "", _json_number(value))
            for tag, value in sorted(stored.metrics.items())
        ],
        "options": [(clean(key), clean(value)) for key, value in _flatten(stored.options)],
    }


def _count(number: int, unit: str) -> str:
    return f"{number:,} {unit}{'s' * (number != 1)}"


def _flatten(options: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in options.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _describe_heat(heat: Heat, values: Array) -> dict[str, Any]:
    scale = make_scale(heat, values)
    ends = {"low": _short(scale.low), "middle": _short(scale.middle), "high": _short(scale.high), "log": scale.is_log}
    return {"name": heat.name, "label": heat.label, "meaning": heat.meaning, **ends}


def _strips(stored: StoredIteration, columns: dict[str, Array]) -> list[dict[str, str]]:
    """Return the strips over time of an environment's steps."""
    if "text" in stored.columns:
        return []
    kind = "steps" if stored.columns.get("action", np.empty(0)).dtype.kind in "biu" else "line"
    wanted = [(name, name, kind) for name in action_components(stored)]
    wanted += [("reward", "r", "bars"), ("value", "V", "line"), ("advantage", "A", "bars"), ("ratio", "ratio", "ratio")]
    wanted += [("entropy", "entropy", "line")] * ("entropy" in columns)
    return [{"key": key, "label": label, "kind": kind} for key, label, kind in wanted]


def _sample(page: Page, row: Row, formulas: _Pool, texts: _Pool) -> dict[str, Any]:
    """Return everything about one sample."""
    stored, sample = page.stored, row.sample
    place = sample.row, sample.columns
    labels = _step_labels(stored, sample)
    lines, sentences = [], []
    for column in sample.columns.tolist():
        step = Step(stored, page.run, sample.row, column)
        lines.append([(formulas.number((x.name, x.symbols)), x.numbers, x.result) for x in explain(step)])
        sentences.append(texts.number(describe_clip(step)))
    shown = page.columns | action_components(stored)
    before = _break_lines(visible_text(stored.text_before(sample)))
    return {
        "title": f"Sample {row.number}"
        + (f": {_shorten(before.strip())}" if before else f", row {sample.row} of the rollout"),
        "facts": _facts(stored, row),
        "row": {key: _json_number(x[row.number]) for key, x in page.listed.columns.items()},
        "before": before,
        "label": visible_text(row.response),
        "steps": sample.columns.tolist(),
        "text": labels,
        "columns": {key: [_json_number(x) for x in column[place]] for key, column in shown.items()},
        "epochs": [list(map(_json_number, ratios)) for ratios in epoch_ratios(stored, *place)],
        "formulas": lines,
        "sentences": sentences,
        **_chances(stored, sample),
        "observations": _observations(stored, sample),
    }


def _facts(stored: StoredIteration, row: Row) -> str:
    """Return a sentence with the numbers of a sample."""
    unit = "token" if "text" in stored.columns else "step"
    what = "score" if unit == "token" else "sum of rewards"
    facts = [f"{what} {row.score:.4g}"] if row.score is not None else []
    facts += [f"KL to the reference {row.kl:.3f}"] if row.kl is not None else []
    facts += [_count(row.length, unit)]
    facts += [f"{row.outside:,} outside the clip range" + f", {row.cut:,} of them cut" * (row.outside > 0)]
    continues = bool(stored.columns["continues"][row.sample.row, row.sample.columns[-1]])
    facts += ["the episode continues after the last step"] if continues else []
    text = "; ".join(facts)
    return f"{text[0].upper()}{text[1:]}."


def _step_labels(stored: StoredIteration, sample: Sample) -> list[str]:
    """Return the text of each token, or each action as text."""
    if "text" in stored.columns:
        return list(map(_break_lines, pieces_of(stored.columns["text"][sample.row, sample.columns].tolist())))
    return list(map(clean, action_labels(stored, sample.row, sample.columns)))


def _chances(stored: StoredIteration, sample: Sample) -> dict[str, Any]:
    """Return the probability of each step's action and of the likeliest ones, under each policy.

    There are none for continuous actions, whose log-probs are those of a density.
    """
    if stored.actions is not None and stored.actions.dtype.kind == "f":
        return {"own": {}, "chances": []}
    place = sample.row, sample.columns
    policies = [name for name in ("ref", "old", "new") if f"logprob_{name}" in stored.columns]
    own = {
        policy: [_json_number(math.exp(min(x, 0.0))) for x in stored.columns[f"logprob_{policy}"][place].tolist()]
        for policy in policies
    }
    chances = []
    for policy in policies:
        texts: list[list[str]] = []
        shares: list[list[float | int | None]] = []
        if policy in stored.alternatives:
            alternatives = stored.alternatives[policy]
            found = np.unique(alternatives.actions[place]).tolist()
            known = {x: pieces_of([stored.vocabulary.get(x, str(x))])[0] for x in found}
            texts = [[known[x] for x in actions] for actions in alternatives.actions[place].tolist()]
            shares = [[_json_number(x) for x in row] for row in np.exp(np.minimum(alternatives.logprobs[place], 0))]
        chances.append((policy, texts, shares))
    return {"own": own, "chances": chances}


def _observations(stored: StoredIteration, sample: Sample) -> list[tuple[str, list[list[float | None]]]]:
    """Return the observations at each step, except those of language models and large ones."""
    if "text" in stored.columns:
        return []
    flat = {
        name: x[sample.row, sample.columns].reshape(len(sample.columns), -1) for name, x in stored.observations.items()
    }
    return [
        (
            "observation" if len(flat) == 1 else f"observation {clean(name)}",
            [[_json_number(x) for x in row] for row in rows],
        )
        for name, rows in flat.items()
        if rows.shape[1] <= MAX_NUMBERS
    ]


def _json_number(x: Any) -> float | int | None:
    """Return a number with six significant digits, or None if it is not a finite number."""
    value = float(x) if isinstance(x, int | float | np.generic) else math.nan
    if not math.isfinite(value):
        return None
    return int(value) if value == int(value) else _short(value)


def _short(value: float) -> float:
    return float(f"{value:.6g}")


def _shorten(text: str) -> str:
    return text if len(text) <= MAX_TITLE else text[: MAX_TITLE - 1] + "\u2026"


def _break_lines(text: str) -> str:
    """Add a line break after each sign of a line break."""
    return text.replace(SIGNS["\n"][0], SIGNS["\n"][0] + "\n")
