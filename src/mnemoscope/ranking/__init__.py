"""The ranking package holds scores of detectors against what sampling showed."""
