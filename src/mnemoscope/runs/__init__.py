"""A run is a folder of tables, written unit by unit and readable at any moment.

Contents: `tables` (every column), `manifest` (what was asked), `folder` (reading and writing),
`older` (folders of earlier schemas), `execute` (units of work, in order, resumable).
"""
