"""Rows of Fourier transforms."""

import torch

from cases.common import IMAGE, last, spread
from converter.plan.registry import find_operator

SPECTRA = {
    "singular values": (lambda x: (torch.linalg.svdvals(x), torch.linalg.svd(last(x))[1]), IMAGE),
    "norms and ranks by singular values": (
        lambda x: (
            torch.linalg.matrix_norm(x[0], "nuc"),
            torch.linalg.matrix_norm(x[0], 2),
            torch.linalg.cond(spread(x[0], 5)),
            torch.linalg.matrix_rank(x[0, :, :, :3] @ x[0, :, :, :3].mT),
        ),
        IMAGE,
    ),
    "eigenvalues, of the triangle that is read": (
        lambda x: (torch.linalg.eigvalsh(spread(x, 5)), torch.linalg.eigvalsh(spread(last(x), 5), UPLO="U")),
        IMAGE,
    ),
    "pseudo-inverse, singular values left out": (
        lambda x: (
            torch.linalg.pinv(x),
            torch.linalg.pinv(last(x), rtol=0.3),
            torch.pinverse(x, 0.2),
            torch.linalg.pinv(spread(x, 5), hermitian=True),
        ),
        IMAGE,
    ),
    "orthogonal and triangular": (
        lambda x: (
            *torch.linalg.qr(x),
            *torch.linalg.qr(last(x).mT, "complete"),
            torch.linalg.qr(x, "r")[1],
            *((torch.qr(x, some=False)[0],) if find_operator("aten::qr") else ()),
        ),
        IMAGE,
    ),
    "tensors inverted and solved": (
        lambda x: (
            torch.linalg.tensorinv(spread(x, 8)[0, 0].reshape(2, 4, 8), 2),
            torch.linalg.tensorsolve(spread(x, 8)[0, 0].reshape(8, 2, 4), x[0, 0, 0]),
        ),
        IMAGE,
    ),
}
