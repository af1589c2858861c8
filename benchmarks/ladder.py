"""Measure the presets ladder-*: the noise of each rung's gradient, and learning curves over several seeds.

    python benchmarks/ladder.py [--seeds 5] [--rollouts 120]

Each finished measurement adds a line to benchmarks/ladder.jsonl. Measurements in this file are not repeated; to repeat
all of them, delete it first. The page benchmarks/ladder.md and the figure docs/study/ladder.svg are written from it.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

ROOT = Path(__file__).resolve().parents[1]
KEPT, PAGE = ROOT / "benchmarks/ladder.jsonl", ROOT / "benchmarks/ladder.md"
FIGURE = ROOT / "docs/study/ladder.svg"
RUNGS = ("return", "reward-to-go", "baseline", "td", "gae", "reuse", "ratio", "penalty", "clip")
POINTS = ("start", "trained", "moved")  # where gradients are measured; see `measure_gradients`
POLICIES = (1, 2, 3)  # seeds of the policies whose gradients are measured
TENTH = 10  # the return at the end of training is the mean over the last tenth of the iterations
PAGE_HEAD = """\
# The ladder from the policy gradient to PPO

The presets `ladder-*` on CartPole-v1, each of which differs from the one before in one option. The
[study page](../docs/study/ladder.md) explains them and the [figure](../docs/study/ladder.svg).

Command: `python benchmarks/ladder.py`; {day}. Each line of `ladder.jsonl` contains one measurement.

## Learning curves

*Solved* counts the seeds that reach a mean greedy return of 475 in two evaluations of 100 episodes each. *Steps* is
the median over these seeds. *Return* is the mean over seeds of the return in the last tenth of training, and *range*
is from the lowest to the highest seed. KL and ratio are the largest of all updates, as medians over the seeds.

| rung | solved | steps | return | range | largest KL(old, new) | largest ratio |
|---|---|---|---|---|---|---|"""
POINT_TEXTS = {
    "start": "The initial weights of policy and critic.",
    "trained": """\
The weights after 20 iterations of `ladder-9-clip`. The ratio is 1, so the gradients of the last four rungs equal that
of `gae`.""",
    "moved": """\
One update of `ladder-7-ratio` on another rollout has moved the policy away from the weights above. The gradients at
the moved weights are computed from the rollouts of the policy before this update. As an exception, `gae` uses new
rollouts of the moved policy. The critic is the one before the update.""",
}
GRADIENTS_HEAD = """
## Gradients: {point}

{text}

*Noise* is the trace of the covariance of the gradient divided by the squared norm of its mean. *Cosine* is the mean
cosine between the gradient of one rollout and the reference, *mean cosine* that of the mean gradient. The reference is
the mean of `baseline` over 120 other rollouts at the same weights. Brackets are 95 % bootstrap intervals. If the mean
gradient cannot be distinguished from 0, only the lower end of the noise is given.
"""
Row: TypeAlias = dict[str, Any]


def preset_of(rung: str) -> str:
    """Return the preset of a rung, such as "ladder-1-return"."""
    return f"ladder-{RUNGS.index(rung) + 1}-{rung}"


def read_rows() -> list[Row]:
    """Return the finished measurements."""
    lines = KEPT.read_text(encoding="utf-8").splitlines() if KEPT.exists() else []
    return [json.loads(line) for line in lines]


def curves_of(rows: Sequence[Row], rung: str) -> list[Row]:
    """Return the learning curves of a rung, by seed."""
    found = [row for row in rows if row["what"] == "curve" and row["rung"] == rung]
    return sorted(found, key=lambda row: row["seed"])


def gradients_of(rows: Sequence[Row], point: str, rung: str) -> list[Row]:
    """Return the statistics of a rung's gradients at a point, one for each policy."""
    found = [row for row in rows if row["what"] == "gradients" and row["point"] == point]
    return [row["rungs"][rung] for row in sorted(found, key=lambda row: row["seed"])]


def point_of(rung: str) -> str:
    """Return where the noise of a rung is compared with that of the others."""
    return "trained" if rung in RUNGS[:5] else "moved"


