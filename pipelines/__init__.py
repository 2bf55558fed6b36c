"""How a point on a trajectory is denoised: any diffusers pipeline, no per-model code."""
