"""What turns files into batches: RecordIO, sample order, decoding, verification pairs, synthetic faces, teacher caches.

Loaders know torch and files; they never hear of losses, teacher networks or process groups. Rank, world size, device
and seed come in as arguments.
"""
