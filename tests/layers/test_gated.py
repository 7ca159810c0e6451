"""Gated attention at its five places, in every kind and form, against a dense float64 text and Qwen3Next."""

import math

import pytest
import torch

from attlas.attend import L1, Sigmoid
from attlas.layers import (
    Gate,
    GatedAttention,
    LearnedGate,
    SelfAttention,
    fuse_gate,
    gate_for,
    rotary,
    split_gate,
)
from attlas.layers.contract import check_mixer
from attlas.layers.gated import GATE_FORMS, KINDS, PLACES
from attlas.layers.mixers import MixerEntry
from attlas.pattern import Tokens, causal, per_head, window

B, N, C, H, G, E = 2, 7, 24, 4, 2, 6
ACTS = {
    "sigmoid": lambda y, z: y / (1 + torch.exp(-z)),
    "ns-sigmoid": lambda y, z: y * (0.5 + 0.5 / (1 + torch.exp(-z))),
    "2-sigmoid": lambda y, z: y * (1 + torch.tanh(z / 2)),
    "add-silu": lambda y, z: y + z / (1 + torch.exp(-z)),
    "add-identity": lambda y, z: y + z,
}


def inputs() -> torch.Tensor:
    return torch.randn(B, N, C, dtype=torch.float64)


def dense(layer: GatedAttention, x: torch.Tensor) -> torch.Tensor:
    """The layer with loops over heads and tokens and explicit gates; softmax over the earlier tokens."""

    def gate(place: str, y: torch.Tensor, token: torch.Tensor, head: int) -> torch.Tensor:
        if place not in layer.gates:
            return y
        one = layer.gates[place]
        rows, columns = one.size
        z = (one.weight.weight @ token).view(rows, columns)[head if rows > 1 else 0]
        return ACTS[one.form](y, z)

    out = torch.zeros_like(x)
    at = torch.arange(x.shape[1])
    for b in range(x.shape[0]):
        q, k, v = (m.weight @ x[b].T for m in (layer.query, layer.key, layer.value))  # (rows, N)
        found = []
        for h in range(H):
            g = h // (H // G)
            qs = torch.stack([gate("G4", q[h * E : h * E + E, i], x[b, i], h) for i in at])
            ks = torch.stack([gate("G3", k[g * E : g * E + E, i], x[b, i], g) for i in at])
            vs = torch.stack([gate("G2", v[g * E : g * E + E, i], x[b, i], g) for i in at])
            qs, ks = rotary(qs, at), rotary(ks, at)
            rows = []
            for i in at.tolist():
                weight = torch.softmax(ks[: i + 1] @ qs[i] / math.sqrt(E), 0)
                rows.append(gate("G1", weight @ vs[: i + 1], x[b, i], h))
            found.append(torch.stack(rows))
        joined = torch.cat(found, -1) @ layer.out.weight.T
        out[b] = torch.stack([gate("G5", joined[i], x[b, i], 0) for i in at])
    return out


def layer_with(gates: dict[str, dict], **options) -> GatedAttention:
    made = {place: gate_for(place, C, H, kv_heads=G, **how) for place, how in gates.items()}
    return GatedAttention(
        C, H, kv_heads=G, gates=made, pattern=causal(), base=10000.0, **options
    ).double()  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", PLACES)
def test_every_place_and_kind_is_the_formula(place, kind):
    layer, x = layer_with({place: {"kind": kind}}), inputs()
    torch.testing.assert_close(layer(x), dense(layer, x), rtol=1e-7, atol=1e-7)
    plain = SelfAttention(C, H, kv_heads=G, pattern=causal(), base=10000.0).double()
    plain.load_state_dict({k: v for k, v in layer.state_dict().items() if not k.startswith("gates")})
    assert (layer(x) - plain(x)).abs().max() > 1e-3


