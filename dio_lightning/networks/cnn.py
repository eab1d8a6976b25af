"""GraDIRN's network: convolutions at one scale."""

from jaxtyping import Float
from torch import Tensor, nn

from dio_lightning.networks.blocks import Precision, autocast, channels_last, check_precision, conv, conv_leaky


class CNN(nn.Module):
    """Images to a field of the same size: `depth` convolutions of 3^d, LeakyReLU 0.2 between them (GraDIRN).

    It sees 2 depth + 1 voxels along an axis. The last convolution starts at N(0, 1e-5), so that an untrained field is
    next to zero: its own gradient does not depend on its weights, so one optimizer step opens the layers below.

    Args:
        in_channels: channels of the input.
        spatial_dims: 2 or 3.
        out_channels: channels of the field; one an axis by default.
        width: channels between.
        depth: number of convolutions.
        precision: of the convolutions, "float32" or "bfloat16"; the field is always float32.

    Raises:
        ValueError: if depth is below 2 or width below 1, or for another precision.
    """

    def __init__(
        self,
        in_channels: int,
        spatial_dims: int = 3,
        out_channels: int | None = None,
        width: int = 32,
        depth: int = 5,
        precision: Precision = "float32",
    ) -> None:
        super().__init__()
        if depth < 2 or width < 1:
            raise ValueError(f"depth is {depth} and width {width}, expected at least 2 convolutions of 1 channel")
        check_precision(precision)
        self.in_channels = in_channels
        self.precision: Precision = precision
        inputs = [in_channels, *[width] * (depth - 2)]
        self.body = nn.Sequential(*(conv_leaky(spatial_dims, channels, width) for channels in inputs))
        self.head = conv(spatial_dims, width, out_channels or spatial_dims)
        nn.init.normal_(self.head.get_parameter("weight"), std=1e-5)
        nn.init.zeros_(self.head.get_parameter("bias"))
        for parameter in self.parameters():
            if parameter.ndim > 1:
                parameter.data = channels_last(parameter.data)

    def forward(self, x: Float[Tensor, "b c *s"]) -> Float[Tensor, "b k *s"]:
        """The field of an input, float32."""
        with autocast(x, self.precision):
            field = self.head(self.body(channels_last(x)))
        return field.float()
