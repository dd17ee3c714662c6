"""Hold the linear maps that turn latents into small pictures while they are sampled, one for each VAE.

Plain data, without torch.
"""

from __future__ import annotations

from dataclasses import dataclass

# Channels of the latents.
CHANNELS = 16


@dataclass(frozen=True)
class PreviewMatrix:
    """Hold a linear map from latent channels to RGB. rows: one (r, g, b) for each channel; bias: (r, g, b)."""

    rows: tuple[tuple[float, float, float], ...]
    bias: tuple[float, float, float]


# Least-squares fit for HunyuanVideo's VAE.
HUNYUAN_PREVIEW = PreviewMatrix(
    rows=(
        (-0.0395, -0.0331, 0.0445), (0.0696, 0.0795, 0.0518), (0.0135, -0.0945, -0.0282), (0.0108, -0.0250, -0.0765),
        (-0.0209, 0.0032, 0.0224), (-0.0804, -0.0254, -0.0639), (-0.0991, 0.0271, -0.0669), (-0.0646, -0.0422, -0.0400),
        (-0.0696, -0.0595, -0.0894), (-0.0799, -0.0208, -0.0375), (0.1166, 0.1627, 0.0962), (0.1165, 0.0432, 0.0407),
        (-0.2315, -0.1920, -0.1355), (-0.0270, 0.0401, -0.0821), (-0.0616, -0.0997, -0.0727), (0.0249, -0.0469, -0.1703),
    ),
    bias=(0.0259, -0.0192, -0.0761),
)  # fmt: skip
