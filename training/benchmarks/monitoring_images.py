def measure_images(*a): return []
