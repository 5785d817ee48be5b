"""Trials of reliability: damage done on purpose, many times, and what held: `python -m adadistill.bench reliability`"""