@pytest.mark.parametrize("form", GATE_FORMS)
def test_every_form_is_the_formula(form):
    layer, x = layer_with({"G1": {"form": form}, "G2": {"form": form, "kind": "headwise"}}), inputs()
    torch.testing.assert_close(layer(x), dense(layer, x), rtol=1e-7, atol=1e-7)


def test_all_places_at_once_in_pieces_and_padded():
    kinds = dict(zip(PLACES, ("elementwise", "headwise", "elementwise", "shared", "headwise"), strict=True))

    def make(setting):
        gates = {
            place: gate_for(place, setting.width, setting.heads, kv_heads=1, kind=kind, form=form)
            for (place, kind), form in zip(kinds.items(), GATE_FORMS, strict=True)
        }
        seen = causal() if setting.causal and not setting.cross else None
        norm, base = torch.nn.RMSNorm, None if setting.cross else 100.0
        return GatedAttention(
            setting.width, setting.heads, kv_heads=1, gates=gates, pattern=seen, norm=norm, base=base
        )

    entry = MixerEntry("all", make, frozenset({"CS", "NC"}), stateful=True, padding=True, why_not="a test")
    assert not check_mixer(entry, checks=("future", "padding", "incremental", "gradient"))


def test_the_gate_is_of_the_token_that_sends_or_receives():
    """Closed at one token: G1 empties that token's output, G2 its messages, and nobody else's output."""
    for place, mine in (("G1", True), ("G2", False)):
        layer, x = layer_with({place: {"kind": "headwise"}}), inputs()
        x[:, :, 0], x[:, 3, 0] = 0.0, 1.0
        with torch.no_grad():
            layer.gates[place].weight.weight.zero_()[:, 0] = -1e4
            layer.value.weight[:, 0] = 0.0
        out, half = layer(x), layer.gates[place].values(x)
        assert half[:, :, 3].max() == 0 and half[:, :, :3].min() == 0.5
        assert (out[:, 3].abs().max() == 0) == mine
        if not mine:
            other = x.clone()
            other[:, 3, 1:] += 1.0
            with torch.no_grad():
                layer.key.weight.zero_()  # so that only the message of token 3 could be seen by others
            torch.testing.assert_close(layer(other)[:, 4:], layer(x)[:, 4:], rtol=1e-12, atol=1e-12)


def test_an_input_independent_gate_is_the_same_everywhere():
    layer, x = layer_with({}), inputs()
    gated = GatedAttention(
        C, H, kv_heads=G, gates={"G1": LearnedGate(H, E, start=0.25)}, pattern=causal(), base=10000.0
    ).double()
    gated.load_state_dict({**layer.state_dict(), "gates.G1.theta": gated.gates["G1"].theta})
    torch.testing.assert_close(gated(x), 0.25 * layer(x))
    assert gated.gates["G1"].values(x).shape == (1, H, 1, E)


@pytest.mark.parametrize(
    ("form", "start", "bias"),
    [
        ("sigmoid", 0.5, False),
        ("sigmoid", 0.9, True),
        ("ns-sigmoid", 0.75, False),
        ("2-sigmoid", 1.0, False),
        ("add-silu", 0.0, False),
        ("add-identity", 0.0, False),
    ],
)
def test_a_start_is_the_value_of_every_gate(form, start, bias):
    gate, x = gate_for("G1", C, H, form=form, start=start), torch.randn(B, N, C)
    torch.testing.assert_close(gate.values(x), torch.full((B, H, N, E), start), rtol=1e-6, atol=1e-7)
    assert (gate.weight.bias is not None) == bias
    part = torch.randn(B, H, N, E)
    if form in ("2-sigmoid", "add-silu", "add-identity"):
        assert torch.equal(gate(part, x), part)
    gate(part, x).sum().backward()
    assert gate.weight.weight.grad.abs().max() > 0


