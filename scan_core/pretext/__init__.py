"""Pretext tasks: features without labels, a loop each."""
