import torch
import torch.nn as nn

from nas.network import build
from nas.network.fold import fold_norms

BLOCKS = [
    "stem_r32_i3_c8-16_b1_a1",
    "mb4d_r8_c16_h32_p3",
    "mbconv_r8_c16_h32_k3_s8_a1",
    "patch_merge_r8_i16_o48_h32_s8_f16-48",
    "cga_r4_c48_n3_k8_q5-3-3_w7_h48-96",
    "mb3d_r4_c48_n4_k8_v16_h96",
    "head_r4_i48_o10_bn_d0",
]


def test_a_network_without_its_norms_gives_the_same_scores() -> None:
    torch.manual_seed(0)
    model = build(BLOCKS)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point() and "conv.weight" not in name:
                value += 0.1 * torch.rand_like(value)
    model.eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        wanted = model(x)
        found = fold_norms(model)(x)
    assert torch.allclose(found, wanted, atol=1e-4)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def test_a_norm_that_stands_behind_no_convolution_stays() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1), nn.ReLU(), nn.BatchNorm2d(4))
    folded = fold_norms(model.eval())
    assert sum(isinstance(module, nn.BatchNorm2d) for module in folded.children()) == 2
