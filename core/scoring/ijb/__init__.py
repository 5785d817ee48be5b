"""IJB-B and IJB-C, 1:1 and 1:N, from images to rates."""
