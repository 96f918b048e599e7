"""One file for each DVC stage: read artifacts, call the method, write artifacts."""
