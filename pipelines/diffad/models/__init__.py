"""The networks and statistics that a pipeline is made of, each a ModelMixin with all that was fitted in its buffers."""