def final_return(curve: Row) -> float:
    """Return the mean episode return over the last tenth of the iterations."""
    returns = curve["episode/return"]
    return statistics.fmean(returns[-max(1, len(returns) // TENTH) :])


def study_numbers() -> dict[str, str | int | float]:
    """Return the numbers of the pages in docs/study, named "ladder.RUNG.QUANTITY"."""
    rows = read_rows()
    found: dict[str, str | int | float] = {}
    for rung in RUNGS:
        curves = curves_of(rows, rung)
        returns, solved = [final_return(curve) for curve in curves], [c["solved_step"] for c in curves]
        steps = [step for step in solved if step is not None]
        numbers: dict[str, str | int | float] = {
            "solved": f"{len(steps)}/{len(curves)}",
            "steps": f"{statistics.median(steps):,.0f}" if steps else "-",
            "return": f"{statistics.fmean(returns):.0f}",
            "range": f"{min(returns):.0f} - {max(returns):.0f}",
            "kl_max": _short(statistics.median(max(c["policy/kl"]) for c in curves)),
            "ratio_max": _short(statistics.median(max(c["policy/ratio_max"]) for c in curves)),
        }
        for point in ("start", point_of(rung)) if rung in RUNGS[:5] else (point_of(rung),):
            prefix = "start_" if point == "start" else ""
            numbers |= {f"{prefix}{k}": v for k, v in _gradient_numbers(gradients_of(rows, point, rung)).items()}
        found |= {f"ladder.{rung}.{name}": value for name, value in numbers.items()}
    found |= {f"ladder.moved.{k}": v for k, v in _gradient_numbers(gradients_of(rows, "moved", "gae")).items()}
    moved = [row for row in rows if row["what"] == "gradients" and row["point"] == "moved"]
    found |= {f"ladder.moved.kl_{row['seed']}": f"{row['policy/kl']:.2g}" for row in moved}
    returns = [row["episode_return"] for row in moved]
    return found | {"ladder.moved.return": f"{min(returns):.0f} - {max(returns):.0f}"}


def _gradient_numbers(policies: Sequence[Row]) -> dict[str, str | int | float]:
    """Return the noise and the cosines: the median over the policies, and each policy's value with its interval."""
    found: dict[str, str | int | float] = {}
    for name in ("noise", "cosine", "mean_cosine"):
        ordered = sorted(policies, key=lambda row: math.inf if row[name][0] is None else row[name][0])
        found[name] = interval(*ordered[(len(ordered) - 1) // 2][name]).partition(" [")[0]
        for number, row in enumerate(policies, 1):
            found[f"{name}_{number}"] = interval(*row[name])
    return found


def _short(value: float) -> str:
    """Return a number with two significant digits, without an exponent."""
    return f"{float(f'{value:.2g}'):,g}"


def interval(value: float | None, low: float | None, high: float | None) -> str:
    """Return a number and its interval, or only the lower end if the number is None, which means infinity."""
    if value is None or low is None:
        return "inf" if low is None else f"> {_short(low)}"
    return f"{_short(value)} [{_short(low)}, {'inf' if high is None else _short(high)}]"


def format_page(rows: Sequence[Row]) -> str:
    """Return the text of benchmarks/ladder.md."""
    numbers = study_numbers()
    lines = [PAGE_HEAD.format(day=max(row["day"] for row in rows))]
    columns = ("solved", "steps", "return", "range", "kl_max", "ratio_max")
    for rung in RUNGS:
        lines.append(f"| {' | '.join([preset_of(rung), *(str(numbers[f'ladder.{rung}.{c}']) for c in columns)])} |")
    for point, text in POINT_TEXTS.items():
        lines.append(GRADIENTS_HEAD.format(point=point, text=text))
        for name in ("noise", "cosine", "mean_cosine"):
            lines += [
                f"| {name.replace('_', ' ')} | {' | '.join(f'policy {n}' for n in POLICIES)} |",
                "|---|---|---|---|",
            ]
            for rung in RUNGS[:5] if point != "moved" else RUNGS[4:]:
                cells = [interval(*row[name]) for row in gradients_of(rows, point, rung)]
                lines.append(f"| {rung} | {' | '.join(cells)} |")
            lines.append("")
        lines.pop()
    return "\n".join(lines) + "\n"


def all_measurements(seeds: int, rollouts: int) -> Iterator[tuple[Row, Callable[[], Row]]]:
    """Yield each measurement: the entries of its row that identify it, and a function that returns the others."""
    from ladder_measure import measure_curve, measure_gradients

    for seed in range(1, seeds + 1):
        for rung in RUNGS:
            yield {"what": "curve", "rung": rung, "seed": seed}, partial(measure_curve, rung, seed)
    for point in POINTS:
        for seed in POLICIES:
            key = {"what": "gradients", "point": point, "seed": seed}
            yield key, partial(measure_gradients, point, seed, rollouts)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="number of learning curves of each rung (default: 5)")
    parser.add_argument("--rollouts", type=int, default=120, help="number of gradients of each rung (default: 120)")
    options = parser.parse_args()
    rows = read_rows()
    for key, measure in all_measurements(options.seeds, options.rollouts):
        if not any(key.items() <= row.items() for row in rows):
            rows.append(key | {"day": str(date.today())} | measure())
            with KEPT.open("a", encoding="utf-8") as file:
                file.write(json.dumps(rows[-1]) + "\n")
            print(*key.values(), flush=True)
    from ladder_figure import draw

    PAGE.write_text(format_page(rows), encoding="utf-8")
    FIGURE.write_text(draw(rows), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
