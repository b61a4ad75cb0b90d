"""A flow is one command from beginning to end: what a notebook calls, and the command line too.

Contents: `study`, `detect`, `bench`, `explain`, `check`, one file each; `options` is what their
options share.
"""
