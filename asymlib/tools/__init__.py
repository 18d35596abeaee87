"""What leaves the repository: export, callback, diagnose, compare and fit, for Sentence Transformers and the shell."""
