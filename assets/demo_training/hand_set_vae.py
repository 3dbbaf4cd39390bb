"""An autoencoder that works before it is trained: the encoder averages 8 x 8 blocks, the decoder upsamples smoothly.
Training (train_decoder.py) then only has to learn detail, and only in the decoder.

Every residual block begins as the identity (last convolution zero, shortcut the identity). A signal c passes the last
GroupNorm + SiLU linearly as the pair (c, -c), since silu(c) - silu(-c) = c, next to the constant channels +K and -K in
its group, so that the group's variance hardly depends on c.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

CHANNELS = (32, 48, 64, 96)
# Rows: luma, red - blue, green - (red + blue) / 2.
OPPONENT = torch.tensor([[0.299, 0.587, 0.114], [0.5, 0.0, -0.5], [-0.25, 0.5, -0.25]])
# Statistics of the averaged training pictures in opponent colours, fixed once so that every stage agrees.
MEAN = torch.tensor([-0.0528, -0.0302, -0.0298])
STD = torch.tensor([0.4735, 0.3123, 0.1205])
HAAR_SCALE = 6.0  # brings the fourth latent to the size of the others
LATENT_STD = 0.1  # what the encoder claims as posterior standard deviation
ENCODER_CONSTANT = 16.0  # K of the encoder
DECODER_CONSTANT = 10.0  # K of the decoder


def build_vae() -> AutoencoderKL:
    """The hand-set autoencoder: factor 8, 4 latent channels, 1.8 M parameters."""
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=CHANNELS,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=256,
        scaling_factor=1.0,
        force_upcast=False,
        mid_block_add_attention=False,
    )
    with torch.no_grad():
        _make_blocks_identity(vae)
        _set_encoder(vae)
        _set_quantisation(vae)
        _set_decoder(vae)
    return vae


def analytic_latents(pictures: torch.Tensor) -> torch.Tensor:
    """What the hand-set encoder computes, without running it: [B, 3, H, W] in [-1, 1] -> [B, 4, H / 8, W / 8]."""
    opponent, mean, std = (constant.to(pictures) for constant in (OPPONENT, MEAN, STD))
    halves = F.avg_pool2d(pictures, (8, 4))  # the left and the right half of each block
    colours = torch.einsum("oc,bchw->bohw", opponent, halves)
    colours = (colours - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)
    left, right = colours[..., 0::2], colours[..., 1::2]
    return torch.cat([(left + right) / 2, (left - right)[:, :1] / 2 * HAAR_SCALE], 1)


def _group_size(vae: AutoencoderKL, level: int) -> int:
    return int(vae.config.block_out_channels[level]) // int(vae.config.norm_num_groups)


def _make_blocks_identity(vae: AutoencoderKL) -> None:
    encoder, decoder = vae.encoder, vae.decoder
    for block in (*encoder.down_blocks, encoder.mid_block, *decoder.up_blocks, decoder.mid_block):
        for resnet in block.resnets:
            resnet.conv2.weight.zero_()
            resnet.conv2.bias.zero_()
            if resnet.conv_shortcut is not None:
                weight = resnet.conv_shortcut.weight  # [out, in, 1, 1]
                for channel in range(min(weight.shape[:2])):
                    weight[channel].zero_()
                    weight[channel, channel] = 1.0
                resnet.conv_shortcut.bias.zero_()


def _set_encoder(vae: AutoencoderKL) -> None:
    """Channels 0 to 5 carry + and - the three opponent colours, 6 to 9 the constants, 10 and 11 the Haar one."""
    encoder, size = vae.encoder, _group_size(vae, -1)
    assert size >= 12
    for block in encoder.down_blocks:
        for resnet in block.resnets:
            if resnet.conv_shortcut is not None:
                resnet.conv_shortcut.weight[10:, 6:10] = 0
    weight, bias = encoder.conv_in.weight, encoder.conv_in.bias
    weight.zero_()
    bias.zero_()
    for colour in range(3):
        for sign, channel in ((1, 2 * colour), (-1, 2 * colour + 1)):
            weight[channel, :, 1, 1] = sign * OPPONENT[colour] / STD[colour]
            bias[channel] = -sign * MEAN[colour] / STD[colour]
    for channel in range(6, 10):
        bias[channel] = ENCODER_CONSTANT if channel % 2 else -ENCODER_CONSTANT
    for block in encoder.down_blocks:
        for downsampler in block.downsamplers or []:
            conv = downsampler.conv
            conv.weight[:size].zero_()
            conv.bias[:size].zero_()
            conv.weight[size:, 6:10] = 0
            for channel in range(10):
                conv.weight[channel, channel, :2, :2] = 0.25
    for sign, channel in ((1, 10), (-1, 11)):  # in the last downsampler: left minus right half of each block's luma
        conv.weight[channel, 0, :2, 0] = 0.25 * sign * HAAR_SCALE
        conv.weight[channel, 0, :2, 1] = -0.25 * sign * HAAR_SCALE
    encoder.conv_norm_out.weight[:12] = (4 * ENCODER_CONSTANT**2 / size) ** 0.5
    encoder.conv_out.weight.zero_()
    encoder.conv_out.bias.zero_()
    for latent, channel in ((0, 0), (1, 2), (2, 4), (3, 10)):
        encoder.conv_out.weight[latent, channel, 1, 1] = 1.0
        encoder.conv_out.weight[latent, channel + 1, 1, 1] = -1.0


def _set_quantisation(vae: AutoencoderKL) -> None:
    vae.quant_conv.weight.copy_(torch.eye(8).view(8, 8, 1, 1))
    vae.quant_conv.bias.zero_()
    vae.quant_conv.bias[4:] = 2 * torch.log(torch.tensor(LATENT_STD))
    vae.post_quant_conv.weight.copy_(torch.eye(4).view(4, 4, 1, 1))
    vae.post_quant_conv.bias.zero_()


def _set_decoder(vae: AutoencoderKL) -> None:
    """The first four channels of groups 0, 1, 2 hold (c, -c, K, -K) for red, green, blue."""
    decoder, size = vae.decoder, _group_size(vae, 0)
    assert size >= 4
    firsts = [size * colour for colour in range(3)]
    used = [first + offset for first in firsts for offset in range(4)]
    to_rgb = torch.linalg.inv(OPPONENT)
    for block in decoder.up_blocks:
        for resnet in block.resnets:
            if resnet.conv_shortcut is not None:
                for first in firsts:
                    resnet.conv_shortcut.weight[3 * size :, first + 2 : first + 4] = 0
    weight, bias = decoder.conv_in.weight, decoder.conv_in.bias
    for channel in used:
        weight[channel].zero_()
        bias[channel] = 0
    for colour, first in enumerate(firsts):
        for sign, channel in ((1, first), (-1, first + 1)):
            weight[channel, :3, 1, 1] = sign * to_rgb[colour] * STD
            bias[channel] = sign * (to_rgb[colour] @ MEAN)
        bias[first + 2], bias[first + 3] = DECODER_CONSTANT, -DECODER_CONSTANT
    tent = torch.tensor([1.0, 2.0, 1.0])
    tent = tent[:, None] * tent / 16
    for block in decoder.up_blocks:
        for upsampler in block.upsamplers or []:
            conv = upsampler.conv
            for channel in used:
                conv.weight[channel].zero_()
                conv.bias[channel] = 0
            for first in firsts:
                conv.weight[:, first + 2 : first + 4] = 0
            for first in firsts:
                for channel in (first, first + 1):
                    conv.weight[channel, channel] = tent
                for channel in (first + 2, first + 3):
                    conv.weight[channel, channel, 1, 1] = 1.0
    for first in firsts:
        decoder.conv_norm_out.weight[first : first + 4] = (2 * DECODER_CONSTANT**2 / size) ** 0.5
    decoder.conv_out.weight *= 0.05
    decoder.conv_out.bias.zero_()
    for colour, first in enumerate(firsts):
        decoder.conv_out.weight[:, first : first + 4] = 0
        decoder.conv_out.weight[colour, first, 1, 1] = 1.0
        decoder.conv_out.weight[colour, first + 1, 1, 1] = -1.0


def protect_constants(vae: AutoencoderKL) -> None:
    """No gradient into what writes or reads the decoder's constant channels: a small step there moves every pixel."""
    decoder, size = vae.decoder, _group_size(vae, 0)
    constants = [size * colour + offset for colour in range(3) for offset in (2, 3)]

    def mask(param: torch.nn.Parameter, *, rows: bool = True, columns: bool = True) -> None:
        keep = torch.ones_like(param)
        if rows:
            keep[constants] = 0
        if columns and param.ndim == 4:
            keep[:, constants] = 0
        param.register_hook(lambda gradient: gradient * keep)

    mask(decoder.conv_in.weight, columns=False)
    mask(decoder.conv_in.bias)
    for block in (decoder.mid_block, *decoder.up_blocks):
        for resnet in block.resnets:
            mask(resnet.conv2.weight, columns=False)
            mask(resnet.conv2.bias)
            if resnet.conv_shortcut is not None:
                mask(resnet.conv_shortcut.weight)
                mask(resnet.conv_shortcut.bias)
    for block in decoder.up_blocks:
        for upsampler in block.upsamplers or []:
            mask(upsampler.conv.weight)
            mask(upsampler.conv.bias)
    mask(decoder.conv_out.weight, rows=False)
