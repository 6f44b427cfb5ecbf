"""memdist: train, search and compare conditional image-to-image models, on one machine or on a cluster."""

__version__ = "0.1.0"
