"""The paper's tables and figures, run as DVC experiments over seeds: ``python -m experiments --help``."""
