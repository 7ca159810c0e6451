"""Attention AT and iAT: the released iAT turns the sign, and the clean loss counts twice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attlas.catalog.released import Released

__all__ = ["RELEASED"]

REPOSITORY, COMMIT = "shunk031/attention-meets-perturbation", "d40a5ca92ca5c85470a70edcbd968186bb50f9b0"
SENTENCES, TOKENS, WORDS, EPS = 32, 12, 50, 1.0
COMPARED = (
    "Both released files were run, AllenNLP's base classes replaced by stand-ins, on 6 random classifiers "
    "and batches with the weights copied: loss and all gradients of AttentionTraining(AT(eps), "
    "official=True) and of AttentionTraining(IAT(eps, official=True), official=True) equal to 1e-6."
)


def _drawn(seed: int) -> tuple[Any, Any, Any]:
    """A small untrained classifier, sentences of 6 to 12 tokens, and labels."""
    import torch

    from attlas.models.attention_classifier import AttentionClassifier, Sentences

    torch.manual_seed(seed)
    model = AttentionClassifier(WORDS, 1, width=16, hidden=16).double()
    lengths = torch.randint(TOKENS // 2, TOKENS + 1, (SENTENCES, 1))
    inputs = Sentences(torch.randint(0, WORDS, (SENTENCES, TOKENS)), torch.arange(TOKENS) < lengths)
    return model, inputs, torch.randint(0, 2, (SENTENCES,))


def directions(seed: int) -> Mapping[str, float]:
    """How each perturbation of norm eps changes the loss, and its cosine with AT's."""
    import torch

    from attlas.train.attention_at import AT, IAT, Perturbation, answer_loss

    model, inputs, labels = _drawn(seed)
    encoded = model.encode(inputs)
    scores = model.scores(encoded)
    start = torch.zeros_like(scores).requires_grad_()
    clean = answer_loss(model.answer(encoded, scores + start), labels)
    (gradient,) = torch.autograd.grad(clean, start, retain_graph=True)
    straight = AT(EPS)(gradient, scores, inputs.valid)
    perturbations: dict[str, Perturbation] = {
        "AT": AT(EPS),
        "iAT, formula": IAT(EPS, direction_norm="none"),
        "iAT, file": IAT(EPS, official=True),
    }
    found = {}
    for name, perturbation in perturbations.items():
        step = perturbation(gradient, scores, inputs.valid)
        step = EPS * step / step.norm(dim=-1, keepdim=True)
        moved = answer_loss(model.answer(encoded, scores + step), labels)
        found[f"change of the loss, {name}"] = (moved - clean).item()
        found[f"cosine with AT, {name}"] = ((step * straight).sum(-1) / EPS**2).mean().item()
    return found


def counted(seed: int) -> Mapping[str, float]:
    """The weight of the clean loss in the gradient, by least squares on both losses' gradients."""
    import torch

    from attlas.train.attention_at import AT, AttentionTraining

    model, inputs, labels = _drawn(seed)

    def gradient(objective: AttentionTraining) -> torch.Tensor:
        model.zero_grad()
        objective(model, (inputs, labels)).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    clean = gradient(AttentionTraining(AT(EPS), weight=0.0))
    parts = torch.stack([clean, gradient(AttentionTraining(AT(EPS))) - clean], 1)
    found = {}
    for name, official in {"formula": False, "file": True}.items():
        whole = gradient(AttentionTraining(AT(EPS), official=official))
        solved = torch.linalg.lstsq(parts, whole[:, None]).solution.flatten()
        found[f"weight of the clean loss, {name}"] = solved[0].item()
        found[f"weight of the perturbed loss, {name}"] = solved[1].item()
    return found


RELEASED = (
    Released(
        system="attention_at",
        point="iAT is AT with the sign turned",
        repository=REPOSITORY,
        file="amep/modules/attention_layer/bc/advt.py",
        function="TanhBCAttentioniAT._advt_step",
        commit=COMMIT,
        paper=(
            "The perturbation is a sum over differences between the attention scores of the words of one "
            "sentence, weighted so that the loss rises most."
        ),
        release=(
            "`attn_diff` holds differences between the sentences of the batch, word by word. They enter "
            "times `attn_d_var`, which is zero and stays so: they drop out. The step is "
            "normalize(-gradient), along which the loss falls. `TanhBCAttentionAT` in the same file steps "
            "along the gradient, as the paper does."
        ),
        consequence=(
            "Networks trained with this class see, beside the clean loss, an easier one, and no direction "
            "that depends on differences within a sentence."
        ),
        switch="`IAT(eps, official=True)` is the file, `IAT(eps, direction_norm=...)` the formula.",
        figures=directions,
        shown=(
            f"On untrained classifiers and {SENTENCES} random sentences, a step of norm {EPS:g} changes the "
            "loss by {change of the loss, AT:+.4f} with AT, by {change of the loss, iAT, formula:+.4f} with "
            "iAT (differences as they are, scaled to the same norm) and by {change of the loss, iAT, "
            "file:+.4f} with the file's iAT; their cosines with AT are 1, {cosine with AT, iAT, formula:.3f} "
            "and {cosine with AT, iAT, file:.3f}."
        ),
        compared=COMPARED,
    ),
    Released(
        system="attention_at",
        point="The clean loss counts twice",
        repository=REPOSITORY,
        file="amep/models/bc/at_advt.py",
        function="BCAttentionATModel.forward",
        commit=COMMIT,
        paper="The loss is that of the clean scores plus lambda times that of the perturbed ones.",
        release=(
            "`forward` itself calls `loss_adv_first.backward()`, at a perturbation of zero, to get the "
            "gradient in the scores. That leaves the clean loss's gradient in all parameters, and AllenNLP's "
            "trainer, which zeroes gradients before `forward` and not behind it, adds the others to it."
        ),
        consequence="The perturbed loss has half of the weight that lambda says.",
        switch="`AttentionTraining(..., official=True)` counts so, the default counts once.",
        figures=counted,
        shown=(
            "At lambda = 1 the gradient is {weight of the clean loss, file:.2f} times that of the clean loss "
            "plus {weight of the perturbed loss, file:.2f} times that of the perturbed one; by the formula "
            "{weight of the clean loss, formula:.2f} and {weight of the perturbed loss, formula:.2f}."
        ),
        compared=COMPARED,
    ),
)
