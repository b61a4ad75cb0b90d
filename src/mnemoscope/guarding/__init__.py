"""Guarding scores a prompt on the first step of a live pipeline and acts when it is suspicious.

Contents: `calibration` (above which score), `first_step` (the score), `rule` (what is
suspicious, and what is done), `record` (what is left of each image), `live` (any pipeline of
diffusers), `guider` (pipelines that take a guider).
"""
