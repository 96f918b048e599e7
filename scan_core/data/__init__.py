"""A source of images becomes the store: read, decode, find duplicates, split, write."""
