"""Text and vectors: collections, pairs, what they share, and the studies that put them together."""
