"""Pieces of evidence, one file each."""
