"""Settings of the evaluation: the group ``evaluate``."""

from scan_core.settings import Settings, TwoOrMore


class Evaluate(Settings):
    """What the report compares the clusters with."""

    kmeans_runs: TwoOrMore
    pictures: bool  # false: the report, and what goes to MLflow, hold no pictures of the images and no names of files
    probes: bool  # accuracies of a linear model and of nearest neighbors that see labels; they decide nothing
