"""From a defective image to what the part should have looked like: our inpainting, the paper's Algorithm 1, baselines."""