def test_any_pattern_per_head_and_any_normaliser():
    seen = per_head([causal() & window(2), causal(), causal() & window(3), causal()])
    for normaliser in (Sigmoid(-1.0), L1("softplus")):
        torch.manual_seed(5)
        layer = layer_with({"G1": {}}, normaliser=normaliser)
        layer.pattern, x = seen, inputs()
        q, k, v = (f(x).view(B, N, -1, E).transpose(1, 2) for f in (layer.query, layer.key, layer.value))
        at = torch.arange(N)
        q, k, v = rotary(q, at), rotary(k, at).repeat_interleave(2, 1), v.repeat_interleave(2, 1)
        logits = q @ k.mT / math.sqrt(E)
        allowed = torch.stack([p.mask(Tokens(N), Tokens(N)) for p in seen.expand(H, G)])
        if isinstance(normaliser, Sigmoid):
            weight = torch.sigmoid(logits - 1) * allowed
        else:
            weight = torch.nn.functional.softplus(logits) * allowed
            weight = weight / weight.sum(-1, keepdim=True)
        y = (weight @ v).transpose(1, 2).flatten(2) * torch.sigmoid(layer.gates["G1"].weight(x))
        torch.testing.assert_close(layer(x), y @ layer.out.weight.T, rtol=1e-7, atol=1e-7)


def test_a_norm_would_cancel_a_gate_per_head_before_it():
    """Hence G3 and G4 stand behind it: the norm first, the gate second."""
    layer = layer_with({"G4": {"kind": "headwise"}, "G3": {"kind": "headwise"}}, norm=torch.nn.RMSNorm)
    x = inputs()
    for name, place in (("query", "G4"), ("key", "G3")):
        gate = layer.gates[place].values(x)
        bare = SelfAttention.part(layer, name, x)
        assert torch.allclose(layer.norms[name](bare * gate), layer.norms[name](bare), atol=1e-4)
        torch.testing.assert_close(layer.part(name, x), bare * gate)
        torch.testing.assert_close(
            bare.square().mean(-1), torch.ones_like(bare[..., 0]), rtol=1e-5, atol=1e-5
        )


def official_q_proj(fused, x, heads, kv_heads, head_width):
    """How the released eager path reads its fused projection (one view per KV head, then a split)."""
    out = (x @ fused.T).view(*x.shape[:2], kv_heads, -1)
    group = heads // kv_heads
    query, gate = out[..., : group * head_width], out[..., group * head_width :]
    return query.reshape(*x.shape[:2], heads, head_width), gate.reshape(*x.shape[:2], heads, -1)


@pytest.mark.parametrize("kind", ["elementwise", "headwise"])
def test_official_rows_are_queries_then_gates_of_each_group(kind):
    rows = 2 * H * E if kind == "elementwise" else H * E + H
    fused, x = torch.randn(rows, C, dtype=torch.float64), inputs()
    sizes = {"heads": H, "kv_heads": G, "head_width": E, "layout": "official"}
    query, gate = split_gate(fused, **sizes)
    wanted_query, wanted_gate = official_q_proj(fused, x, H, G, E)
    torch.testing.assert_close((x @ query.T).view(B, N, H, E), wanted_query)
    torch.testing.assert_close((x @ gate.T).view(B, N, H, -1), wanted_gate)
    assert torch.equal(fuse_gate(query, gate, **sizes), fused)
    assert not torch.equal(query, fused[: H * E])
    bias = split_gate(fused[:, 0], **sizes)
    assert torch.equal(bias[0], query[:, 0]) and torch.equal(bias[1], gate[:, 0])


