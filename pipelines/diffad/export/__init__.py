"""A trained model as one graph and a folder that runs without torch."""
