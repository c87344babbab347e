"""The web app."""

import os

# Read by gradio when it is imported, which only modules of this folder do: nothing is reported to anyone.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
