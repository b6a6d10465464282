"""l2-regularized logistic regression in float64: its data, its constants, its minimum."""

from functools import cached_property
from pathlib import Path

import numpy as np
import scipy.optimize
import scipy.sparse
from scipy.special import expit

LIBSVM = {"a5a": 5e-4, "mushrooms": 6e-4, "w8a": 1e-4, "real-sim": 2e-5}  # with the paper's l2
# Sets that come with scikit-learn. With l2 = 1e-3 digits are as badly conditioned as a5a is, and
# take five times as long.
L2 = {"digits": 5e-3, "breast_cancer": 5e-3, **LIBSVM}


class Problem:
    """f(x) = mean over rows of log(1 + exp(-b a^T x)) + l2/2 ||x||^2; A dense or CSR."""

    def __init__(self, A, b, l2):
        self.A, self.b, self.l2 = A, b, l2
        self.m, self.d = A.shape

    def value(self, x):
        return np.logaddexp(0, -self.b * (self.A @ x)).mean() + self.l2 / 2 * (x @ x)

    def gradient(self, x):
        return self.A.T @ (-self.b * expit(-self.b * (self.A @ x))) / self.m + self.l2 * x

    def hessian_product(self, x, v):
        s = expit(self.A @ x)
        return self.A.T @ (s * (1 - s) * (self.A @ v)) / self.m + self.l2 * v

    @cached_property
    def L(self):
        """Smoothness of f: the largest eigenvalue of A^T A / 4m, plus l2."""
        v = np.random.default_rng(0).random(self.d)
        for _ in range(200):
            v = self.A.T @ (self.A @ (v / np.linalg.norm(v)))
        return np.linalg.norm(v) / (4 * self.m) + self.l2

    def batch_L(self, batch):
        """Expected smoothness of a batch; rows have norm 1."""
        if self.m == 1:
            return 0.25 + self.l2
        whole = self.m / (self.m - 1) * (1 - 1 / batch) * self.L
        return whole + (self.m / batch - 1) / (self.m - 1) * (0.25 + self.l2)

    def part(self, rank, size):
        """Return this rank's rows: contiguous, equally many for all."""
        m = self.m // size
        rows = slice(rank * m, (rank + 1) * m)
        return Problem(self.A[rows], self.b[rows], self.l2)

    def minimum(self):
        """Return x*, in float64: Newton's method with conjugate gradients, and a last polish."""
        options = {"maxiter": 20000, "maxcor": 30, "ftol": 1e-15, "gtol": 1e-12, "maxfun": 10**6}
        x = np.zeros(self.d)
        x = scipy.optimize.minimize(
            self.value, x, jac=self.gradient, method="L-BFGS-B", options=options
        ).x
        for _ in range(5):
            H = scipy.sparse.linalg.LinearOperator(
                (self.d, self.d), matvec=lambda v, x=x: self.hessian_product(x, v), dtype=float
            )
            x = x - scipy.sparse.linalg.cg(H, self.gradient(x), rtol=1e-10, maxiter=2000)[0]
        return x


def load(dataset, data_dir):
    """Return rows of norm 1 as float64, dense or CSR, and labels -1 or 1."""
    from sklearn import datasets
    from sklearn.preprocessing import normalize, scale

    if dataset in LIBSVM:
        path = Path(data_dir or ".") / dataset
        path = path if path.exists() else path.with_name(dataset + ".txt")
        if not path.exists():
            raise SystemExit(
                f"there is no {path}: download {dataset} from LibSVM's site, binary data sets, "
                "and name its folder by --data-dir"
            )
        A, label = datasets.load_svmlight_file(str(path))
        A = normalize(A) if A.shape[1] > 2000 else normalize(A).toarray()
        return A, np.where(label == label.max(), 1.0, -1.0)
    A, label = getattr(datasets, "load_" + dataset)(return_X_y=True)
    order = np.argsort(label, kind="stable")  # by class: as different as ranks can be
    A = A if dataset == "digits" else scale(A)
    b = label % 2 if dataset == "digits" else label
    return normalize(A)[order], np.where(b[order] == 1, 1.0, -1.0)
