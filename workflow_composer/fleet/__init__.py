"""Start, monitor, restart, register and discover vLLM servers on your own GPUs, with or without SLURM."""
