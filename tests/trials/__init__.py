"""Trials of reliability: damage done on purpose, many times, and what held: `make trials`"""
