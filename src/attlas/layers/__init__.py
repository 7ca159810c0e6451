"""Modules: token mixers, blocks, positional layers. Parameters live here; the maths is `attend`'s."""

from attlas.layers.aaren import Aaren
from attlas.layers.abc_attention import ABCAttention
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
from attlas.layers.fuse import (
    BatchNorm,
    ConvBN,
    Fusable,
    NormedStep,
    RepDepthwise,
    fold_after,
    fold_before,
    fuse,
)
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
from attlas.layers.metamixer import (
    ChannelMixer,
    DynamicKeys,
    DynamicValues,
    GridMixer,
    MetaMixer,
    Normalised,
    Static,
    attention_mixer,
    ffn_mixer,
    pooling_mixer,
)
from attlas.layers.mixers import FORMS, MIXERS, MixerEntry, Setting, mixer_entry, register_mixer
from attlas.layers.ninformer import FeedForward, MixerBlock, MixerGate, NiNBlock, TokenFeedForward
from attlas.layers.performer import PerformerAttention
from attlas.layers.relative_bias import RelativeBias
from attlas.layers.rotary import rotary
from attlas.layers.short_conv import ShortConv
from attlas.layers.sparse_rows import SparseHybrid
from attlas.layers.stochastic_depth import StochasticDepth
from attlas.layers.titans import MemoryAsGate, MemoryAsLayer
from attlas.layers.titans_context import LiteralMemoryAsContext, MemoryAsContext
from attlas.layers.titans_memory import LongTermMemory
from attlas.layers.transnormer import SGLU, SRMSNorm, TransNormerBlock, TransNormerMixer
from attlas.layers.zoology import BaseConv, ImplicitConv

__all__ = [
    "FORMS",
    "GPSA",
    "MIXERS",
    "QLSTM",
    "SGLU",
    "SS2D",
    "ABCAttention",
    "Aaren",
    "AgentAttention",
    "AgentSD",
    "AutoCorrelation",
    "AutoformerDecoderLayer",
    "AutoformerEncoderLayer",
    "BaseConv",
    "BatchNorm",
    "BiMamba",
    "Block",
    "CausalFlowAttention",
    "ChannelMixer",
    "ClearMix",
    "Combiner",
    "ConvBN",
    "CosformerAttention",
    "Decomposition",
    "DependencyBlock",
    "DynamicKeys",
    "DynamicValues",
    "FeedForward",
    "Finding",
    "FlowAttention",
    "Fusable",
    "GatedConv",
    "GraphLayoutAttention",
    "GridMixer",
    "HaloAttention",
    "ImplicitConv",
    "KernelMix",
    "LayoutGraph",
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
    "MetaMixer",
    "MixerBlock",
    "MixerEntry",
    "MixerGate",
    "ModulatedBlock",
    "NiNBlock",
    "Normalised",
    "NormalisedLinear",
    "NormedStep",
    "Partition",
    "PartitionAttention",
    "PerformerAttention",
    "PooledKeys",
    "RelativeBias",
    "RepDepthwise",
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
    "Static",
    "StochasticDepth",
    "StreamAttention",
    "TaylorAttention",
    "TokenFeedForward",
    "TransNormerBlock",
    "TransNormerMixer",
    "TwoStreamAttention",
    "alibi_by_layer",
    "attention_mixer",
    "auto_correlation",
    "block_partition",
    "check_mixer",
    "extrapolated_scale",
    "ffn_mixer",
    "fold_after",
    "fold_before",
    "fuse",
    "grid_partition",
    "halo_attention",
    "lamamba_block",
    "layout_graph",
    "lightning1",
    "linear_by_layer",
    "mixer_entry",
    "places",
    "pooling_mixer",
    "register_mixer",
    "rotary",
    "sliding_window",
]
