"""The ranking package holds detectors and mitigations against what sampling showed."""
