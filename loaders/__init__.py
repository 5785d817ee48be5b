"""What turns files into batches: RecordIO, sample order, decoding pipelines, verification pairs, synthetic faces.

Loaders know torch and image files; they never hear of losses, teachers or process groups. Rank, world size, device and
seed come in as arguments.
"""
