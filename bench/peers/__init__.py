"""What others do, written by us from their descriptions, to be measured beside ours in the same run."""
