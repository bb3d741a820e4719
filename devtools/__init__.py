"""Developer tools: environment, real ComfyUI host, HTTP client, demo. Never part of the published pack."""
