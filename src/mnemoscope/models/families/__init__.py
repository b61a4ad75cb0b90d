"""Families of models, one file each: how a pipeline is loaded, conditioned, called and decoded."""
