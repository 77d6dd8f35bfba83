"""The model: a decoder-only transformer, its sizes, its initialisation and its exact costs."""
