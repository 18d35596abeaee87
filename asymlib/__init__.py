"""asymlib: why projection heads trained on raw dot products blow up, and what repairs them.

The modules follow the data from left to right; none imports one to its right:
datasets, encode, heads, losses, systems, train, magnitude, evaluate, results, plots, batch.
"""

__version__ = "0.1.0"
