"""KG-R3's claim: reading a retrieved subgraph predicts links better, and best with the graph as its mask."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from attlas.catalog.claim import Claim, Step, Values, Verdict, remember, spread

if TYPE_CHECKING:
    from torch import Tensor, nn

    from attlas.models.kg_r3 import Context, Reading
    from attlas.tasks.knowledge_graphs import KnowledgeGraph

__all__ = ["CLAIM", "judge", "measure"]

MASKED, FULL, NEAR, ALONE = "graph mask", "full attention", "one hop", "question only"
ARMS = (MASKED, FULL, NEAR, ALONE)
DATA, LONG_DATA = "nations", "umls"
EDGES, FANOUT = 20, 10
WIDTH, HEADS, INNER, LAYERS = 64, 4, 128, 2
DROP, RATE, BATCH = 0.2, 3e-3, 128
EPOCHS, LONG_EPOCHS = 7, 15
SETTINGS = {
    "data": f"{DATA} of pykeen ({LONG_DATA} with --long), both directions, filtered ranks, ties shared",
    "contexts": f"at most {EDGES} edges of the training graph without the one asked for, drawn once; "
    f"breadth first with fanout {FANOUT}, or one hop; question only: the source alone",
    "model": f"width {WIDTH}, {HEADS} heads, {LAYERS} layers in each stack, embeddings dropped by {DROP}",
    "training": f"{EPOCHS} epochs of batches of {BATCH} for every arm ({LONG_EPOCHS} with --long), AdamW",
}


class Asked(NamedTuple):
    """Questions (q, 3) with the context of each and who sees whom in it."""

    questions: Tensor
    contexts: list[Context]
    pairs: list[Tensor]

    def batch(self, chosen: Sequence[int], entities: int) -> Reading:
        """Some of them, ragged."""
        from attlas.models.kg_r3 import gather_contexts

        contexts, pairs = [self.contexts[at] for at in chosen], [self.pairs[at] for at in chosen]
        return gather_contexts(contexts, pairs, self.questions[list(chosen), 1], entities)


def asked(arm: str, data: KnowledgeGraph, triples: Tensor, seed: int, *, hidden: bool) -> Asked:
    """Questions about triples with their contexts. hidden: the triples are training ones, not to be seen."""
    import numpy as np

    from attlas.graph.retrieve import Incidence
    from attlas.models.kg_r3 import every_pair, graph_pairs, triple_tokens

    graph, questions, generator = (
        Incidence(data.graph()),
        data.questions(triples),
        np.random.default_rng(seed),
    )
    contexts = []
    for at, source in enumerate(questions[:, 0].tolist()):
        # Training triples are edges in their own order, each of them once.
        without = (at % len(triples),) if hidden else ()
        if arm == ALONE:
            edges = questions.new_zeros(0)
        elif arm == NEAR:
            edges = graph.one_hop(source, EDGES, generator=generator, without=without)
        else:
            edges = graph.breadth_first(source, EDGES, generator=generator, fanout=FANOUT, without=without)
        contexts.append(triple_tokens(data.train[edges], source))
    mask = every_pair if arm == FULL else graph_pairs
    return Asked(questions, contexts, [mask(context) for context in contexts])


def network(data: KnowledgeGraph, seed: int) -> nn.Module:
    """The reader: the same parameters in every arm."""
    import torch

    from attlas.models.kg_r3 import Reader

    torch.manual_seed(seed)
    return Reader(
        len(data.entities), 2 * len(data.relations), width=WIDTH, heads=HEADS, inner=INNER, layers=LAYERS,
        dropout=0.0, drop=DROP,
    )  # fmt: skip


def trained(arm: str, seed: int, long: bool, step: Step) -> Values:
    """Filtered MRR and hits@1 on the test triples, both directions."""
    import torch
    from torch.nn import functional

    from attlas.tasks.knowledge_graphs import knowledge_graph
    from attlas.tasks.ranking import filtered_ranks, rank_summary
    from attlas.train import Recipe, fit

    data = knowledge_graph(LONG_DATA if long else DATA)
    count = len(data.entities)
    training = asked(arm, data, data.train, seed, hidden=True)

    def batches() -> Iterator[tuple[Reading, Tensor]]:
        generator = torch.Generator().manual_seed(seed)
        while True:
            for chosen in torch.randperm(len(training.contexts), generator=generator).split(BATCH):
                yield training.batch(chosen.tolist(), count), training.questions[chosen, 2]

    def loss(model: nn.Module, batch: tuple[Reading, Tensor]) -> Tensor:
        return functional.cross_entropy(model(batch[0]), batch[1])

    steps = (LONG_EPOCHS if long else EPOCHS) * -(-len(training.contexts) // BATCH)
    net = network(data, seed)
    recipe = Recipe(steps, RATE, warm_up=max(1, steps // 10), weight_decay=0.0)
    fit(net, batches(), loss, recipe, step=step)
    tested = asked(arm, data, data.test, seed + 1, hidden=False)
    places = torch.arange(len(tested.contexts)).split(2 * BATCH)
    with torch.no_grad():
        scores = torch.cat([net(tested.batch(some.tolist(), count)) for some in places])
    ranks = filtered_ranks(scores, tested.questions[:, 2], data.answers(tested.questions))
    found = rank_summary(ranks)
    return {f"{name}, {arm}": found[name] for name in ("MRR", "hits@1")}


def measure(seed: int, *, long: bool, folder: Path, step: Step) -> Values:
    """Every arm, trained alike."""
    found: dict[str, float] = {}
    for arm in ARMS:

        def say(text: str, arm: str = arm) -> None:
            step(f"{arm}: {text}")

        found |= remember(folder, arm.replace(" ", "-"), partial(trained, arm, seed, long, say))
    return found


def judge(runs: Sequence[Values]) -> Verdict:
    """The rule of the claim, on the means over the seeds."""
    table = spread(runs)
    mrr = {arm: table[f"MRR, {arm}"] for arm in ARMS}
    measured = _told(table)
    wanted = [(MASKED, FULL), (FULL, ALONE), (MASKED, ALONE)]

    def gain(better: str, worse: str) -> float:
        return mrr[better]["mean"] - mrr[worse]["mean"]

    def apart(one: str, other: str) -> float:
        return max(mrr[one]["sd"], mrr[other]["sd"])

    against = [f"{one} below {other}" for one, other in wanted if -gain(one, other) > apart(one, other)]
    if against:
        return Verdict("does not hold", f"{measured} {'; '.join(against)}.")
    close = [f"{one} over {other}" for one, other in wanted if gain(one, other) <= apart(one, other)]
    if close:
        return Verdict("not shown at this scale", f"{measured} Within the spread: {'; '.join(close)}.")
    return Verdict("holds", measured)


def _told(table: Mapping[str, Mapping[str, float]]) -> str:
    def row(what: str) -> str:
        cells = [(arm, table[f"{what}, {arm}"]) for arm in ARMS]
        return ", ".join(f"{arm} {cell['mean']:.3f} ± {cell['sd']:.3f}" for arm, cell in cells)

    return f"Filtered MRR: {row('MRR')}. Hits@1: {row('hits@1')}."


CLAIM = Claim(
    says=(
        "A transformer that reads a retrieved subgraph predicts links better than the question's embeddings "
        "alone, and a mask by the subgraph's triples reads better than full attention."
    ),
    rule=(
        "Filtered MRR on test triples in both directions, means over the seeds; a difference counts beyond "
        f"the larger spread of the two arms. It holds if '{MASKED}' is above '{FULL}' and both are above "
        f"'{ALONE}', with contexts from breadth-first search; it does not hold if one of these differences "
        f"counts the other way; within the spread nothing is shown. '{NEAR}' (graph mask) is told and not "
        f"judged."
    ),
    settings=SETTINGS,
    measure=measure,
    judge=judge,
    minutes=5.0,
)
