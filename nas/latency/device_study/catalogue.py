"""The questions: EfficientFormer's four observations, EfficientViT's two, and which widths pay.

Everything but the stems and the widths is asked on 14 x 14 maps of 192 channels, where both
families have most of their blocks at 224 px.
"""

from collections.abc import Mapping
from functools import partial

from nas.latency.device_study import modules
from nas.latency.device_study.advice import equal_time_advice
from nas.latency.device_study.observation import Row
from nas.latency.device_study.question import Pair, Question, Variant

SIDE, CHANNELS, HEADS = 14, 192, 6
MAP = (CHANNELS, SIDE, SIDE)
ATTENTION = f"attn_r{SIDE}_c{CHANNELS}_n{HEADS}_k32_v32"
COPIES = 3  # of a part, so that starting a run weighs little
WIDTH_SIDES = (14, 28)
WIDTHS = sorted(
    {*range(8, 161, 8)}  # what spaces use
    | {12, 20, 36, 44, 68, 76, 100}  # halfway between multiples of 8
    | {18, 34, 66, 98}  # ... of 4
    | {15, 17, 31, 33, 63, 65, 95, 97, 127, 129}  # odd, beside multiples of 8, 16 and 32
)


def questions() -> tuple[Question, ...]:
    """Return every question, the cheapest to believe first."""
    return (
        _patch_embedding(),
        _token_mixers(),
        _mlps(),
        _activations(),
        _memory_bound(),
        _attention(),
        _widths(),
    )


def _parts(name: str, text: str, *parts: str) -> Variant:
    return Variant(name=name, text=text, shape=MAP, make=partial(modules.chain, *parts))


def _patch_embedding() -> Question:
    stem = f"stem_r224_i3_c24-48-96-{CHANNELS}_b0_a0"
    image = (3, 224, 224)
    return Question(
        key="patch_embedding",
        title="Patch embedding",
        asks="From 224 px to 14 x 14 maps: one 16x16 convolution of stride 16, or four 3x3 of "
        "stride 2? (EfficientFormer, observation 1)",
        variants=(
            Variant(
                name="large_kernel",
                text="one 16x16 convolution, stride 16",
                shape=image,
                make=partial(modules.patch_embedding, CHANNELS, 16),
            ),
            Variant(
                name="stacked",
                text="four 3x3 convolutions, stride 2",
                shape=image,
                make=partial(modules.chain, stem),
            ),
        ),
        pairs=(
            Pair(
                over="large_kernel",
                under="stacked",
                subject="16x16 patch embedding against stacked 3x3",
                above="use a stem of stacked 3x3 convolutions here: one 16x16 convolution costs "
                "{ratio} as much",
                below="a stem of stacked 3x3 convolutions costs {ratio} one 16x16 convolution "
                "here: keep its widths small",
                equal="stems of either kind take the same time here",
            ),
        ),
    )


def _cheaper_mixers() -> tuple[Pair, ...]:
    """Return MHSA against each mixer without attention."""
    mixers = {"pool": "pooling", "dw": "a 3x3 depthwise convolution"}
    return tuple(
        Pair(
            over="mhsa",
            under=name,
            subject=f"MHSA against {text}",
            above=f"mix tokens by {text} where accuracy allows: MHSA costs {{ratio}} as much here",
            below=f"MHSA mixes tokens faster than {text} here: that costs {{ratio}} as much",
            equal=f"choose between MHSA and {text} by accuracy",
        )
        for name, text in mixers.items()
    )


