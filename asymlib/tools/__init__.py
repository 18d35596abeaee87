"""What leaves the repository: export, callback, diagnose, compare, fit. Each works on what Sentence Transformers and the shell use."""
