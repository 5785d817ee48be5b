"""Trials of reliability: damage done on purpose, many times, and what held. Run by `adadistill bench reliability`."""
