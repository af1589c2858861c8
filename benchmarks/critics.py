"""Compare independent and shared critics on the presets `arithmetic` and `sentiment`.

python benchmarks/critics.py [--seeds 1 2 3] [--out benchmarks/critics.md]

The first part is `ppo-unified critics`: both kinds of critic train on the same rollouts of the policy at the start. The
second part trains the presets with both kinds of critic for fewer iterations, and evaluates the last policy. Each
finished comparison or run adds a line to a file with the name of OUT and the extension .jsonl, and is not repeated. The
page OUT and docs/pictures/critics.svg are written from this file.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from ppo_unified import load_preset, run
from ppo_unified.cli.critics import ALONE, KINDS, compare, interval, summarize
from ppo_unified.runs import preparation
from ppo_unified.runs.folder import Run
from ppo_unified.training.evaluation import evaluate
from ppo_unified.training.session import load_adapter

ROLLOUTS = {"arithmetic": 34, "sentiment": 18}  # two of them are held out
ITERATIONS = {"arithmetic": 40, "sentiment": 20}  # of the complete trainings
EPISODES = 500
KEPT = Path(__file__).with_suffix(".jsonl")
PICTURE = Path(__file__).resolve().parents[1] / "docs" / "pictures" / "critics.svg"
UNSEEN_SEED = 1_000_000  # far from the seeds of the evaluations during training
BRIEF: dict[str, Any] = {"eval": {"every_steps": 0, "episodes": 1, "at_start": False}, "log": {"samples_every": 0}}
COLORS = {"independent": "#0072b2", "shared": "#d55e00", ALONE: "#999999"}  # Okabe-Ito
PAGE = """\
# Independent against shared critic

## The same rollouts

One policy, the one at the start of the preset, collects all rollouts. Both kinds of critic train on the same rollouts
in the same order with the complete loss, and are compared on the last two rollouts, on which neither was trained. The
explained variance is that of the rewards that followed. "value loss alone" is a shared critic without the policy loss.
The KL is KL(start, policy) per response, between the initial policy and the updated one. Numbers are means over seeds.
The difference is paired by seed; its 95 % interval uses Student's t distribution.

![Explained variance by rollouts seen](../docs/pictures/critics.svg)

| preset | critic | rollouts seen | explained variance | KL of the policy | trained weights | seeds |
|---|---|---|---|---|---|---|
{same}

{verdicts}

## Complete trainings

The preset with fewer iterations (arithmetic {arithmetic}, sentiment {sentiment}). The score is the mean over {episodes}
sampled responses to held-out prompts by the last policy.

| preset | critic | mean score | each seed |
|---|---|---|---|
{trained}

{differences}

Command: `python benchmarks/critics.py`
"""


def compare_on_same_rollouts(preset: str, seed: int) -> dict[str, Any]:
    config, _ = preparation.complete(load_preset(preset, seed=seed))
    return {"critics": compare(config, None, ROLLOUTS[preset])}


def train(preset: str, seed: int, critic: str) -> dict[str, Any]:
    changes: dict[str, Any] = {"seed": seed, "llm": {"critic": critic}, "total_iterations": ITERATIONS[preset]}
    config = load_preset(preset, **changes, **BRIEF)
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        finished = Run(run(config, runs=Path(folder)).path)
        seconds = time.perf_counter() - began
        adapter, _ = load_adapter(finished, config, "latest")
        score = evaluate(adapter, EPISODES, UNSEEN_SEED + seed, greedy=False)["score"]
        adapter.close()
    return {"critic": critic, "score": score, "seconds": seconds}


def jobs(presets: Sequence[str], seeds: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Yield what identifies each comparison or run."""
    for seed in seeds:
        for preset in presets:
            yield {"part": "same", "preset": preset, "seed": seed}
    for seed in seeds:
        for preset in presets:
            for critic in KINDS:
                yield {"part": "train", "preset": preset, "seed": seed, "critic": critic}


