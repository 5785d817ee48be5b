"""How good a network is: benchmarks, their protocols and metrics, and the results they give."""
