"""Text to vectors through a frozen encoder, each text once: which encoder, the cache on disk, the batches."""
