"""``scan show``: the results of the last run."""

from collections import Counter
from pathlib import Path
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
from pipeline.finished import delete_noted
from pipeline.progress import alive
from pipeline.project import command_name, is_clone
from pipeline.report.words import SHOWN_QUALITY

# What ``show`` calls the measures of metrics.json.
SHOWN = {"acc": "ACC", "acc_many_to_one": "many to one", "nmi": "NMI", "ami": "AMI", "ari": "ARI"}
SHOWN_PROBES = {"knn_acc": "nearest neighbors", "linear_probe_acc": "linear probe"}
LISTED = 20  # groups in the table


def show() -> None:
    """Print the results of the last run and where its files are."""
    import pyarrow.parquet as pq

    delete_noted(Path())  # of the last stage; the others have done so for those before them
    metrics = load_json(METRICS)
    # Not data.protocol: params.yaml may have been edited since. Where all images are reported on, all are train's.
    splits = pq.read_table(require(PREDICTIONS), columns=["split"])["split"].unique().to_pylist()
    reported, title = ("val", "Validation images") if "val" in splits else ("train", "All images")
    labeled = "acc" in metrics[reported]["selflabel"]
    show_scores(metrics[reported], title) if labeled else show_groups()
    quality = metrics["val"]["quality"] | metrics[reported]["quality"]  # the heads are compared on val alone
    found = [f"{name} {quality[key]:{form}}" for key, (name, form) in SHOWN_QUALITY.items() if key in quality]
    if found:
        print("\nwithout labels: " + ", ".join(found))
    probes = metrics["val"].get("uses_labels", {})
    if probes:
        found = [f"{name} {probes[measure]:.1%}" for measure, name in SHOWN_PROBES.items()]
        print("labels used, on embeddings: " + ", ".join(found))
    files = [("report", REPORT), ("predictions", PREDICTIONS), ("metrics", METRICS)]
    print("\n" + "\n".join(f"{name:<12} {path}" for name, path in files))
    print(f"all runs     {'make ui' if is_clone(Path.cwd()) else command_name() + ' runs'}")
    if not labeled:
        show_next()


def show_next() -> None:
    """Prints what a person can do with the groups."""
    scan = command_name()
    steps = {
        "review": "a page in the browser: look, name, correct, check",
        "sort FOLDER": "copies of the photos, a folder for each group",
        'edit name 1 "my dog"': "names and corrections; nothing is learned again",
        "edit suggested": "takes the names that have a question mark",
        "predict PHOTOS": "the groups of other photos",
    }
    for number, (words, said) in enumerate(steps.items()):
        print(f"{'' if number else chr(10) + 'next':<{12 + (not number)}} {scan + ' ' + words:<28} {said}")


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
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    with alive("show"):
        from pipeline.groups.apply import Grouping, read_predictions
        from pipeline.groups.suggestions import suggested_names
        from pipeline.report.words import range_of, states_of, what_to_try, why
        from pipeline.review.checks import promised

        grouping = Grouping()
        rows = read_predictions(grouping).select(["group", "state"]).drop_null()
        groups, states = rows["group"].to_pylist(), rows["state"].to_pylist()
        verdict, number = load_json(VERDICT), load_json(NUMBER)
        counts, pairs = Counter(groups), Counter(zip(groups, states, strict=True))
        words, suggested = grouping.words(verdict), suggested_names(grouping)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    named = bool(suggested) or any(grouping.name(group) for group in counts)
    left = ("name", "verdict")
    columns = ["group", *(["name"] if named else []), "images", "share", "verdict"]
    for column in (*columns, *(state for state, _ in states_of(verdict))):
        table.add_column(column, justify="left" if column in left else "right")
    for group, count in counts.most_common(LISTED):
        said = grouping.name(group) or (f"{suggested[group]}?" if group in suggested else "")
        name = [escape(said)] if named else []
        by_state = [f"{pairs[group, state]:,}" for state, _ in states_of(verdict)]
        table.add_row(str(group), *name, f"{count:,}", f"{count / len(groups):.1%}", words[group], *by_state)
    print(f"{range_of(number)}; verdict: {verdict['word'].upper()}\n")
    Console(highlight=False).print(table)
    if len(counts) > LISTED:
        print(f"and {len(counts) - LISTED} more")
    print(f"\n{why(verdict)}" + (f"\nto try: {tried}" if (tried := what_to_try(verdict, number)) else ""))
    if proved := promised(grouping):
        print(f"checked by you: {proved}")
