"""The store as a network sees it."""
