"""All workers in one matrix: the algorithms as their papers write them, row i is worker i.

Float64, no communicator, no buckets' buffers, nothing shared with the code under test but the
compressor, which is called with the same keys. W(t) is the mixing matrix of the messages of step t.
"""

from collections import defaultdict

import numpy as np

from decentral_kernels import fold_key, reference_integers


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


def int_round(compressor, Z, alpha, t, seed, bucket):
    """Int(alpha z_i) by row, with the oracle's rounding and no clipping."""
    rows = [
        reference_integers.round_to_integers(
            z.astype(np.float32), alpha, fold_key(seed, t, i, bucket), 0, True
        )
        for i, z in enumerate(Z)
    ]
    return np.array(rows, np.float64)


class IntSgd:
    """Mishchenko et al. 2022, algorithm 1, with one alpha for all buckets.

    A twin sees one bucket, and alpha needs the movement of all, so they share a ledger.
    """

    def __init__(self, X, W, compressor, ledger, **options):
        self.C, self.n, self.ledger = compressor, len(X), ledger

    def alpha(self, t, eta):
        """r_k = beta r_{k-1} + (1 - beta) ||x^k - x^{k-1}||^2, from all buckets' movements."""
        beta, eps, r = self.C.beta, self.C.eps, sum(self.ledger.moved[1])
        for k in range(2, t):
            r = beta * r + (1 - beta) * sum(self.ledger.moved[k])
        d = self.ledger.d
        return eta * np.sqrt(d) / np.sqrt(2 * self.n * r + eta**2 * eps**2)

    def mean(self, G, eta, t, seed, bucket):
        """Return (what each row stands for, their mean)."""
        if t == 1:
            return G, G.mean(axis=0)
        alpha = np.float64(np.float32(self.alpha(t, eta)))
        q = int_round(self.C, G, alpha, t, seed, bucket)
        return q / alpha, q.sum(axis=0) / (self.n * alpha)

    def step(self, X, G, eta, t, seed, bucket):
        _, g = self.mean(G, eta, t, seed, bucket)
        self.ledger.moved[t].append(eta**2 * (g @ g))
        return X - eta * g


class IntDiana(IntSgd):
    """The same paper, algorithm 2."""

    def __init__(self, X, W, compressor, ledger, **options):
        super().__init__(X, W, compressor, ledger)
        self.H, self.h = np.zeros_like(X), np.zeros_like(X[0])

    def step(self, X, G, eta, t, seed, bucket):
        U, mean = self.mean(G - self.H, eta, t, seed, bucket)
        self.H = self.H + U
        g = self.h = self.h + mean
        self.ledger.moved[t].append(eta**2 * (g @ g))
        return X - eta * g


class DPsgd:
    """X <- W X - eta G, where the messages X were sent at the end of the step before."""

    def __init__(self, X, W, compressor, **options):
        self.W = W

    def step(self, X, G, eta, t, seed, bucket):
        return self.W(max(1, t - 1)) @ X - eta * G


class DcdPsgd:
    """Tang et al. 2018, Algorithm 1."""

    def __init__(self, X, W, compressor, **options):
        self.W, self.C = W, compressor

    def step(self, X, G, eta, t, seed, bucket):
        Z = self.W(t) @ X - eta * G - X
        return X + compress(self.C, Z, t, seed, bucket)


class EcdPsgd:
    """Tang et al. 2018, Algorithm 2, and our two changes."""

    def __init__(self, X, W, compressor, published=False, horizon=10, **options):
        self.W, self.C, self.Xt = W, compressor, X.copy()
        self.published, self.horizon = published, horizon

    def step(self, X, G, eta, t, seed, bucket):
        X_new = self.W(t) @ self.Xt - eta * G
        s = t if self.published else min(t, self.horizon)
        Z = (1 - s / 2) * X + (s / 2) * X_new
        if self.published:
            C = compress(self.C, Z, t, seed, bucket)
            self.Xt = (1 - 2 / s) * self.Xt + (2 / s) * C
        else:
            self.Xt = self.Xt + (2 / s) * compress(self.C, Z - self.Xt, t, seed, bucket)
        return X_new


