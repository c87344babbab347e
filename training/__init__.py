"""Training and measuring, imported as `diffad_training`: what turns images into pipelines; the scripts are launched by path."""
