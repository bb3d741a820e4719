"""All that imports the host: only modules in this folder import `comfy` and `folder_paths`.

toy_world.py     MODEL, CLIP and VAE of the embedded Toy World
conditioning.py  captions and images to conditioning and latents
training.py      a MODEL as the trainer's Denoiser, on shared weights
adapters.py      a LORA_MODEL resolved against a MODEL's modules
sampling.py      the host's KSampler
guidance.py      reward guidance inside the host's sampling loop
progress.py      progress bar and interrupt
files.py         where LoRA files live
"""
