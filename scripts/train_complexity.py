#!/usr/bin/env python3
"""Train the scorer of `avyay/marga/complexity.py` on labelled outcomes, and cross-validate it.

    scripts/train_complexity.py DATA [--predictions OUT.jsonl] [--write]

DATA holds *.jsonl.gz rows {id, source, task, group, prompt, outcomes: {model: {score, cost_usd}}} and tiers.json.
Sources whose licences do not allow shipping what was learned from them (alpaca_eval, routerbench) are scored, never
trained on.
The target is the gain of the strong over the weak model, centred in each set, so that the model learns to order prompts
of one kind and not to tell the sources apart. Folds are by group: the same question never stands on both sides.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))
from avyay.marga.complexity import load_model, score
from avyay.marga.prompt import FEATURES, read
from avyay.marga.view import RequestView

TRAINED = ("mmlu_pro", "routellm", "ulab", "zeroeval")
MODEL = Path(__file__).parent.parent / "avyay" / "marga" / "data" / "complexity.json"
FOLDS = 5
LEAST = 50  # rows from which a family is learned
# By family: sources, share of the scored pair in the target (the rest: mean of all strong minus mean of all weak
# models, which is less noisy), the weight of length (by standard deviation) that everything is drawn towards, penalties
# of moving away from that, of features and of words, and how many words. Chosen by what leaves whole sources out as
# well as by folds: what was learned of one benchmark must not make another worse than its length does. Open questions
# were learned from short factual ones only, and words learned there mislead elsewhere: their model has none, starts low
# and moves little; the rest is left to the wording of the request.
PLANS = {
    "choice": {
        "sources": ("mmlu_pro", "routellm"),
        "pair": 0.5,
        "prior": 0.035,
        "length": 100_000,
        "features": 100_000,
        "word": 4000,
        "words": 3000,
    },
    "quantity": {
        "sources": ("routellm", "zeroeval"),
        "pair": 1.0,
        "prior": 0.06,
        "length": 300,
        "features": 60_000,
        "word": 0,
        "words": 0,
    },
    "formula": {
        "sources": ("zeroeval", "ulab"),
        "pair": 0.0,
        "prior": 0.0,
        "length": 3000,
        "features": 20_000,
        "word": 1000,
        "words": 400,
    },
    "open": {
        "sources": ("ulab", "routellm"),
        "pair": 0.5,
        "prior": 0.0,
        "length": 3000,
        "features": 3000,
        "word": 0,
        "words": 0,
        "spread": 0.35,
        "shift": -1.45,
    },
}


def set_name(row):
    if row["source"] == "mmlu_pro":
        return "mmlu_pro"
    return f"{row['source']}/{row['task']}"


def load(directory):
    rows = []
    for path in sorted(Path(directory).glob("*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            rows += [json.loads(line) for line in file]
    tiers = json.loads((Path(directory) / "tiers.json").read_text())
    return rows, tiers


def gains(row, tiers):
    """(gain of the scored pair, gain of strong over weak models on average); None where there is no such pair."""
    outcomes = row["outcomes"]
    weak, strong = tiers["sources"][row["source"]]["main"]
    pair = None
    if weak in outcomes and strong in outcomes:
        pair = outcomes[strong]["score"] - outcomes[weak]["score"]
    by_tier = {t: [outcomes[m]["score"] for m in tiers["model_tier"][t] if m in outcomes] for t in tiers["model_tier"]}
    high = by_tier["premium"] or by_tier["medium"]
    low = by_tier["local"] or (by_tier["medium"] if by_tier["premium"] else [])
    average = float(np.mean(high) - np.mean(low)) if high and low else pair
    return pair, average


class Data:
    def __init__(self, directory):
        self.rows, self.tiers = load(directory)
        self.prompts = [read(row["prompt"]) for row in self.rows]
        self.values = np.array([p.values for p in self.prompts])
        self.families = np.array([p.family for p in self.prompts])
        self.sources = np.array([r["source"] for r in self.rows])
        self.sets = np.array([set_name(r) for r in self.rows])
        self.folds = np.array([int(hashlib.sha256(r["group"].encode()).hexdigest(), 16) % FOLDS for r in self.rows])
        found = [gains(row, self.tiers) for row in self.rows]
        self.pair = np.array([np.nan if p is None else p for p, _ in found], float)
        self.average = np.array([np.nan if a is None else a for _, a in found], float)
        self.sizes = {s: float((self.sets == s).sum()) for s in set(self.sets)}

    def target(self, share):
        pair = np.where(np.isnan(self.pair), self.average, self.pair)
        gain = share * pair + (1 - share) * self.average
        centred = gain.copy()
        for name in self.sizes:
            mask = self.sets == name
            centred[mask] -= np.nanmean(gain[mask])
        return gain, centred


def fit(data, use, without=None):
    """The model learned from the rows of the mask `use`, of every family but `without`."""
    families = {}
    for family, plan in PLANS.items():
        if family == without:
            continue
        gain, centred = data.target(plan["pair"])
        mask = use & (data.families == family) & np.isin(data.sources, plan["sources"]) & ~np.isnan(centred)
        index = np.flatnonzero(mask)
        if len(index) < LEAST:
            continue  # judged by length, like every family that was not learned
        values = data.values[index]
        mean, scale = values.mean(0), values.std(0)
        constant = scale < 1e-6
        scale[constant] = 1.0
        features = np.clip((values - mean) / scale, -3, 3)
        features[:, constant] = 0.0
        counts = {}
        for i in index:
            for word in data.prompts[i].words:
                counts[word] = counts.get(word, 0) + 1
        vocabulary = sorted(counts, key=lambda w: (-counts[w], w))[: plan["words"]]
        place = {word: j for j, word in enumerate(vocabulary)}
        bag = np.zeros((len(index), len(vocabulary)))
        for row, i in enumerate(index):
            words = data.prompts[i].words
            for word in words:
                if word in place:
                    bag[row, place[word]] = 10 / max(1, len(words)) ** 0.5
        weights = np.array([data.sizes[s] ** -0.5 for s in data.sets[index]])
        weights /= weights.mean()
        matrix = np.hstack([np.ones((len(index), 1)), features, bag])
        penalty = np.r_[
            1e-6, np.full(len(FEATURES), float(plan["features"])), np.full(len(vocabulary), float(plan["word"]))
        ]
        penalty[1 + FEATURES.index("length")] = plan["length"]
        prior = np.zeros(matrix.shape[1])
        prior[1 + FEATURES.index("length")] = plan["prior"]
        weighted = matrix * weights[:, None]
        rest = centred[index] - matrix @ prior
        solution = prior + np.linalg.solve(weighted.T @ matrix + np.diag(penalty), weighted.T @ rest)
        predicted = matrix @ solution
        coefficients = solution[1 : 1 + len(FEATURES)]
        coefficients[constant] = 0.0
        average = float(np.average(gain[index], weights=weights))
        families[family] = {
            "mean": [round(float(v), 5) for v in mean],
            "scale": [round(float(v), 5) for v in scale],
            "weights": [round(float(v), 7) for v in coefficients],
            "words": {
                w: round(float(10 * v), 5)
                for w, v in zip(vocabulary, solution[1 + len(FEATURES) :], strict=True)
                if abs(v) > 1e-5
            },
            "bias": round(float(solution[0]), 6),
            "spread": round(float(plan.get("spread", 1.2) / max(1e-6, predicted.std())), 4),
            # 0.2 is about the mean gain of all sets; a family that gains more stands higher as a whole.
            "shift": round(float(plan.get("shift", np.clip((average - 0.2) * 4, -0.9, 0.9))), 4),
            "rows": len(index),
        }
    return {"features": list(FEATURES), "families": families}


def predictions(data, model, mask):
    scorer = load_model(json.dumps({**model, "trained": ""}))
    return {i: score(RequestView(data.rows[i]["prompt"]), scorer).score for i in np.flatnonzero(mask)}


def area(score, gain):
    """Mean normalised gain over all shares sent to the strong model (APGR); equal scores in expectation."""
    _, inverse = np.unique(-score, return_inverse=True)
    size = np.bincount(inverse).astype(float)
    total = np.bincount(inverse, gain)
    before = np.cumsum(total) - total
    return float((size * (before + total / 2)).sum() / (len(score) * gain.sum()))


def saved(score, weak, strong, weak_cost, strong_cost, share=0.95):
    """Calls and dollars saved at the least share of strong calls that reaches 95 % of the strong model's quality."""
    order = np.argsort(-score, kind="stable")
    quality = weak.mean() + np.r_[0.0, np.cumsum((strong - weak)[order])] / len(score)
    calls = int(np.argmax(quality >= share * strong.mean())) if (quality >= share * strong.mean()).any() else len(score)
    cost = np.r_[0.0, np.cumsum((strong_cost - weak_cost)[order])] + weak_cost.sum()
    return 1 - calls / len(score), 1 - cost[calls] / strong_cost.sum()


