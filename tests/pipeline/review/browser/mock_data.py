"""Made-up data.json of any size, so that the page can be looked at and timed without a run."""

import math
from pathlib import Path
from typing import Any

import numpy as np

STATES = ("sure", "to check", "fits nowhere")
NAMES = ("daisy", "beach", "dog", "meadow", "bicycle", "harbor", "bridge", "cat", "snow", "train", "lamp", "market")
HOSTILE = "<script>window.stolen=1</script><img src=x onerror=window.stolen=1>"
SCRIPTS = ("犬", "كلب", "강아지", "Ωμέγα", "собака", "कुत्ता")


def make(
    images: int = 1000,
    groups: int = 12,
    labels: bool = False,
    word: str = "weak",
    seed: int = 0,
    sources: list[str] | None = None,
    classes: list[str] | None = None,
) -> dict[str, Any]:
    """data.json of `images` images in `groups` groups; `sources` and `classes` are those of real photos."""
    rng = np.random.default_rng(seed)
    centers = rng.uniform(0.12, 0.88, (groups, 2))
    if classes:
        order = sorted(set(classes))
        truth = np.array([order.index(name) for name in classes]) % groups
        group = np.where(rng.random(images) < 0.8, truth, rng.integers(0, groups, images))
    else:
        shares = rng.dirichlet(np.full(groups, 3.0))
        group = rng.choice(groups, images, p=shares)
    place = np.clip(centers[group] + rng.normal(0, 0.05, (images, 2)), 0, 1)
    distance = ((place[:, None] - centers[None]) ** 2).sum(2) if images * groups < 3e7 else None
    runner_up = (group + 1) % groups if distance is None else np.argsort(distance, 1)[:, 1 if groups > 1 else 0]
    runner_up = np.where(runner_up == group, (group + 1) % groups, runner_up)
    probability = np.clip(rng.beta(6, 1.4, images), 0.2, 1)
    state = np.where(probability > 0.72, 0, np.where(probability > 0.35, 1, 2))
    if word == "none":
        probability = np.clip(rng.beta(2, 5, images), 0.1, 1)
        state = np.where(probability > 0.7, 0, 1)
    label = classes or []
    if labels and not classes:
        label = [NAMES[g % len(NAMES)] for g in np.where(rng.random(images) < 0.7, group, runner_up)]
    days = rng.integers(0, 1500, images)
    source = sources or [
        f"{('2023 trip', 'home', 'work/site')[i % 3]}/{2021 + i % 4}-{1 + i % 12:02d}/IMG_{i:06d}.JPG"
        for i in range(images)
    ]
    if images > 3 and not sources:
        source[1] = f"home/{HOSTILE}.jpg"
        source[2] = f"{SCRIPTS[0]}/{SCRIPTS[1]} {SCRIPTS[2]}.jpg"
    data: dict[str, Any] = {
        "mode": "review",
        "project": "photos",
        "version": 1,
        "run": {"images": images, "number": groups, "low": max(1, groups - 3), "high": groups + 3, "given": groups == 2,
                "labels": bool(label), "edited": False},
        "verdict": _verdict(word),
        "counts": {},
        "promise": None,
        "groups": [],
        "images": {
            "source": source,
            "group": (group + 1).tolist(),
            "state": state.tolist(),
            "probability": np.round(probability, 3).tolist(),
            "runner_up": (runner_up + 1).tolist() if groups > 1 else [0] * images,
            "split": np.where(rng.random(images) < 0.8, "train", "val").tolist(),
            "date": [str(np.datetime64("2021-01-01") + int(d)) if d % 17 else "" for d in days],
            "x": np.round(place[:, 0], 4).tolist(),
            "y": np.round(place[:, 1], 4).tolist(),
            "answered": [0] * images,
            "label": list(label),
        },
        "questions": [],
        "copies": [[i, i + 1] for i in range(10, min(images - 2, 300), 22)] + ([[3, 4, 5]] if images > 6 else []),
        "odd": {"dark": list(range(20, min(images, 34))), "blurred": list(range(40, min(images, 49))),
                "outliers": np.flatnonzero(state == 2)[:30].tolist()},
        "rejected": [{"source": "old/broken.jpg", "kind": "rejected", "reason": "cut off after 12,288 bytes"},
                     {"source": f"old/{HOSTILE}.jpg", "kind": "rejected", "reason": "not an image"}],
        "more": _more(bool(label)),
    }  # fmt: skip
    words = ["strong"] * groups if word == "strong" else ["none"] * groups if word == "none" else None
    for g in range(groups):
        kind = words[g] if words else ("weak", "strong", "strong", "strong", "none" if g % 20 == 7 else "strong")[g % 5]
        suggested = NAMES[g % len(NAMES)] if g % 4 else ""
        data["groups"].append({"number": g + 1, "name": "", "suggested": suggested, "word": kind, "ignored": False})
    refresh(data)
    data["questions"] = _questions(data, 400)
    return data


