"""The linear models of scikit-learn that are usual on wide data, by the names in `contenders`."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.wide_data.contenders import LEARNERS
from bench.wide_data.prepared import Prepared

ITERATIONS = 1000


@dataclass(frozen=True)
class Fitted:
    """Accuracy on the test part, 0 ... 1; weights that are not zero; whether the solver came to its end."""

    accuracy: float
    weights: int
    converged: bool


def learner(name: str, rate: float, seed: int) -> Any:
    """An untrained model of scikit-learn.

    Args:
        name: one of `LEARNERS`.
        rate: C, the inverse of the penalty; of naive Bayes alpha, the smoothing.
        seed: seed of solvers that draw at random.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.naive_bayes import ComplementNB
    from sklearn.svm import LinearSVC

    l1, l2, svm, bayes = LEARNERS
    if name == l1:
        # One model a class: liblinear is by far the fastest with L1, and knows two classes.
        one = LogisticRegression(
            C=rate, l1_ratio=1, solver="liblinear", max_iter=ITERATIONS, random_state=seed
        )
        return OneVsRestClassifier(one)
    if name == l2:
        return LogisticRegression(C=rate, max_iter=ITERATIONS)
    if name == svm:
        return LinearSVC(C=rate, max_iter=ITERATIONS, random_state=seed)
    assert name == bayes
    return ComplementNB(alpha=rate)


def fit(name: str, rate: float, data: Prepared, seed: int) -> tuple[Any, bool]:
    """Train on the training part; returns the model, and whether the solver came to its end."""
    from sklearn.exceptions import ConvergenceWarning

    model = learner(name, rate, seed)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(data.train_x, data.train_y)
    return model, not any(issubclass(one.category, ConvergenceWarning) for one in caught)


def judge(model: Any, data: Prepared, converged: bool) -> Fitted:
    """Test a trained model on the test part."""
    parts = getattr(model, "estimators_", [model])
    weights = [part.coef_ if hasattr(part, "coef_") else part.feature_log_prob_ for part in parts]
    return Fitted(
        float(model.score(data.test_x, data.test_y)),
        sum(int(np.count_nonzero(w)) for w in weights),
        converged,
    )