def noise(compressor):
    """||C(z) - z||^2 / ||z||^2, on the vector that the code under test takes."""
    z = np.random.default_rng(0).standard_normal((1, 1 << 14)).astype(np.float32)
    (c,) = compress(compressor, z, 0, 0, 0)
    return ((c - z[0]) ** 2).sum() / (z[0].astype(np.float64) ** 2).sum()


class ChocoSgd:
    """Koloskova et al. 2020, Algorithm 1; xh begins where X does, as all rows are equal there."""

    def __init__(self, X, W, compressor, gamma=None, **options):
        eps = noise(compressor)
        self.W, self.C, self.Xh = W, compressor, X.copy()
        self.gamma = 1 / (1 + eps) if gamma is None else gamma
        self.scale = 1 / (1 + eps) if eps >= 1 else 1

    def step(self, X, G, eta, t, seed, bucket):
        X = X - eta * G
        self.Xh = self.Xh + self.scale * compress(self.C, X - self.Xh, t, seed, bucket)
        return X + self.gamma * (self.W(t) @ self.Xh - self.Xh)


class DeepSqueeze:
    """Tang et al. 2019, Algorithm 1."""

    def __init__(self, X, W, compressor, gamma=None, **options):
        eps = noise(compressor)
        self.W, self.C, self.E = W, compressor, np.zeros_like(X)
        self.gamma = 0.5 / (1 + eps) ** 2 if gamma is None else gamma
        self.scale = 1 / (1 + eps) if eps >= 1 else 1

    def step(self, X, G, eta, t, seed, bucket):
        V = X - eta * G + self.E
        C = self.scale * compress(self.C, V, t, seed, bucket)
        self.E = V - C
        return X - eta * G + self.gamma * (self.W(t) @ C - C)


class Sgp:
    """Assran et al. 2019, Algorithm 1; the rows that come and go are z."""

    def __init__(self, X, W, compressor, **options):
        self.P, self.X, self.w = W, X.copy(), np.ones((len(X), 1))

    def step(self, Z, G, eta, t, seed, bucket):
        self.X = self.P(t) @ (self.X - eta * G)
        self.w = self.P(t) @ self.w
        return self.X / self.w


class QgDsgdm:
    """Lin et al. 2021, Algorithm 1, mixing before the step."""

    def __init__(self, X, W, compressor, beta=0.9, **options):
        self.W, self.beta, self.m = W, beta, np.zeros_like(X)

    def step(self, X, G, eta, t, seed, bucket):
        X_new = self.W(max(1, t - 1)) @ X - eta * (G + self.beta * self.m)
        self.m = self.beta * self.m + (1 - self.beta) * (X - X_new) / eta
        return X_new


class CocodSgd:
    """Shen et al. 2019, Algorithm 1, with k = 1, and what was moved compressed."""

    def __init__(self, X, W, compressor, **options):
        self.C, self.xh, self.D = compressor, X[0], None

    def step(self, X, G, eta, t, seed, bucket):
        if self.D is not None:
            self.xh = self.xh + compress(self.C, self.D, t - 1, seed, bucket).mean(axis=0)
        self.D = -eta * G
        return self.xh + self.D


class Ledger:
    """What the buckets of a model have in common: d, and how far each moved in step t."""

    def __init__(self, d):
        self.d, self.moved = d, defaultdict(list)


def allreduce(X, W, compressor, **options):
    return (IntSgd if compressor.summable else Allreduce)(X, W, compressor, **options)


def intdiana(X, W, compressor, **options):
    return (IntDiana if compressor.summable else Allreduce)(X, W, compressor, **options)


TWINS = {
    "allreduce": allreduce,
    "intdiana": intdiana,
    "d-psgd": DPsgd,
    "dcd-psgd": DcdPsgd,
    "ecd-psgd": EcdPsgd,
    "choco-sgd": ChocoSgd,
    "deepsqueeze": DeepSqueeze,
    "sgp": Sgp,
    "qg-dsgdm": QgDsgdm,
    "cocod-sgd": CocodSgd,
}
