"""Modules: token mixers, blocks, positional layers. Parameters live here; the maths is `attend`'s."""

from attlas.layers.aaren import Aaren
from attlas.layers.abc_attention import ABCAttention
from attlas.layers.additive import AdditiveScore
from attlas.layers.agent import AgentAttention
from attlas.layers.agent_sd import AgentSD
from attlas.layers.attention import SelfAttention
from attlas.layers.autoformer import (
    AutoCorrelation,
    AutoformerDecoderLayer,
    AutoformerEncoderLayer,
    Decomposition,
    SeasonalNorm,
    auto_correlation,
)
from attlas.layers.based import GatedConv, TaylorAttention, sliding_window
from attlas.layers.block import Block
from attlas.layers.clear import ClearMix, PooledKeys, extrapolated_scale
from attlas.layers.cmr import Reweaving
from attlas.layers.combiner import Combiner
from attlas.layers.contract import Finding, check_mixer
from attlas.layers.convit import GPSA
from attlas.layers.cosformer import CosformerAttention
from attlas.layers.dependencyvit import DependencyBlock, ReversedAttention
from attlas.layers.dsf import QLSTM, LinearAttention, NormalisedLinear
from attlas.layers.flowformer import CausalFlowAttention, FlowAttention
from attlas.layers.gated import Gate, GatedAttention, LearnedGate, gate_for
from attlas.layers.gated_layouts import fuse_gate, split_gate
from attlas.layers.graphlayoutlm import GraphLayoutAttention, LayoutGraph, layout_graph
from attlas.layers.halonet import HaloAttention, halo_attention
from attlas.layers.joint import KernelMix, SoftmaxMix, StreamAttention, TwoStreamAttention, places
from attlas.layers.lamamba import SS2D, ModulatedBlock, ShiftedWindowAttention, lamamba_block
from attlas.layers.lightning import LightningAttention, alibi_by_layer, lightning1, linear_by_layer
from attlas.layers.mamba import BiMamba, Mamba, SelectiveSSM
from attlas.layers.maxvit import (
    MaxViTBlock,
    MBConv,
    Partition,
    PartitionAttention,
    block_partition,
    grid_partition,
)
from attlas.layers.mixers import FORMS, MIXERS, MixerEntry, Setting, mixer_entry, register_mixer
from attlas.layers.performer import PerformerAttention
from attlas.layers.plga import PLGA, PrefixPLGA, kv_cache_only
from attlas.layers.plga_metric import Deduced, FixedCurvature, MetricLearner, dag_penalty
from attlas.layers.relative_bias import RelativeBias
from attlas.layers.rotary import rotary, rotary_pairs
from attlas.layers.short_conv import ShortConv
from attlas.layers.sparse_rows import SparseHybrid
from attlas.layers.titans import MemoryAsGate, MemoryAsLayer
from attlas.layers.titans_context import LiteralMemoryAsContext, MemoryAsContext
from attlas.layers.titans_memory import LongTermMemory
from attlas.layers.transnormer import SGLU, SRMSNorm, TransNormerBlock, TransNormerMixer
from attlas.layers.zoology import BaseConv, ImplicitConv

__all__ = [
    "FORMS",
    "GPSA",
    "MIXERS",
    "PLGA",
    "QLSTM",
    "SGLU",
    "SS2D",
    "ABCAttention",
    "Aaren",
    "AdditiveScore",
    "AgentAttention",
    "AgentSD",
    "AutoCorrelation",
    "AutoformerDecoderLayer",
    "AutoformerEncoderLayer",
    "BaseConv",
    "BiMamba",
    "Block",
    "CausalFlowAttention",
    "ClearMix",
    "Combiner",
    "CosformerAttention",
    "Decomposition",
    "Deduced",
    "DependencyBlock",
    "Finding",
    "FixedCurvature",
    "FlowAttention",
    "Gate",
    "GatedAttention",
    "GatedConv",
    "GraphLayoutAttention",
    "HaloAttention",
    "ImplicitConv",
    "KernelMix",
    "LayoutGraph",
    "LearnedGate",
    "LightningAttention",
    "LinearAttention",
    "LiteralMemoryAsContext",
    "LongTermMemory",
    "MBConv",
    "Mamba",
    "MaxViTBlock",
    "MemoryAsContext",
    "MemoryAsGate",
    "MemoryAsLayer",
    "MetricLearner",
    "MixerEntry",
    "ModulatedBlock",
    "NormalisedLinear",
    "Partition",
    "PartitionAttention",
    "PerformerAttention",
    "PooledKeys",
    "PrefixPLGA",
    "RelativeBias",
    "ReversedAttention",
    "Reweaving",
    "SRMSNorm",
    "SeasonalNorm",
    "SelectiveSSM",
    "SelfAttention",
    "Setting",
    "ShiftedWindowAttention",
    "ShortConv",
    "SoftmaxMix",
    "SparseHybrid",
    "StreamAttention",
    "TaylorAttention",
    "TransNormerBlock",
    "TransNormerMixer",
    "TwoStreamAttention",
    "alibi_by_layer",
    "auto_correlation",
    "block_partition",
    "check_mixer",
    "dag_penalty",
    "extrapolated_scale",
    "fuse_gate",
    "gate_for",
    "grid_partition",
    "halo_attention",
    "kv_cache_only",
    "lamamba_block",
    "layout_graph",
    "lightning1",
    "linear_by_layer",
    "mixer_entry",
    "places",
    "register_mixer",
    "rotary",
    "rotary_pairs",
    "sliding_window",
    "split_gate",
]
