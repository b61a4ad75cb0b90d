"""Guarding scores a prompt on the first step of a live pipeline and acts when it is suspicious.

Contents: `calibration` (what counts as suspicious), `live` (any pipeline of diffusers), `guider`
(pipelines that take a guider), `record` (what a guard leaves of each image).
"""
