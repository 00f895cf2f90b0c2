"""A load-balanced site on one machine: the laboratory of network namespaces, and the demo in it."""
