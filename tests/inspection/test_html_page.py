"""The HTML page of `inspect`: safe with hostile texts, self-contained, and with the inspector's own formulas."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ppo_unified.errors import UsageError
from ppo_unified.inspection import html_document
from ppo_unified.inspection.clip_sentence import describe_clip
from ppo_unified.inspection.html_document import make_document, select_samples
from ppo_unified.inspection.html_page import make_page, write_page
from ppo_unified.inspection.sample_list import SampleList
from ppo_unified.inspection.step_formulas import Step, explain
from ppo_unified.inspection.what_if import Settings, recompute
from ppo_unified.runs.stored_iteration import Alternatives, StoredIteration
from tests.color_vision import VISIONS, ciede2000, contrast, seen_lab
from tests.stored_tokens import ENGLISH, make_token_iteration

HOSTILE = (
    "</script><script>alert(1)</script>",
    "<!--<script>",
    "<img src=x onerror=alert(1)>",
    "]]>\u2028\u2029&lt;&#60;",
    "\u202eabc\u2066\x1b[31m\x00\ud800",
    "' onclick='x' \"",
)


def make_iteration(responses: Sequence[Sequence[str]], prompt: str = "2+3=", **fields: Any) -> StoredIteration:
    """Return an iteration of a language model with random numbers. Column 0 contains the prompts."""
    rng = np.random.default_rng(1)
    shape = len(responses), 1 + max(map(len, responses))
    lengths = np.array([[len(response)] for response in responses])
    columns_of_row = np.arange(shape[1])
    mask = (columns_of_row >= 1) & (columns_of_row <= lengths)
    last = columns_of_row == lengths
    old = rng.uniform(-3, 0, shape).astype(np.float32)
    new = (old + rng.normal(0, 0.3, shape)).astype(np.float32)
    ref = rng.uniform(-3, 0, shape).astype(np.float32)
    value = np.where(mask, rng.uniform(0, 1, shape), 0).astype(np.float32)
    after = np.where(last | ~mask, 0, np.roll(value, -1, 1)).astype(np.float32)
    score = np.where(last, rng.integers(0, 2, shape), 0).astype(np.float32)
    reward = np.where(mask, score - 0.02 * (old - ref), 0).astype(np.float32)
    text = np.full(shape, "", dtype=object)
    text[:, 0] = prompt
    for row, response in enumerate(responses):
        text[row, 1 : 1 + len(response)] = response
    columns = {
        "mask": mask, "continues": mask & ~last, "logprob_old": old, "logprob_new": new, "ratio": np.exp(new - old),
        "logprob_ref": ref, "kl": old - ref, "kl_full": np.abs(old - ref),
        "score": score, "score_normalized": score, "ended": score,
        "reward": reward, "value": value, "next_value": after, "text": text, "token": mask.astype(np.int64),
    }  # fmt: skip
    about: dict[str, Any] = {"iteration": 3, "step": 90, "steps": int(mask.sum()), "gamma": 1.0, "lam": 0.95}
    about |= {"clip": 0.2, "clip_high": 0.2, "advantage_kind": "gae", "value_target": "lambda"}
    options = {"kind": "llm", "ppo": {"normalize_advantages": "batch"}, "llm": {"kl_coef": 0.02}}
    stored = StoredIteration(**about, metrics={"policy/kl": 0.1}, columns=columns, options=options, **fields)
    found = recompute(stored, Settings.of(stored)).columns
    columns |= {name: found[name] for name in ("delta", "advantage", "return", "advantage_used")}
    return stored


def hostile_iteration() -> StoredIteration:
    """Return an iteration in which every text of the model, the run and its files is hostile."""
    stored = make_iteration([HOSTILE], prompt="".join(HOSTILE))
    shape = stored.columns["mask"].shape
    logprobs = np.broadcast_to(np.log(np.array([0.5, 0.3], np.float32)), (*shape, 2))
    stored.alternatives["old"] = Alternatives(np.zeros((*shape, 2), np.int64), logprobs)
    stored.vocabulary[0] = HOSTILE[0]
    stored.metrics.update({HOSTILE[0]: None, "text": HOSTILE[0], "table": {}})  # type: ignore[dict-item]
    stored.options[HOSTILE[0]] = {HOSTILE[2]: HOSTILE[4]}
    return stored


class Elements(HTMLParser):
    """Collects the elements of a page with their attributes, and the text of scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.inside = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.inside = tag
        self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.texts[self.inside][-1] += data


