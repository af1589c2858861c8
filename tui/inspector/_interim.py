from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass
class Rows:
    numbers: dict[str, np.ndarray]
    prompts: list[str]
    texts: list[str]


def make_rows(stored, samples, recomputed) -> Rows:
    mask = stored.columns["mask"]
    lengths = np.array([len(s.columns) for s in samples])
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])

    def total(x):
        return np.add.reduceat(x[mask].astype(np.float64), starts)

    c = recomputed.columns
    score = stored.columns.get("score", c["reward"])
    numbers = {
        "length": lengths,
        "score": total(score),
        "outside": total(c["outside"] != 0).astype(int),
        "cut": total(c["cut"]).astype(int),
        "advantage": total(np.abs(c["advantage"])) / lengths,
        "number": np.arange(len(samples)),
    }
    if "kl" in c:
        numbers["kl"] = total(c["kl"])
    prompts = [stored.text_before(s) for s in samples]
    texts = [
        "".join(stored.columns["text"][s.row, s.columns].tolist()) if "text" in stored.columns else "" for s in samples
    ]
    return Rows(numbers, prompts, texts)


def order(rows, sort, query) -> list[int]:
    n = rows.numbers
    key = {
        "clipped": lambda: np.lexsort((n["number"], -n["outside"], -n["cut"])),
        "score": lambda: np.argsort(n["score"], kind="stable"),
        "kl": lambda: np.argsort(-n.get("kl", n["number"] * 0), kind="stable"),
        "advantage": lambda: np.argsort(-n["advantage"], kind="stable"),
        "length": lambda: np.argsort(-n["length"], kind="stable"),
        "number": lambda: n["number"],
    }[sort]()

    def ok(i):
        for w in query.split():
            if w == "wrong":
                if n["score"][i] > 0:
                    return False
            elif w == "cut":
                if not n["cut"][i]:
                    return False
            elif ">" in w:
                k, v = w.split(">")
                if not n[k][i] > float(v):
                    return False
            elif w not in rows.prompts[i] + rows.texts[i]:
                return False
        return True

    return [int(i) for i in key if ok(i)]
