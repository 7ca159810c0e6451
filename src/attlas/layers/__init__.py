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
from attlas.layers.by_graph import ByGraph, GraphAttention, mixer_by_graph
from attlas.layers.clear import ClearMix, PooledKeys, extrapolated_scale
from attlas.layers.cmr import Reweaving
from attlas.layers.codebook import CodebookAttention, EMACodebook, codebook_attention
from attlas.layers.combiner import Combiner
from attlas.layers.contract import Finding, check_mixer
from attlas.layers.convit import GPSA
from attlas.layers.cosformer import CosformerAttention
from attlas.layers.deconstructing import Approximate, GatedMLP, NonApproximate, SourcedAttention
from attlas.layers.dependencyvit import DependencyBlock, ReversedAttention
from attlas.layers.dsf import QLSTM, LinearAttention, NormalisedLinear
from attlas.layers.favor import FavorAttention, favor_features, linear_by_graph
from attlas.layers.flashsigmoid import FlashSigmoid
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
from attlas.layers.gaam import GAAM, GaussianBlock, importance
from attlas.layers.gated import Gate, GatedAttention, LearnedGate, gate_for
from attlas.layers.gated_gcn import GatedGCN
from attlas.layers.gated_layouts import fuse_gate, split_gate
from attlas.layers.gcn import GCN
from attlas.layers.gin import GIN
from attlas.layers.gin_attention import GINAttention
from attlas.layers.gine import GINE
from attlas.layers.gmn import ForwardMamba, GMNLayer, SubgraphEncoder
from attlas.layers.gps import GPS
from attlas.layers.graph_attention import AdditiveGraphAttention, DotGraphAttention
from attlas.layers.graph_contract import GraphFinding, check_graph_layer
from attlas.layers.graph_encoders import (
    DegreeEncoder,
    EigenDeepSet,
    EigenTransformer,
    NormLinear,
    RoleEncoder,
    SignedPositions,
    SignNet,
    Together,
)
from attlas.layers.graph_layers import (
    GRAPH_LAYERS,
    GraphEntry,
    GraphSetting,
    graph_entry,
    graph_of,
    register_graph_layer,
)
from attlas.layers.graphlayoutlm import GraphLayoutAttention, LayoutGraph, layout_graph
from attlas.layers.grit import GRIT, GRITEncoder, GRITLayer, GRITScore
from attlas.layers.gt import GT, ResidualSteps
from attlas.layers.halonet import HaloAttention, halo_attention
from attlas.layers.joint import KernelMix, SoftmaxMix, StreamAttention, TwoStreamAttention, places
from attlas.layers.kgat import BiInteraction, GraphConvolution, GraphSage, KGATLayer, RelationAttention
from attlas.layers.lama import LAMA, lama_logits, masked_mean, star, word_importance
from attlas.layers.lamamba import SS2D, ModulatedBlock, ShiftedWindowAttention, lamamba_block
from attlas.layers.large_gt import HopTokens, SampledAttention, TokenAttention
from attlas.layers.lightning import LightningAttention, alibi_by_layer, lightning1, linear_by_layer
from attlas.layers.lssa import LssarAttention
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
from attlas.layers.minimal import MinimalAttention, collapsed, collapsed_stack, triangular
from attlas.layers.minimal_maps import (
    Carried,
    OneMap,
    SharedMap,
    Similarity,
    TriangularMap,
    TwoMaps,
    Untouched,
    ValueAndOut,
    ValueMap,
)
from attlas.layers.mixers import FORMS, MIXERS, MixerEntry, Setting, mixer_entry, register_mixer
from attlas.layers.ninformer import FeedForward, MixerBlock, MixerGate, NiNBlock, TokenFeedForward
from attlas.layers.one_triangle import one_triangle
from attlas.layers.p_adapter import (
    Bottleneck,
    PAdapter,
    p_laplacian_edges,
    p_laplacian_official,
    p_laplacian_step,
    pooled_nodes,
)
from attlas.layers.performer import PerformerAttention
from attlas.layers.plga import PLGA, kv_cache_only
from attlas.layers.plga_metric import Deduced, FixedCurvature, MetricLearner, dag_penalty
from attlas.layers.plga_prefix import PrefixPLGA
from attlas.layers.pna_attention import PNAAttention, pna_aggregates
from attlas.layers.pooling import AdditivePooling, MeanPooling, SelfAttentionPooling
from attlas.layers.position_gate import PositionGate
from attlas.layers.ppgn import PPGN, PPGNBlock, matrix_product, pair_product
from attlas.layers.ragged_norm import RaggedBatchNorm
from attlas.layers.relative_bias import RelativeBias
from attlas.layers.rotary import rotary, rotary_pairs
from attlas.layers.sage import SAGE
from attlas.layers.short_conv import ShortConv
from attlas.layers.sparse_gin import SparseEdges, SparseGIN, lambda_schedule, strong_edges
from attlas.layers.sparse_rows import SparseHybrid
from attlas.layers.stochastic_depth import StochasticDepth
from attlas.layers.tangnn import PooledLayer, TANGNNLayer, TiledLayer, TopAttention
from attlas.layers.titans import MemoryAsGate, MemoryAsLayer
from attlas.layers.titans_context import LiteralMemoryAsContext, MemoryAsContext
from attlas.layers.titans_memory import LongTermMemory
from attlas.layers.transnormer import SGLU, SRMSNorm, TransNormerBlock, TransNormerMixer
from attlas.layers.virtual_node import GATv2Gather, VirtualNodeLayer, VirtualNodeStack
from attlas.layers.zoology import BaseConv, ImplicitConv

