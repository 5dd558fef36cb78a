"""From a folder of pictures to batches: scan, captions, buckets, batches."""
