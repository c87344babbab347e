"""Whether production still is what the model was calibrated on: tests that may be read after every part, without torch."""
