"""The words of texts beside their vectors: BM25, its hybrid with cosines, and one vector that holds both."""
