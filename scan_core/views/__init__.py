"""Random views of a batch: SimCLR's, and the paper's strong ones."""
