"""The diffusion process: its reverse chain, the denoiser, training losses."""
