#!/usr/bin/env python3
"""Trains the fleet demo's models and says how good they are on data they have not seen.

    train.py fleet READINGS.csv   readings of the simulated plant  -> anomaly-v1.json, anomaly-v2.json
    train.py ai4i  ai4i2020.csv   AI4I 2020 (doi 10.24432/C5HS5C)  -> ai4i.json

Each model is a gradient-boosted ensemble of small trees in the format buttress.tree-ensemble/1. Precision and recall
are computed from the written file, by the evaluator below, on the held-out 30 %; the plant is split by machine, so that
no machine is in both parts. A score above 0.7 is an anomaly: the threshold that is best for F1 on the training data
(out of fold) is moved to 0.7 by a constant in the exponent.
"""

import csv
import json
import math
import pathlib
import sys

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.model_selection import GroupKFold

FEATURES = ["temperature", "vibration", "speed", "torque", "wear"]
SCORE_MAX = 0.7
SEED = 1
HERE = pathlib.Path(__file__).parent


def read(path, columns, label, group):
    """Rows, labels and groups; None as a column is a feature that was not measured."""
    with open(path, newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    x = np.array([[math.nan if c is None else float(r[c]) for c in columns] for r in rows], dtype=np.float32)
    y = np.array([int(r[label]) for r in rows])
    groups = np.array([r[group] for r in rows])
    return x, y, groups


def split(groups):
    """True for the held-out 30 % of the groups."""
    names = np.unique(groups)
    held = np.random.default_rng(SEED).permutation(len(names))[: int(0.3 * len(names))]
    return np.isin(groups, names[held])


def logit(p):
    p = np.clip(p, 1e-9, 1 - 1e-9)
    return np.log(p / (1 - p))


def best_threshold(y, margin):
    """The margin at which F1 is best."""
    order = np.argsort(-margin)
    hits = np.cumsum(y[order])
    f1 = 2 * hits / (np.arange(1, len(y) + 1) + y.sum())
    at = int(np.argmax(f1))
    following = margin[order[min(at + 1, len(order) - 1)]]
    return float((margin[order[at]] + following) / 2)


def train(x, y, groups, settings):
    def make():
        return HistGradientBoostingClassifier(early_stopping=False, random_state=SEED, **settings)

    out_of_fold = np.zeros(len(y))
    for fit, check in GroupKFold(n_splits=4).split(x, y, groups):
        out_of_fold[check] = logit(make().fit(x[fit], y[fit]).predict_proba(x[check])[:, 1])
    shift = math.log(SCORE_MAX / (1 - SCORE_MAX)) - best_threshold(y, out_of_fold)
    return make().fit(x, y), shift


def round_down(value):
    """The largest float32 that is not above value: x <= value then holds for the same float32 x."""
    near = np.float32(value)
    return near if float(near) <= value else np.nextafter(near, np.float32(-np.inf))


def short(value):
    """The shortest decimal that is the same float32."""
    return float(np.format_float_positional(np.float32(value), unique=True, trim="0"))


def export(model, shift, measured, metadata):
    """`measured` maps the columns that were trained on to positions in FEATURES."""
    trees = []
    for (predictor,) in model._predictors:
        tree = {"feature": [], "threshold": [], "left": [], "right": [], "value": [], "missing_left": []}
        for node in predictor.nodes:
            leaf = bool(node["is_leaf"])
            tree["feature"].append(-1 if leaf else int(measured[node["feature_idx"]]))
            tree["threshold"].append(0 if leaf else short(round_down(node["num_threshold"])))
            tree["left"].append(-1 if leaf else int(node["left"]))
            tree["right"].append(-1 if leaf else int(node["right"]))
            tree["value"].append(short(round(float(node["value"]), 5)) if leaf else 0)
            tree["missing_left"].append(bool(node["missing_go_to_left"]) if not leaf else False)
        if not any(tree["missing_left"]):
            del tree["missing_left"]
        trees.append(tree)
    return {
        "format": "buttress.tree-ensemble/1",
        "features": FEATURES,
        "objective": "logistic",
        "base": short(float(model._baseline_prediction.ravel()[0]) + shift),
        "trees": trees,
        "metadata": metadata,
    }


def score(model, x):
    """The model as a node evaluates it."""
    margin = np.full(len(x), np.float32(model["base"]), dtype=np.float32)
    for tree in model["trees"]:
        feature, left, right = (np.array(tree[k]) for k in ("feature", "left", "right"))
        threshold, value = (np.array(tree[k], dtype=np.float32) for k in ("threshold", "value"))
        missing_left = np.array(tree.get("missing_left", [False] * len(left)))
        at = np.zeros(len(x), dtype=int)
        while True:
            inner = left[at] >= 0
            if not inner.any():
                break
            seen = x[np.arange(len(x)), np.maximum(feature[at], 0)]
            goes_left = np.where(np.isnan(seen), missing_left[at], seen <= threshold[at])
            at = np.where(inner, np.where(goes_left, left[at], right[at]), at)
        margin += value[at]
    return 1 / (1 + np.exp(np.minimum(-margin, 80)))


def build(name, x, y, groups, settings, source):
    held = split(groups)
    measured = np.flatnonzero(~np.isnan(x).all(axis=0))
    model, shift = train(x[~held][:, measured], y[~held], groups[~held], settings)
    exported = export(model, shift, measured, {})
    verdict = score(exported, x[held]) > SCORE_MAX
    hits = int((verdict & (y[held] == 1)).sum())
    quality = {
        "source": source,
        "seed": SEED,
        "trees": len(exported["trees"]),
        "held_out": {
            "rows": int(held.sum()),
            "anomalies": int(y[held].sum()),
            "precision": round(hits / max(1, int(verdict.sum())), 4),
            "recall": round(hits / max(1, int(y[held].sum())), 4),
        },
    }
    exported["metadata"] = quality
    path = HERE / f"{name}.json"
    path.write_text(json.dumps(exported, separators=(",", ":")) + "\n")
    print(f"{name}: {quality} {path.stat().st_size} bytes")


def main():
    if len(sys.argv) != 3 or sys.argv[1] not in ("fleet", "ai4i"):
        sys.exit(__doc__)
    if sys.argv[1] == "fleet":
        x, y, groups = read(sys.argv[2], FEATURES, "failed", "machine")
        source = "readings of the simulated plant, seed 1"
        small = {"max_iter": 8, "max_leaf_nodes": 6, "learning_rate": 0.35, "min_samples_leaf": 60,
                 "l2_regularization": 5.0}
        large = {"max_iter": 90, "max_leaf_nodes": 16, "learning_rate": 0.12, "min_samples_leaf": 30,
                 "l2_regularization": 1.0}
        build("anomaly-v1", x, y, groups, small, source)
        build("anomaly-v2", x, y, groups, large, source)
    else:
        columns = ["Process temperature [K]", None, "Rotational speed [rpm]", "Torque [Nm]", "Tool wear [min]"]
        x, y, groups = read(sys.argv[2], columns, "Machine failure", "UDI")
        settings = {"max_iter": 70, "max_leaf_nodes": 12, "learning_rate": 0.1, "min_samples_leaf": 8,
                    "l2_regularization": 1.0}
        build("ai4i", x, y, groups, settings, "AI4I 2020, S. Matzka, doi 10.24432/C5HS5C, CC BY 4.0")


if __name__ == "__main__":
    main()
