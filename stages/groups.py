"""groups: how many groups the images fall into."""

import numpy as np

from pipeline import artifacts
from pipeline.command import command, run
from pipeline.environment import use_threads
from pipeline.progress import StepProgress, say
from pipeline.stage import Stage


def groups(stage: Stage) -> None:
    """Hand on cluster.num_clusters, or estimate it; write data/groups.json."""
    number = stage.params.cluster.num_clusters
    if number != "auto":
        artifacts.save_json(stage.out(artifacts.GROUPS), {"given": True, "number": number})
        return
    from scan_core.clustering.number import estimate_number, numbers_to_try

    use_threads()
    train = artifacts.load_array(artifacts.EMBEDDINGS / "train.npy", "float32", (None, None))
    distinct = train[np.unique(artifacts.load_first("train", len(train)))]
    numbers = numbers_to_try(len(distinct))
    with StepProgress("groups", "numbers", len(numbers)) as progress:
        found = estimate_number(distinct, numbers, stage.params.seed, progress.update)
    say(f"groups    {found.number} ({found.low} to {found.high} are plausible)")
    artifacts.save_json(stage.out(artifacts.GROUPS), found.as_json())
    stage.tracker.metrics({"groups": found.number, "groups_low": found.low, "groups_high": found.high})


app = command("groups", groups)

if __name__ == "__main__":
    run(app)
