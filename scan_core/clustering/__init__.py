"""Neighbors, the SCAN loss and self-labeling: from features to clusters."""