def read_document(page: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(Elements(page).texts["script"][0])
    return loaded


def test_hostile_texts_remain_text() -> None:
    name = "</title><script>alert(1)</script>"
    page = make_page(hostile_iteration(), name)
    elements, plain = Elements(page), Elements(make_page(make_iteration([["5"]]), "run"))
    assert [tag for tag, _ in elements.tags] == [tag for tag, _ in plain.tags]
    assert elements.texts["title"] == [f"{name}, iteration 3"]
    data = page.split('id="data">')[1].split("</script>")[0]
    assert data.isascii()
    assert not set("<>&") & set(data)
    document = read_document(page)
    assert [value for _, _, value in document["metrics"]] == [None, 0.1, None, None]
    assert document["samples"][0]["text"][:3] == list(HOSTILE[:3])
    assert HOSTILE[0] in document["samples"][0]["before"]
    assert document["samples"][0]["chances"][1][1][0][0] == HOSTILE[0]


def test_page_is_self_contained() -> None:
    page = make_page(hostile_iteration(), "run")
    elements = Elements(page)
    used = {name for _, attributes in elements.tags for name in attributes}
    assert not used & {"src", "href", "srcset", "style", "action"}
    assert not [name for name in used if name.startswith("on")]
    assert not re.search(r"@import|url\(|https?://(?!www\.w3\.org/2000/svg)", page.replace(json.dumps(HOSTILE), ""))
    (policy,) = [a["content"] for _, a in elements.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    for kind, text in (("script", elements.texts["script"][1]), ("style", elements.texts["style"][0])):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy


def test_script_inserts_only_text() -> None:
    script = (Path(html_document.__file__).parent / "page.js").read_text(encoding="utf-8")
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", script)


def test_every_step_has_the_inspectors_formulas() -> None:
    stored = make_iteration([["1", "2", "<|end|>"], ["5", "<|end|>"]])
    document = read_document(make_page(stored, "run"))
    recomputed = recompute(stored, Settings.of(stored))
    assert len(document["samples"]) == 2
    for row, sample in enumerate(document["samples"]):
        for i, column in enumerate(sample["steps"]):
            step = Step(stored, recomputed, row, column)
            lines = [(*document["formulas"][kind], numbers, result) for kind, numbers, result in sample["formulas"][i]]
            assert lines == [(x.name, x.symbols, x.numbers, x.result) for x in explain(step)]
            assert document["sentences"][sample["sentences"][i]] == describe_clip(step)
            for name in ("advantage", "ratio", "delta", "cut", "outside", "loss"):
                expected = pytest.approx(float(recomputed.columns[name][row, column]), rel=1e-5, abs=1e-7)
                assert sample["columns"][name][i] == expected


def test_selection_has_best_worst_and_most_clipped() -> None:
    stored = make_iteration([["1"] * (1 + n % 3) for n in range(300)])
    listed = SampleList.of(stored, recompute(stored, Settings.of(stored)))
    chosen = select_samples(listed)
    assert len(chosen) == html_document.MAX_SAMPLES
    assert chosen == sorted(set(chosen))
    assert {listed.best(), listed.worst(), int(listed.columns["cut"].argmax())} <= set(chosen)
    document = make_document(stored, "run")
    assert document["included"] == "This page contains 40 of 300 samples"
    assert document["command"] == "ppo-unified inspect run --iteration 3 --sample N --html FILE"
    assert make_document(stored, "run", range(300))["included"] == ""


def test_long_responses_limit_the_selection() -> None:
    stored = make_iteration([["1"] * 4000, ["2"] * 4000, ["3"] * 4000, ["4"] * 4000, ["5"]])
    listed = SampleList.of(stored, recompute(stored, Settings.of(stored)))
    chosen = select_samples(listed)
    assert int(listed.columns["length"][chosen].sum()) <= html_document.MAX_STEPS
    assert len(chosen) == 3
    longest = make_iteration([["1"] * 20_000])
    assert select_samples(SampleList.of(longest, recompute(longest, Settings.of(longest)))) == [0]


def test_characters_split_over_tokens_are_whole() -> None:
    half = b"\xe4\xb8".decode("utf-8", "surrogateescape"), b"\xad".decode("utf-8", "surrogateescape")
    sample = read_document(make_page(make_iteration([[*half, "\n", "", "<|end|>"]]), "run"))["samples"][0]
    assert sample["text"] == ["⋯", "中", "⏎\n", "∅", "<|end|>"]
    assert sample["label"] == "中⏎<|end|>"


def test_numbers_that_are_not_finite_are_null() -> None:
    stored = make_iteration([["1", "2"]])
    stored.columns["value"][0, 1] = np.nan
    stored.columns["logprob_ref"][0, 1] = -np.inf
    sample = read_document(make_page(stored, "run"))["samples"][0]
    assert sample["columns"]["value"][0] is None
    assert sample["own"]["ref"] == [0, pytest.approx(float(np.exp(stored.columns["logprob_ref"][0, 2])), rel=1e-5)]


def test_page_replaces_only_pages(tmp_path: Path) -> None:
    page, path = make_page(make_iteration([["1"]]), "run"), tmp_path / "page.html"
    write_page(path, page)
    write_page(path, page + "<!-- newer -->")
    assert path.read_text(encoding="utf-8").endswith("<!-- newer -->")
    path.write_text("<p>mine</p>", encoding="utf-8")
    with pytest.raises(UsageError, match="the file exists and is not a page of `inspect`; choose another file name"):
        write_page(path, page)
    assert path.read_text(encoding="utf-8") == "<p>mine</p>"
    with pytest.raises(UsageError, match=r"--html .*cannot write the page \(.*\); choose another path"):
        write_page(tmp_path / "missing" / "page.html", page)
    assert [file.name for file in tmp_path.iterdir()] == ["page.html"]


def palettes() -> dict[str, dict[str, str]]:
    """Return the colors of the light and the dark theme, by name."""
    css = (Path(html_document.__file__).parent / "page.css").read_text(encoding="utf-8")
    light, dark = (dict(re.findall(r"--([\w-]+): (#\w{6})", block)) for block in re.findall(r":root \{([^}]*)\}", css))
    return {"light": light, "dark": dark}


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_heat_colors_suit_every_color_vision(theme: str) -> None:
    colors = palettes()[theme]
    for level in "1234":
        for side in "ud":
            ink = {"3": "#000000", "4": colors["ink-strong"]}.get(level, colors["ink"])
            assert contrast(ink, colors[side + level]) >= 4.5, side + level
    for vision in VISIONS:
        for level in "234":
            pair = (seen_lab(colors[side + level], vision) for side in "ud")
            assert ciede2000(*pair) > 12, (vision, level)
    for name in ("ink", "dim", "accent"):
        assert min(contrast(colors[name], colors[ground]) for ground in ("page", "panel")) >= 4.5, name


def test_steps_that_the_last_epoch_did_not_reach() -> None:
    """If ppo.target_kl ended the update, they have no ratio in the last epoch, and the entropy of an earlier one."""
    stored = make_token_iteration(ENGLISH)
    stored.epochs["minibatch"][2, 0] = -1
    document = make_document(stored, "run", [0])
    (sample,) = document["samples"]
    first, second, last = sample["epochs"]
    assert first.count(None) == second.count(None) == 0
    assert last == [None] * len(sample["steps"])
    expected = stored.epochs["entropy"][1, 0, sample["steps"]]
    assert sample["columns"]["entropy"] == pytest.approx(expected.tolist(), rel=1e-5)
