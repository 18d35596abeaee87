"""Choosing: the search for the best head on validation alone, and the oracle that says how much room a head has."""
