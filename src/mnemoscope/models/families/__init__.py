"""Families of pipelines, one a file; see `mnemoscope.models.family` for how they are found."""
