"""The core holds what everything else is arithmetic on: levels, predictions, sampling, the record.

It knows nothing of models, files, prompts or analyses.

Contents: `noise` (levels), `predict` (raw outputs to estimates, guidance), `sample` (the sampling
loop), `record` (what was seen), `gram` (its inner products), `probes` (calls beside the path).
"""
