"""A flow is one command from beginning to end: what a notebook calls, and the command line too.

Contents: `study`, `detect`, `bench`, `comparison`, `explain`, `check`, one file each; `options` is
what their options share, `alignment` says whether a picture shows what its caption names.
"""
