"""Sampling carries noise to an image along one loop, which anyone may watch and few may steer.

Contents: `recipe` (how to sample), `condition` (what a network is conditioned on), `hooks` (where
an intervention acts), `chain` (several interventions in one), `loop` (the only sampling loop of the
package), `exact` (the loop on the predictor that knows the image), `probes` (calls beside the
path), `attention` (what cross-attention looks at), `attach` (the same calls from somebody else's
live pipeline).
"""
