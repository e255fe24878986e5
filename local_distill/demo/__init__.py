"""The demo: a real pair of models without a model hub (pair.py), and the two runs on it (demo.yaml, demo_lora.yaml)."""
