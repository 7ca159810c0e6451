"""How well nodes are told: scores by scikit-learn, and what is reached without messages."""

import warnings

import numpy as np
import torch
from torch import Tensor

from attlas.train.node_model import NodeInputs
from attlas.train.node_training import LabelledNodes

__all__ = ["baselines", "confusion", "scores"]

SPLITS = ("train", "valid", "test")


def scores(labels: LabelledNodes, out: Tensor) -> dict[str, dict[str, float] | None]:
    """Scores by split, None where it has no nodes.

    out: (n, classes) probabilities, or (n,) targets. Classes: accuracy, macro_f1 (mean F1 over the classes
    that are there or told), cross_entropy in nats. Targets: mae, rmse, r2 (None below two nodes).
    """
    found: dict[str, dict[str, float] | None] = {}
    for place, name in enumerate(SPLITS):
        nodes, wanted = labels.of(place)
        found[name] = _scores(wanted.numpy(), out[nodes].numpy()) if len(nodes) else None
    return found


def _scores(wanted: np.ndarray, out: np.ndarray) -> dict[str, float]:
    from sklearn import metrics

    if out.ndim == 2:
        told = out.argmax(1)
        return {
            "accuracy": float(metrics.accuracy_score(wanted, told)),
            "macro_f1": float(metrics.f1_score(wanted, told, average="macro")),
            "cross_entropy": float(metrics.log_loss(wanted, out, labels=np.arange(out.shape[1]))),
        }
    spread = {"r2": float(metrics.r2_score(wanted, out))} if len(wanted) > 1 else {}
    return {
        "mae": float(metrics.mean_absolute_error(wanted, out)),
        "rmse": float(metrics.root_mean_squared_error(wanted, out)),
        **spread,
    }


def confusion(labels: LabelledNodes, probabilities: Tensor) -> list[list[int]]:
    """Test nodes by their class (row) and the class that they were told to have (column)."""
    from sklearn.metrics import confusion_matrix

    nodes, wanted = labels.of(2)
    told = probabilities[nodes].argmax(1)
    every = list(range(probabilities.shape[1]))
    found: list[list[int]] = confusion_matrix(wanted.numpy(), told.numpy(), labels=every).tolist()
    return found


def baselines(inputs: NodeInputs, labels: LabelledNodes, classes: int) -> dict[str, dict[str, float] | None]:
    """Test scores without messages: "constant" (the commonest class, the mean) and "linear".

    linear: logistic or ridge regression of the same features and encodings, each scaled, no messages.
    """
    from sklearn.dummy import DummyClassifier, DummyRegressor
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    parts = [inputs.x] + ([] if inputs.extra is None else [inputs.extra])
    rows = torch.cat(parts, 1).double().numpy()
    (trained, known), (tested, wanted) = labels.of(0), labels.of(2)
    # As arrays: numpy takes a tensor of one number for that number, and gives a row instead of a table.
    seen, asked = trained.numpy(), tested.numpy()
    if classes:
        models = {"constant": DummyClassifier(), "linear": LogisticRegression(max_iter=300)}
    else:
        models = {"constant": DummyRegressor(), "linear": Ridge()}
    found: dict[str, dict[str, float] | None] = {}
    for name, model in models.items():
        fitted = make_pipeline(StandardScaler(), model)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it need not converge to be told
            fitted.fit(rows[seen], known.numpy())
        if not classes:
            found[name] = _scores(wanted.numpy(), fitted.predict(rows[asked]))
            continue
        out = np.zeros((len(asked), classes))
        out[:, fitted[-1].classes_] = fitted.predict_proba(rows[asked])
        found[name] = _scores(wanted.numpy(), out)
    return found
