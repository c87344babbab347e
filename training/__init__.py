"""Training and measuring: what turns images into pipelines. Imported as `diffad_training`; the scripts are launched by path."""