def outcomes(data, mask):
    """(weak scores, strong scores, weak USD, strong USD) of the scored pair; costs NaN where they are not known."""
    rows = [data.rows[i] for i in np.flatnonzero(mask)]
    pairs = [
        (row["outcomes"][weak], row["outcomes"][strong])
        for row in rows
        for weak, strong in [data.tiers["sources"][row["source"]]["main"]]
    ]
    return [
        np.array([np.nan if (value := pair[side][key]) is None else value for pair in pairs], float)
        for key in ("score", "cost_usd")
        for side in (0, 1)
    ]


def report(data, columns):
    """APGR by set and their mean, one column for each way of scoring; then what the first one saves."""
    print(f"{'set':28}{'n':>6}{'gap':>7}" + "".join(f"{name:>12}" for name in columns))
    totals = {name: [] for name in columns}
    for name in sorted(data.sizes):
        mask = (data.sets == name) & ~np.isnan(data.pair)
        if name.startswith("ulab") or mask.sum() < 100 or data.pair[mask].mean() < 0.08:
            continue
        line = [area(values[mask], data.pair[mask]) for values in columns.values()]
        for column, value in zip(columns, line, strict=True):
            totals[column].append(value)
        print(f"{name:28}{mask.sum():6}{data.pair[mask].mean():7.3f}" + "".join(f"{v:12.3f}" for v in line))
    print(f"{'mean':41}" + "".join(f"{np.mean(v):12.4f}" for v in totals.values()))
    print(f"\n{'saved at 95 % of strong quality':34}" + "".join(f"{name:>12}" for name in columns) + "  (calls / USD)")
    for name in sorted(data.sizes):
        mask = (data.sets == name) & ~np.isnan(data.pair)
        if name.startswith("ulab") or mask.sum() < 100 or data.pair[mask].mean() < 0.08:
            continue
        found = outcomes(data, mask)
        line = [saved(values[mask], *found) for values in columns.values()]
        print(f"{name:34}" + "".join(f"{f'{calls:.0%} / {usd:.0%}':>12}" for calls, usd in line))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--predictions", help="write the out-of-fold scores here, for an outside scorer")
    parser.add_argument("--write", action="store_true", help="write the model trained on all rows into the package")
    parser.add_argument("--leave-out", action="store_true", help="also leave out one source, and one family, at a time")
    arguments = parser.parse_args()
    data = Data(arguments.data)
    trainable = np.isin(data.sources, TRAINED)
    out = np.full(len(data.rows), np.nan)
    for fold in range(FOLDS):
        model = fit(data, trainable & (data.folds != fold))
        for i, value in predictions(data, model, data.folds == fold).items():
            out[i] = value
    columns = {"folds": out}
    if arguments.leave_out:
        left = np.full(len(data.rows), np.nan)
        for source in sorted(set(data.sources)):
            others = trainable & (data.sources != source)
            groups = {r["group"] for r, s in zip(data.rows, data.sources, strict=True) if s == source}
            others &= np.array([r["group"] not in groups for r in data.rows])
            model = fit(data, others)
            for i, value in predictions(data, model, data.sources == source).items():
                left[i] = value
        columns["source out"] = left
        apart = np.full(len(data.rows), np.nan)
        for family in sorted(set(data.families)):
            model = fit(data, trainable, without=family)
            for i, value in predictions(data, model, data.families == family).items():
                apart[i] = value
        columns["family out"] = apart
    columns["length"] = np.array([float(len(r["prompt"])) for r in data.rows])
    columns["random"] = np.zeros(len(data.rows))
    report(data, columns)
    if arguments.predictions:
        with Path(arguments.predictions).open("w", encoding="utf-8") as file:
            for row, value in zip(data.rows, out, strict=True):
                file.write(json.dumps({"id": row["id"], "complexity": round(float(value), 6)}) + "\n")
    if arguments.write:
        model = fit(data, trainable)
        trained = ", ".join(f"{s} ({int((data.sources == s).sum())})" for s in TRAINED)
        MODEL.write_text(json.dumps({"trained": trained, **model}, separators=(",", ":"), sort_keys=True) + "\n")
        print(f"wrote {MODEL.name}: {MODEL.stat().st_size} bytes")


if __name__ == "__main__":
    main()
