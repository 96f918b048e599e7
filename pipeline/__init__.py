"""How any stage runs: parameters, artifacts, resuming, tracking, progress, the command line and the report."""
