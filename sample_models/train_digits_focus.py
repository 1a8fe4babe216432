"""Trains `digits_focus.pt` and sets aside the images that it is judged by. Some twenty seconds on one core.

python -m sample_models.train_digits_focus
"""

from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from sample_models.digits_focus import DigitsFocus

FOLDER = Path(__file__).parent
EPOCHS = 20
BATCH = 32


def digits() -> tuple[Tensor, Tensor]:
    """scikit-learn's 1797 digits, enlarged to 16x16, values from 0 to 1: images (1797, 1, 16, 16) and labels."""
    bunch = load_digits()
    small = torch.tensor(bunch.images, dtype=torch.float32)[:, None] / 16
    return nn.functional.interpolate(small, size=(16, 16), mode="bilinear"), torch.tensor(bunch.target)


def train(images: Tensor, labels: Tensor) -> DigitsFocus:
    model = DigitsFocus()
    batches = len(images) // BATCH
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.01, total_steps=EPOCHS * batches)
    for _ in range(EPOCHS):
        for chosen in torch.randperm(len(images))[: batches * BATCH].view(batches, BATCH):
            shift = torch.randint(-2, 3, (2,)).tolist()
            loss = nn.functional.cross_entropy(
                model(images[chosen].roll(shift, dims=(2, 3))), labels[chosen], label_smoothing=0.05
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)  # the order of float sums, and so the file, does not depend on the machine's cores
    images, labels = digits()
    kept, held_back = train_test_split(np.arange(len(images)), test_size=0.2, stratify=labels, random_state=0)
    model = train(images[kept], labels[kept])
    with torch.inference_mode():
        right = (model(images[held_back]).argmax(1) == labels[held_back]).sum().item()
    print(f"{right} of {len(held_back)} held-back images right ({right / len(held_back):.1%})")
    torch.save(model, FOLDER / "digits_focus.pt")
    np.savez_compressed(
        FOLDER / "digits_holdback.npz", images=images[held_back].numpy(), labels=labels[held_back].numpy()
    )


if __name__ == "__main__":
    main()
