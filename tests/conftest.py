"""Fixtures that many tests share."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: no test may reach for the network
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two test processes with two threads each wait for each other

import torch

torch.set_num_threads(1)
