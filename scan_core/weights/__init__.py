"""Weights that others have published: by name, or from a checkpoint."""
