"""The commands of ``scan``, one module for each; ``app`` puts them together."""