def test_qwen3_next_checkpoints_load():
    from transformers import Qwen3NextConfig
    from transformers.models.qwen3_next.modeling_qwen3_next import (
        Qwen3NextAttention,
        Qwen3NextRotaryEmbedding,
    )

    config = Qwen3NextConfig(
        hidden_size=C, num_attention_heads=H, num_key_value_heads=G, head_dim=8, num_hidden_layers=1,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0},
        attn_implementation="eager",
    )  # fmt: skip
    theirs = Qwen3NextAttention(config, 0).double().eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x = inputs()
    places = Qwen3NextRotaryEmbedding(config)(x, torch.arange(N)[None])
    hidden = torch.full((N, N), -math.inf, dtype=torch.float64).triu(1)[None, None]
    wanted = theirs(x, position_embeddings=places, attention_mask=hidden)[0]

    ours = GatedAttention(
        C, H, kv_heads=G, head_width=8, gates={"G1": gate_for("G1", C, H, head_width=8)}, pattern=causal(),
        base=10000.0, norm=lambda width: torch.nn.RMSNorm(width, eps=config.rms_norm_eps),
    ).double()  # fmt: skip
    query, gate = split_gate(theirs.q_proj.weight, heads=H, kv_heads=G, head_width=8, layout="qwen3-next")
    ours.load_state_dict(
        {
            "query.weight": query,
            "gates.G1.weight.weight": gate,
            "key.weight": theirs.k_proj.weight,
            "value.weight": theirs.v_proj.weight,
            "out.weight": theirs.o_proj.weight,
            # Their norm multiplies by 1 + weight.
            "norms.query.weight": 1 + theirs.q_norm.weight,
            "norms.key.weight": 1 + theirs.k_norm.weight,
        }
    )
    # Their norms, softmax and rotary angles are float32 inside.
    torch.testing.assert_close(ours(x), wanted, rtol=1e-5, atol=1e-5)
    assert torch.equal(
        fuse_gate(query, gate, heads=H, kv_heads=G, head_width=8, layout="qwen3-next"), theirs.q_proj.weight
    )
    wrong = split_gate(theirs.q_proj.weight, heads=H, kv_heads=G, head_width=8, layout="official")
    assert not torch.equal(wrong[0], query)


def test_errors():
    with pytest.raises(ValueError, match="gate kind must be one of elementwise, headwise, .* got 'each'"):
        Gate(C, H, E, kind="each")
    with pytest.raises(ValueError, match="gate form must be one of sigmoid, .* got 'tanh'"):
        LearnedGate(H, E, form="tanh")
    with pytest.raises(ValueError, match="at least one head of width 1, got 0 and 6"):
        Gate(C, 0, E)
    for form, start in (("sigmoid", 1.0), ("ns-sigmoid", 0.5), ("add-silu", 0.3)):
        with pytest.raises(ValueError, match=f"no logit gives a {form} gate the value {start}"):
            Gate(C, H, E, form=form, start=start)
    with pytest.raises(ValueError, match=r"place must be one of G1 \(head outputs\), .* got 'G6'"):
        gate_for("G6", C, H)
    with pytest.raises(ValueError, match=r"at G2 must have .* \(2, 6\), that of the values, got \(4, 6\)"):
        GatedAttention(C, H, kv_heads=G, gates={"G2": gate_for("G2", C, H)})
    with pytest.raises(ValueError, match="this gate is for 4 heads of width 6, got a part of 2 heads of"):
        Gate(C, H, E)(torch.zeros(B, G, N, E), torch.zeros(B, N, C))
    sizes = {"heads": H, "kv_heads": G, "head_width": E}
    with pytest.raises(ValueError, match=r"'official' has 48 rows .* or 28 \(headwise\) .*, got 30"):
        split_gate(torch.zeros(30, C), layout="official", **sizes)
    with pytest.raises(ValueError, match=r"'qwen3-next' has 48 rows \(elementwise\) for 4 .*, got 28"):
        split_gate(torch.zeros(28, C), layout="qwen3-next", **sizes)
    with pytest.raises(ValueError, match="gate layout must be one of official, qwen3-next, got 'flat'"):
        split_gate(torch.zeros(48, C), layout="flat", **sizes)
    with pytest.raises(ValueError, match="takes 24 query rows and 24 gate rows .* got 24 and 4"):
        fuse_gate(torch.zeros(24, C), torch.zeros(4, C), layout="qwen3-next", **sizes)
