"""Tensors that are nearly equal, NaN where NaN is expected."""

import torch


NAN = float("nan")


def assert_near(actual, expected, tolerance=1e-5):
    expected = torch.as_tensor(expected, dtype=actual.dtype)
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance, equal_nan=True)