def _token_mixers() -> Question:
    block = f"mb4d_r{SIDE}_c{CHANNELS}_h{2 * CHANNELS}_p3"
    pool, dw = f"pool_r{SIDE}_c{CHANNELS}_p3", f"dw_r{SIDE}_c{CHANNELS}"
    return Question(
        key="token_mixers",
        title="Token mixers and one dimension throughout",
        asks="What do 4-D mixers cost beside MHSA on 3-D tokens, and what do the reshapes between "
        "the two cost by themselves? (EfficientFormer, observation 2)",
        variants=(
            _parts("pool", f"{COPIES} pooling mixers on maps", *[pool] * COPIES),
            _parts("dw", f"{COPIES} depthwise 3x3 mixers on maps", *[dw] * COPIES),
            _parts("mhsa", f"{COPIES} MHSA, each from a map and back", *[ATTENTION] * COPIES),
            Variant(
                name="mhsa_tokens",
                text=f"{COPIES} MHSA on tokens, one way there and one back",
                shape=MAP,
                make=partial(modules.on_tokens, ATTENTION, COPIES),
            ),
            _parts("blocks", "4 mb4d blocks", *[block] * 4),
            Variant(
                name="blocks_reshaped",
                text="4 mb4d blocks, to tokens and back between any two",
                shape=MAP,
                make=partial(modules.with_transposes, [block] * 4),
            ),
        ),
        pairs=(
            *_cheaper_mixers(),
            Pair(
                over="mhsa",
                under="mhsa_tokens",
                subject="MHSA by way of maps against MHSA on tokens",
                above="keep attention blocks together (a tail): going back to maps between them "
                "costs {ratio} as much",
                below="going back to maps between attention blocks is no loss here: staying on "
                "tokens costs {ratio} as much",
                equal="attention blocks need not stand together",
            ),
            Pair(
                over="blocks_reshaped",
                under="blocks",
                subject="blocks with reshapes between against without",
                above="keep one dimension throughout: 4 blocks with flatten and transpose between "
                "them cost {ratio} as much",
                below="reshapes between blocks cost nothing here: without them it takes {ratio} "
                "as long",
                equal="reshapes between blocks cost nothing that matters",
            ),
        ),
    )


def _mlps() -> Question:
    hidden = 4 * CHANNELS
    tokens = f"token_mlp_r{SIDE}_c{CHANNELS}_h{hidden}_relu"
    conv = f"mlp_r{SIDE}_c{CHANNELS}_h{hidden}_relu"
    return Question(
        key="mlps",
        title="CONV-BN or LayerNorm and Linear",
        asks="The same MLP as 1x1 convolutions with folded BatchNorm on maps, or as LayerNorm and "
        "Linear on tokens? (EfficientFormer, observation 3)",
        variants=(
            _parts("conv_bn", "2 MLPs of 1x1 convolutions, BatchNorm folded", conv, conv),
            Variant(
                name="ln_linear",
                text="2 MLPs of LayerNorm and Linear on tokens",
                shape=MAP,
                make=partial(modules.on_tokens, tokens, 2),
            ),
            Variant(
                name="linear",
                text="2 MLPs of Linear on tokens, no LayerNorm",
                shape=MAP,
                make=partial(modules.without_norm, tokens, 2),
            ),
        ),
        pairs=(
            Pair(
                over="ln_linear",
                under="conv_bn",
                subject="a LayerNorm-Linear MLP against a CONV-BN MLP",
                above="use CONV-BN MLPs here: LayerNorm and Linear cost {ratio} as much",
                below="use LayerNorm and Linear here: a CONV-BN MLP costs {ratio} as much",
                equal="choose between CONV-BN and LayerNorm-Linear MLPs by accuracy",
            ),
            Pair(
                over="ln_linear",
                under="linear",
                subject="an MLP with LayerNorm against one without",
                above="LayerNorm takes {share} of an MLP on tokens",
                below="LayerNorm costs nothing here: without it the MLP takes {ratio} as long",
                equal="LayerNorm takes too little of an MLP to matter",
            ),
        ),
    )


def _activations() -> Question:
    names = {"relu": "ReLU", "gelu": "GELU", "hardswish": "Hardswish", "silu": "SiLU"}
    mlp = f"mlp_r{SIDE}_c{CHANNELS}_h{4 * CHANNELS}"
    written = {name: f"{mlp}_{name}".removesuffix("_gelu") for name in names}
    return Question(
        key="activations",
        title="Activations",
        asks="What does the activation cost in the same MLP? (EfficientFormer, observation 4)",
        variants=tuple(
            _parts(name, f"2 CONV-BN MLPs with {text}", *[written[name]] * 2)
            for name, text in names.items()
        ),
        pairs=tuple(
            Pair(
                over=name,
                under="relu",
                subject=f"{text} against ReLU",
                above=f"use ReLU here: {text} costs {{ratio}} as much",
                below=f"use {text} here: ReLU costs {{ratio}} as much",
                equal=f"choose between {text} and ReLU by accuracy",
            )
            for name, text in names.items()
            if name != "relu"
        ),
    )


