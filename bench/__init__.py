"""The measuring harness; what it measured lies in `bench/results/*.jsonl`. Nothing else imports this package."""
