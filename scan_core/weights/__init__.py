"""Weights that others have published: from a package, from the hub, or from a checkpoint."""
