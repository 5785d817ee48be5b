"""What is done to whole datasets: inspect, check, convert, index, split, merge, count."""
