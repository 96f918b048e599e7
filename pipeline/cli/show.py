"""``scan show``: the results of the last run."""

from collections import Counter
from typing import Any

from pipeline.artifacts import (
    CANDIDATES,
    METRICS,
    PREDICTIONS,
    REPORT,
    VERDICT,
    load_csv,
    load_json,
    require,
    step_titles,
)
from pipeline.artifacts import GROUPS as NUMBER

# What ``show`` calls the measures of metrics.json.
SHOWN = {"acc": "ACC", "acc_many_to_one": "many to one", "nmi": "NMI", "ami": "AMI", "ari": "ARI"}
SHOWN_QUALITY = {
    "neighbor_agreement": ("neighbor agreement", ".1%"),
    "linear_predictability": ("linear predictability", ".1%"),
    "heads_ari": ("head agreement (ARI)", ".2f"),
    "silhouette": ("silhouette", ".2f"),
}
SHOWN_PROBES = {"knn_acc": "nearest neighbors", "linear_probe_acc": "linear probe"}
LISTED = 20  # groups in the table


def show() -> None:
    """Print the results of the last run and where its files are."""
    import pyarrow.parquet as pq

    metrics = load_json(METRICS)
    # Not data.protocol: params.yaml may have been edited since. Where all images are reported on, all are train's.
    splits = pq.read_table(require(PREDICTIONS), columns=["split"])["split"].unique().to_pylist()
    reported, title = ("val", "Validation images") if "val" in splits else ("train", "All images")
    if "acc" in metrics[reported]["selflabel"]:
        show_scores(metrics[reported], title)
    else:
        show_groups()
    quality = metrics["val"]["quality"] | metrics[reported]["quality"]  # the heads are compared on val alone
    found = [f"{name} {quality[key]:{form}}" for key, (name, form) in SHOWN_QUALITY.items() if key in quality]
    if found:
        print("\nwithout labels: " + ", ".join(found))
    probes = metrics["val"].get("uses_labels", {})
    if probes:
        found = [f"{name} {probes[measure]:.1%}" for measure, name in SHOWN_PROBES.items()]
        print("labels used, on embeddings: " + ", ".join(found))
    print(f"\nreport       {REPORT}\npredictions  {PREDICTIONS}\nmetrics      {METRICS}\nall runs     make ui")


def show_scores(scores: dict[str, Any], title: str) -> None:
    """Prints the scores of each step against labels."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{title}, in %", title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("", no_wrap=True)
    measures = [name for name in SHOWN if name in scores["selflabel"]]
    for name in [SHOWN[measure] for measure in measures] + ["clusters in use", "confident"]:
        table.add_column(name, justify="right", no_wrap=name != "clusters in use")  # 80 characters in all
    for step, label in step_titles(load_csv(CANDIDATES)).items():
        of_step = scores[step]
        cells = [f"{100 * of_step[name]:.1f}" if name in of_step else "" for name in measures]
        share = of_step.get("confident_share")
        table.add_row(label, *cells, f"{of_step['clusters_used']:g}", "" if share is None else f"{100 * share:.0f}")
    Console().print(table)


def show_groups() -> None:
    """Prints how far the groups can be trusted, and how many images each has, the largest first."""
    import pyarrow.parquet as pq
    from rich.console import Console
    from rich.table import Table

    from pipeline.report.words import range_of, states_of, what_to_try, why

    rows = pq.read_table(require(PREDICTIONS), columns=["cluster", "state"]).drop_null()
    clusters, states = rows["cluster"].to_pylist(), rows["state"].to_pylist()
    verdict, groups = load_json(VERDICT), load_json(NUMBER)
    counts = Counter(clusters)
    pairs = Counter(zip(clusters, states, strict=True))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("group", "images", "share", "verdict", *(state for state, _ in states_of(verdict))):
        table.add_column(column, justify="left" if column == "verdict" else "right")
    for group, count in counts.most_common(LISTED):
        by_state = [f"{pairs[group, state]:,}" for state, _ in states_of(verdict)]
        word = verdict["groups"][group]["word"]
        table.add_row(str(group), f"{count:,}", f"{count / len(clusters):.1%}", word, *by_state)
    print(f"{range_of(groups)}; verdict: {verdict['word'].upper()}\n")
    Console().print(table)
    if len(counts) > LISTED:
        print(f"and {len(counts) - LISTED} more")
    print(f"\n{why(verdict)}" + (f"\nto try: {tried}" if (tried := what_to_try(verdict, groups)) else ""))
