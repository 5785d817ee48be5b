"""From record ids to batches on a device: order, decoding (DALI or CPU), prefetch, buffers."""