def _memory_bound() -> Question:
    left_out = {
        "transposes": "transposes",
        "norms": "LayerNorm",
        "softmax": "the softmax",
        "activation": "the activation (GELU)",
        "adds": "the residual adds",
    }
    make = partial(modules.MemoryBound, CHANNELS, HEADS, 4 * CHANNELS)
    each = [
        Variant(name=f"no_{name}", text=f"without {text}", shape=MAP, make=partial(make, [name]))
        for name, text in left_out.items()
    ]
    bare = Variant(
        name="bare", text="without all of these", shape=MAP, make=partial(make, list(left_out))
    )
    whole = Variant(name="block", text="the whole block", shape=MAP, make=make)
    shares = {"bare": "memory-bound operations"}
    shares |= {f"no_{name}": text for name, text in left_out.items()}
    return Question(
        key="memory_bound",
        title="Memory-bound operations in a block with MHSA",
        asks="Which share of a transformer block's time goes to operations that move numbers "
        "rather than multiply them? (EfficientViT, section 2.1)",
        variants=(whole, *each, bare),
        pairs=tuple(
            Pair(
                over="block",
                under=name,
                subject=f"block against block without {text}",
                above=f"in a block with MHSA, {text} take{'' if text.endswith('s') else 's'} "
                "{share} of the time",
                below=f"the block is slower without {text} ({{ratio}}), so no share can be said",
                equal=f"{text}: too small a share to matter",
            )
            for name, text in shares.items()
        ),
        profiled="block",
    )


def _attention() -> Question:
    expansions = (2, 4, 8)
    ffns = tuple(
        _parts(
            f"ffn_{ratio}x",
            f"{COPIES} FFNs of expansion {ratio}",
            *[f"ffn_r{SIDE}_c{CHANNELS}_h{ratio * CHANNELS}"] * COPIES,
        )
        for ratio in expansions
    )
    kernels = "-".join(["5"] * HEADS)
    cga = {
        window: f"group_attn_r{SIDE}_c{CHANNELS}_n{HEADS}_k16_q{kernels}_w{window}"
        for window in (SIDE, 7)
    }

    def equal_time(rows: Mapping[str, Row]) -> tuple[str, ...]:
        return equal_time_advice(rows["mhsa"], [(e, rows[f"ffn_{e}x"]) for e in expansions])

    return Question(
        key="attention",
        title="MHSA, FFN and cascaded group attention",
        asks="What does MHSA cost beside an FFN of as many parameters, and what does cascaded "
        "group attention (CGA) cost beside MHSA on the same map? (EfficientViT, section 2)",
        variants=(
            _parts("mhsa", f"{COPIES} MHSA", *[ATTENTION] * COPIES),
            *ffns,
            _parts("cga", f"{COPIES} CGA over the whole map", *[cga[SIDE]] * COPIES),
            _parts("cga_windows", f"{COPIES} CGA in windows of 7", *[cga[7]] * COPIES),
        ),
        pairs=(
            Pair(
                over="mhsa",
                under="ffn_2x",
                subject="MHSA against an FFN of as many parameters",
                above="spend parameters on FFNs rather than on more MHSA: MHSA costs {ratio} as "
                "much for as many",
                below="attention is cheap here: an FFN of as many parameters costs {ratio} as much",
                equal="MHSA and an FFN of as many parameters take the same time",
            ),
            *(
                Pair(
                    over="mhsa",
                    under=name,
                    subject=f"MHSA against {text}",
                    above=f"use {text} rather than MHSA here: MHSA costs {{ratio}} as much",
                    below=f"use MHSA rather than {text} here: {text} costs {{ratio}} as much",
                    equal=f"choose between MHSA and {text} by accuracy",
                )
                for name, text in (
                    ("cga", "CGA over the whole map"),
                    ("cga_windows", "CGA in windows of 7"),
                )
            ),
        ),
        more=equal_time,
    )


def _widths() -> Question:
    return Question(
        key="widths",
        title="Widths",
        asks="Latency of 1x1 and 3x3 depthwise convolutions over their channels: which multiple "
        "of channels pays?",
        variants=tuple(
            Variant(
                name=f"r{side}_c{width}",
                text=f"{width} channels at side {side}",
                shape=(width, side, side),
                make=partial(modules.separable, width, 2),
            )
            for side in WIDTH_SIDES
            for width in WIDTHS
        ),
        is_width_series=True,
    )
