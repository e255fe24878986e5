"""A real pair of models without a model hub (smollm2.py), and the two runs on it (demo.yaml, demo_lora.yaml)."""
