"""All workers in one matrix: the algorithms as their papers write them, row i is worker i.

Float64, no communicator, no buckets' buffers, nothing shared with the code under test but the
compressor, which is called with the same keys.
"""

import numpy as np


def compress(compressor, Z, t, seed, bucket):
    rows = [
        compressor.decode(compressor.encode(z.astype(np.float32), (seed, t, i, bucket)))
        for i, z in enumerate(Z)
    ]
    return np.array(rows, np.float64)


class Allreduce:
    """x <- x - eta mean_i C(g_i)."""

    def __init__(self, X, W, compressor, **options):
        self.C = compressor

    def step(self, X, G, eta, t, seed, bucket):
        mean = compress(self.C, G, t, seed, bucket).mean(axis=0)
        return X - eta * mean


class DPsgd:
    """X <- W X - eta G."""

    def __init__(self, X, W, compressor, **options):
        self.W = W

    def step(self, X, G, eta, t, seed, bucket):
        return self.W @ X - eta * G


class EcdPsgd:
    """Tang et al. 2018, Algorithm 2, and our two changes."""

    def __init__(self, X, W, compressor, published=False, horizon=10):
        self.W, self.C, self.Xt = W, compressor, X.copy()
        self.published, self.horizon = published, horizon

    def step(self, X, G, eta, t, seed, bucket):
        X_new = self.W @ self.Xt - eta * G
        s = t if self.published else min(t, self.horizon)
        Z = (1 - s / 2) * X + (s / 2) * X_new
        if self.published:
            C = compress(self.C, Z, t, seed, bucket)
            self.Xt = (1 - 2 / s) * self.Xt + (2 / s) * C
        else:
            self.Xt = self.Xt + (2 / s) * compress(self.C, Z - self.Xt, t, seed, bucket)
        return X_new


TWINS = {"allreduce": Allreduce, "d-psgd": DPsgd, "ecd-psgd": EcdPsgd}