__all__ = [
    "FORMS",
    "GAAM",
    "GCN",
    "GIN",
    "GINE",
    "GPS",
    "GPSA",
    "GRAPH_LAYERS",
    "GRIT",
    "GT",
    "LAMA",
    "MIXERS",
    "PLGA",
    "PPGN",
    "QLSTM",
    "SAGE",
    "SGLU",
    "SS2D",
    "ABCAttention",
    "Aaren",
    "AdditiveGraphAttention",
    "AdditivePooling",
    "AdditiveScore",
    "AgentAttention",
    "AgentSD",
    "Approximate",
    "AutoCorrelation",
    "AutoformerDecoderLayer",
    "AutoformerEncoderLayer",
    "BaseConv",
    "BatchNorm",
    "BiInteraction",
    "BiMamba",
    "Block",
    "Bottleneck",
    "ByGraph",
    "Carried",
    "CausalFlowAttention",
    "ChannelMixer",
    "ClearMix",
    "CodebookAttention",
    "Combiner",
    "ConvBN",
    "CosformerAttention",
    "Decomposition",
    "Deduced",
    "DegreeEncoder",
    "DependencyBlock",
    "DotGraphAttention",
    "DynamicKeys",
    "DynamicValues",
    "EMACodebook",
    "EigenDeepSet",
    "EigenTransformer",
    "FavorAttention",
    "FeedForward",
    "Finding",
    "FixedCurvature",
    "FlashSigmoid",
    "FlowAttention",
    "ForwardMamba",
    "Fusable",
    "GATv2Gather",
    "GINAttention",
    "GMNLayer",
    "GRITEncoder",
    "GRITLayer",
    "GRITScore",
    "Gate",
    "GatedAttention",
    "GatedConv",
    "GatedGCN",
    "GatedMLP",
    "GaussianBlock",
    "GraphAttention",
    "GraphConvolution",
    "GraphEntry",
    "GraphFinding",
    "GraphLayoutAttention",
    "GraphSage",
    "GraphSetting",
    "GridMixer",
    "HaloAttention",
    "HopTokens",
    "ImplicitConv",
    "KGATLayer",
    "KernelMix",
    "LayoutGraph",
    "LearnedGate",
    "LightningAttention",
    "LinearAttention",
    "LiteralMemoryAsContext",
    "LongTermMemory",
    "LssarAttention",
    "MBConv",
    "Mamba",
    "MaxViTBlock",
    "MeanPooling",
    "MemoryAsContext",
    "MemoryAsGate",
    "MemoryAsLayer",
    "MetaMixer",
    "MetricLearner",
    "MinimalAttention",
    "MixerBlock",
    "MixerEntry",
    "MixerGate",
    "ModulatedBlock",
    "NiNBlock",
    "NonApproximate",
    "NormLinear",
    "Normalised",
    "NormalisedLinear",
    "NormedStep",
    "OneMap",
    "PAdapter",
    "PNAAttention",
    "PPGNBlock",
    "Partition",
    "PartitionAttention",
    "PerformerAttention",
    "PooledKeys",
    "PooledLayer",
    "PositionGate",
    "PrefixPLGA",
    "RaggedBatchNorm",
    "RelationAttention",
    "RelativeBias",
    "RepDepthwise",
    "ResidualSteps",
    "ReversedAttention",
    "Reweaving",
    "RoleEncoder",
    "SRMSNorm",
    "SampledAttention",
    "SeasonalNorm",
    "SelectiveSSM",
    "SelfAttention",
    "SelfAttentionPooling",
    "Setting",
    "SharedMap",
    "ShiftedWindowAttention",
    "ShortConv",
    "SignNet",
    "SignedPositions",
    "Similarity",
    "SoftmaxMix",
    "SourcedAttention",
    "SparseEdges",
    "SparseGIN",
    "SparseHybrid",
    "Static",
    "StochasticDepth",
    "StreamAttention",
    "SubgraphEncoder",
    "TANGNNLayer",
    "TaylorAttention",
    "TiledLayer",
    "Together",
    "TokenAttention",
    "TokenFeedForward",
    "TopAttention",
    "TransNormerBlock",
    "TransNormerMixer",
    "TriangularMap",
    "TwoMaps",
    "TwoStreamAttention",
    "Untouched",
    "ValueAndOut",
    "ValueMap",
    "VirtualNodeLayer",
    "VirtualNodeStack",
    "alibi_by_layer",
    "attention_mixer",
    "auto_correlation",
    "block_partition",
    "check_graph_layer",
    "check_mixer",
    "codebook_attention",
    "collapsed",
    "collapsed_stack",
    "dag_penalty",
    "extrapolated_scale",
    "favor_features",
    "ffn_mixer",
    "fold_after",
    "fold_before",
    "fuse",
    "fuse_gate",
    "gate_for",
    "graph_entry",
    "graph_of",
    "grid_partition",
    "halo_attention",
    "importance",
    "kv_cache_only",
    "lama_logits",
    "lamamba_block",
    "lambda_schedule",
    "layout_graph",
    "lightning1",
    "linear_by_graph",
    "linear_by_layer",
    "masked_mean",
    "matrix_product",
    "mixer_by_graph",
    "mixer_entry",
    "one_triangle",
    "p_laplacian_edges",
    "p_laplacian_official",
    "p_laplacian_step",
    "pair_product",
    "places",
    "pna_aggregates",
    "pooled_nodes",
    "pooling_mixer",
    "register_graph_layer",
    "register_mixer",
    "rotary",
    "rotary_pairs",
    "sliding_window",
    "split_gate",
    "star",
    "strong_edges",
    "triangular",
    "word_importance",
]
