"""The method: margin heads, the geometry-aware margin, class centres, and the losses that they make."""
