"""Tensors of torch, where it is installed; arrays that show DLPack alone, everywhere."""

import kvquant
import numpy as np
import pytest
from conftest import Window, read_back


class OnlyDlpack:
    """An array of a framework that is not known."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __dlpack__(self, **options: object) -> object:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.array.__dlpack_device__()


def test_what_shows_dlpack_is_enough(artifact: kvquant.Artifact, windows: list[Window]) -> None:
    k, v = windows[0].k[0], windows[0].v[0]
    for a, b in zip(read_back(artifact, k, v), read_back(artifact, OnlyDlpack(k), OnlyDlpack(v))):
        np.testing.assert_array_equal(a, b)


def test_torch_tensors(artifact: kvquant.Artifact, windows: list[Window]) -> None:
    torch = pytest.importorskip("torch")
    k, v = torch.from_numpy(windows[0].k[0]), torch.from_numpy(windows[0].v[0])
    for a, b in zip(read_back(artifact, k, v), read_back(artifact, k.numpy(), v.numpy())):
        np.testing.assert_array_equal(a, b)
    rounded = [x.to(torch.bfloat16) for x in (k, v)]
    for a, b in zip(read_back(artifact, *rounded), read_back(artifact, *(x.float() for x in rounded))):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match="requires a gradient, expected it after .detach"):
        read_back(artifact, k.clone().requires_grad_(), v)
    out = torch.zeros(1, 4, 32)
    sequence = kvquant.Cache(artifact, max_tokens=512, threads=1).open()
    sequence.append(0, k, v)
    assert sequence.attend(0, torch.ones(1, 4, 32), out) is out
    np.testing.assert_array_equal(out.numpy(), sequence.attend(0, np.ones((1, 4, 32), np.float32)))