def refresh(data: dict[str, Any]) -> None:
    """What follows from the images' groups: sizes, samples, counts."""
    images = data["images"]
    group, state = np.array(images["group"]), np.array(images["state"])
    probability, label = np.array(images["probability"]), np.array(images["label"])
    x, y = np.array(images["x"]), np.array(images["y"])
    rng = np.random.default_rng(1)
    middles = {}
    for one in data["groups"]:
        members = np.flatnonzero(group == one["number"])
        if len(members):
            middles[one["number"]] = (float(x[members].mean()), float(y[members].mean()))
        surest = members[np.argsort(-probability[members], kind="stable")]
        one["size"] = len(members)
        one["states"] = {name: int((state[members] == i).sum()) for i, name in enumerate(STATES)}
        one["prototypes"], one["least_sure"] = surest[:8].tolist(), surest[::-1][:4].tolist()
        one["random"] = rng.permutation(members)[:8].tolist()
        one["can_split"] = len(members) > 3
        names, n = np.unique(label[members], return_counts=True) if len(label) else ([], [])
        top = sorted(zip(names, n, strict=True), key=lambda pair: -pair[1])[:2]
        one["classes"] = [[str(name), round(int(count) / max(1, len(members)), 2)] for name, count in top]
    for one in data["groups"]:
        here = middles.get(one["number"], (0.5, 0.5))
        near = sorted((math.dist(here, there), other) for other, there in middles.items() if other != one["number"])
        one["similar"] = [{"group": other, "similarity": round(max(0.0, 1 - d), 2)} for d, other in near[:3]]
    counts = {name: int((state == i).sum()) for i, name in enumerate(STATES)}
    data["counts"] = {**counts, "unreadable": len(data["rejected"]), "copies": len(data["copies"])}
    data["run"]["number"] = len(data["groups"])


def _questions(data: dict[str, Any], most: int) -> list[dict[str, Any]]:
    images = data["images"]
    group, x, y = np.array(images["group"]), np.array(images["x"]), np.array(images["y"])

    def nearest(image: int, number: int) -> list[int]:
        members = np.flatnonzero(group == number)
        members = members[members != image]
        return members[np.argsort((x[members] - x[image]) ** 2 + (y[members] - y[image]) ** 2)[:3]].tolist()

    asked = [i for i, state in enumerate(images["state"]) if state == 1][:most]
    return [
        {"image": i, "group": int(group[i]), "runner_up": images["runner_up"][i], "own": nearest(i, int(group[i])),
         "other": nearest(i, images["runner_up"][i])}
        for i in asked
    ]  # fmt: skip


def _verdict(word: str) -> dict[str, Any]:
    if word == "strong":
        return {"word": word, "why": ["a linear model finds the same groups again for 95 % of new images"], "try": []}
    if word == "none":
        return {"word": word, "why": ["the groups are no better than those of shuffled features",
                                      "only 9 % of neighbors share a group, 8 % would by chance"],
                "try": ["more images, at least some hundred of each kind", "scan run --train"]}  # fmt: skip
    return {"word": word, "why": ["3 of 12 groups look mixed: 4 in 10 neighbors of their images lie in other groups",
                                  "two runs with other seeds agree on 71 % of the images"],
            "try": ["scan run --groups 9, the next plausible number", "split the weak groups below"]}  # fmt: skip


def _more(labels: bool) -> dict[str, Any]:
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 400 160"><path d="M10 150 Q100 20 390 12" fill="none" '
        'stroke="#1a5fb4" stroke-width="3"/><script>window.stolen=1</script></svg>'
    )
    return {
        "kmeans": {"agreement": 0.78, "acc": 0.61 if labels else None, "acc_result": 0.70 if labels else None},
        "settings": "cluster:\n  neighbors: 20 # " + "a long line of what it is for, " * 9 + "\n  heads: 10\n",
        "charts": [{"title": "Loss of each epoch", "text": "It falls, and no longer at the end.", "svg": svg}],
        "scores": [["ACC", "70.1"], ["NMI", "64.2"], ["neighbor agreement", "0.81"]],
    }


def photos_of(folder: Path, most: int) -> tuple[list[str], list[str]]:
    """Real photos in class folders: their paths and classes."""
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp"))
    found = [found[i] for i in np.random.default_rng(0).permutation(len(found))[:most]]
    return [str(p.relative_to(folder)) for p in found], [p.relative_to(folder).parts[0] for p in found]
