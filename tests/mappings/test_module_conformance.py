"""One of PyTorch's own samples of each kind of module; `benchmarks/modules.py` takes all of them."""

import pytest
from module_conformance import MODULES, Outcome, check, samples

# Those of whom the tables of mappings have no row made from them, and one of every kind of sample.
CHOSEN = {
    "AdaptiveMaxPool3d": 1,
    "AvgPool2d": 0,
    "BatchNorm1d": 4,
    "Bilinear": 2,
    "CircularPad3d": 2,
    "GRUCell": 1,
    "InstanceNorm1d": 2,
    "LazyConvTranspose2d": 1,
    "LPPool1d": 2,
    "LSTM": 29,
    "LSTMCell": 1,
    "MaxPool3d": 3,
    "MultiheadAttention": 0,
    "PReLU": 0,
    "RMSNorm": 5,
    "Softmin": 2,
    "TransformerEncoder": 20,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CHOSEN)
def test_sample_is_right_in_every_format(name):
    assert check(samples(name)[CHOSEN[name]], files=True) == Outcome("right")


@pytest.mark.slow
def test_projected_lstm_is_refused_for_onnx_only():
    outcome = check(samples("LSTM")[31])
    assert outcome.status == "refused"
    assert outcome.reason.startswith("ONNX cannot express an LSTM with projections")


def test_nothing_but_losses_and_random_pools_is_left_out():
    from torch.testing._internal.common_modules import module_db

    left_out = {info.name.removeprefix("nn.") for info in module_db} - MODULES.keys()
    assert all(name.endswith("Loss") or name.startswith("FractionalMaxPool") for name in left_out)
    assert len(MODULES) >= 91
