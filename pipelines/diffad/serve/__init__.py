"""A model behind HTTP: it computes in a process of its own, which the server watches, restarts and exchanges."""
