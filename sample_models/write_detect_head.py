"""Writes `detect_head.safetensors`: untrained weights, with batch norm statistics that keep the signal alive.

python -m sample_models.write_detect_head
"""

from pathlib import Path

import torch
from safetensors.torch import save_model

from sample_models.calibration import calibrate
from sample_models.detect_head import build

if __name__ == "__main__":
    torch.manual_seed(0)
    torch.set_num_threads(1)
    save_model(calibrate(build(), torch.rand(1, 3, 64, 96)), str(Path(__file__).with_name("detect_head.safetensors")))
