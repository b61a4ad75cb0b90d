"""A run is a folder of tables, written unit by unit and readable at any moment.

Contents: `tables` (every column), `manifest` (what was asked), `records` (files with a digest),
`parts` (Parquet), `folder` (reading and writing), `verify` (what is whole), `older` (folders of
earlier schemas), `interruption` (signals to end), `execute` (units of work, in order, resumable),
`crew` (units in other processes), `processes` (those of this machine), `actors` (those of a
cluster), `executors` (which one).
"""
