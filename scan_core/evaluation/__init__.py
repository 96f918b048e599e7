"""Scores of clusters, with labels and without."""