def summaries(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the summary of the comparisons on the same rollouts, by preset."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row["part"] == "same":
            found.setdefault(row["preset"], []).append(row["critics"])
    return {preset: summarize(results) for preset, results in found.items() if len(results) > 1}


def differences(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Return the paired difference of the scores, independent minus shared, by preset."""
    found = {}
    for preset in ROLLOUTS:
        scores = scores_of(rows, preset)
        seeds = sorted(scores["independent"].keys() & scores["shared"].keys())
        if len(seeds) > 1:
            found[preset] = interval(np.array([scores["independent"][s] - scores["shared"][s] for s in seeds]))
    return found


def study_numbers() -> dict[str, str | int | float]:
    """Return the numbers of the pages in docs/study, named "critics.PRESET.QUANTITY"."""
    rows = [json.loads(line) for line in KEPT.read_text(encoding="utf-8").splitlines()]
    scores, found = differences(rows), dict[str, str | int | float]()
    for preset, summary in summaries(rows).items():
        alone = float(np.mean(summary["policy_kl"][ALONE]))
        found |= {f"critics.{preset}.seeds": len(summary["policy_kl"][ALONE]), f"critics.{preset}.kl_alone": alone}
        for quantity, difference in (("explained", summary["difference"]), ("score", scores[preset])):
            found |= {f"critics.{preset}.{quantity}_{name}": difference[name] for name in ("mean", "low", "high")}
    return found


def scores_of(rows: Sequence[Mapping[str, Any]], preset: str) -> dict[str, dict[int, float]]:
    """Return the scores of the complete trainings by critic and seed."""
    chosen = [row for row in rows if row["part"] == "train" and row["preset"] == preset]
    return {critic: {row["seed"]: row["score"] for row in chosen if row["critic"] == critic} for critic in KINDS}


def write_page(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    same, verdicts, trained = list[str](), list[str](), list[str]()
    found = summaries(rows)
    for preset, summary in found.items():
        verdicts.append(f"**{preset}**: {summary['verdict']}\n")
        for kind, x in summary["kinds"].items():
            name = kind.replace("-", " ")
            cells = [preset, name, len(x["explained"]) - 1, f"{x['explained'][-1]:.3f}", f"{x['policy_kl'][-1]:.3g}"]
            same.append(f"| {' | '.join(map(str, cells))} | {x['parameters']:,} | {len(x['each'])} |")
    for preset in ROLLOUTS:
        for critic, scores in scores_of(rows, preset).items():
            if scores:
                each = ", ".join(f"{score:.3f}" for _, score in sorted(scores.items()))
                trained.append(f"| {preset} | {critic} | {np.mean(list(scores.values())):.3f} | {each} |")
    paired = [
        f"**{preset}**: independent minus shared {x['mean']:+.3f} (95 % interval {x['low']:.3f} to {x['high']:.3f}).\n"
        for preset, x in differences(rows).items()
    ]
    parts = {"same": "\n".join(same), "verdicts": "\n".join(verdicts), "trained": "\n".join(trained)}
    page = PAGE.format(**parts, differences="\n".join(paired), episodes=EPISODES, **ITERATIONS)
    path.write_text(page.rstrip() + "\n", encoding="utf-8")
    PICTURE.write_text(draw(found), encoding="utf-8")


def draw(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a picture with the explained variance by rollouts seen: the mean, and a thin line for each seed."""
    width, height, left, top = 380, 220, 55, 30
    parts = []
    for number, (preset, summary) in enumerate(found.items()):
        x0 = number * (width + left) + left
        each = {kind: [one["explained"] for one in x["each"]] for kind, x in summary["kinds"].items()}
        values = np.array([value for curves in each.values() for curve in curves for value in curve])
        low, high = max(float(values.min()), -0.5), float(values.max())
        count = len(summary["kinds"]["shared"]["explained"])

        def points(curve: Sequence[float], x0: int = x0, low: float = low, high: float = high, n: int = count) -> str:
            y = [top + height * (1 - (max(value, low) - low) / (high - low)) for value in curve]
            return " ".join(f"{x0 + width * k / (n - 1):.1f},{at:.1f}" for k, at in enumerate(y))

        parts.append(f'<text x="{x0}" y="{top - 10}" font-weight="bold">{preset}</text>')
        parts.append(f'<rect x="{x0}" y="{top}" width="{width}" height="{height}" fill="none" stroke="#999"/>')
        for at, value in ((top + height, low), (top + 10, high)):
            parts.append(f'<text x="{x0 - 5}" y="{at}" text-anchor="end">{value:.2f}</text>')
        parts.append(f'<text x="{x0}" y="{top + height + 18}">0</text>')
        parts.append(f'<text x="{x0 + width}" y="{top + height + 18}" text-anchor="end">{count - 1} rollouts</text>')
        for kind, curves in each.items():
            stroke = f'fill="none" stroke="{COLORS[kind]}"'
            parts += [f'<polyline points="{points(curve)}" {stroke} opacity="0.35"/>' for curve in curves]
            mean = summary["kinds"][kind]["explained"]
            parts.append(f'<polyline points="{points(mean)}" {stroke} stroke-width="2.5"/>')
    for number, (kind, color) in enumerate(COLORS.items()):
        x, y = left + 190 * number, top + height + 42
        parts.append(f'<rect x="{x}" y="{y - 9}" width="18" height="4" fill="{color}"/>')
        parts.append(f'<text x="{x + 24}" y="{y - 3}">{kind.replace("-", " ")}</text>')
    size = f"{len(found) * (width + left) + 20} {top + height + 50}"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size}" font-family="sans-serif" font-size="12">'
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *parts, "</svg>"]) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("presets", nargs="*", default=list(ROLLOUTS), help="presets to compare (default: both)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="seeds (default: 1 2 3)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/critics.md"), help="the page to write")
    parser.add_argument("--page", action="store_true", help="only write the page again")
    options = parser.parse_args()
    kept = options.out.with_suffix(".jsonl")
    rows = [json.loads(line) for line in kept.read_text(encoding="utf-8").splitlines()] if kept.exists() else []
    for job in jobs(options.presets, options.seeds) if not options.page else ():
        if any(all(row.get(name) == x for name, x in job.items()) for row in rows):
            continue
        named = job["preset"], job["seed"]
        result = compare_on_same_rollouts(*named) if job["part"] == "same" else train(*named, job["critic"])
        rows.append(job | {"date": str(date.today())} | result)
        with kept.open("a", encoding="utf-8") as file:
            file.write(json.dumps(rows[-1]) + "\n")
        print(*job.values(), flush=True)
    write_page(options.out, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
