"""vLLM servers on one's own GPUs: started, watched, restarted, registered, discovered; on SLURM and off it."""
