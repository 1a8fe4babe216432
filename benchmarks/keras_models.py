"""Hand-written Keras models, for benchmarks/into.py: mirrors of PyTorch's, and backbones of keras-hub."""

from typing import Any

import keras
from keras import layers


def digits(last_first: bool = False) -> keras.Model:
    """Return sample_models/digits_focus.py, with independent branches in one order or the other."""

    def unit(x: Any, filters: int, kernel: int = 1, stride: int = 1) -> Any:
        if kernel > 1:
            x = layers.ZeroPadding2D(kernel // 2)(x)
        x = layers.Conv2D(filters, kernel, strides=stride, use_bias=False)(x)
        return layers.Activation("silu")(layers.BatchNormalization()(x))

    def csp(x: Any, filters: int, depth: int = 1) -> Any:
        past = unit(x, filters // 2) if last_first else None
        y = unit(x, filters // 2)
        for _ in range(depth):
            y = layers.Add()([y, unit(unit(y, filters // 2), filters // 2, 3)])
        past = unit(x, filters // 2) if past is None else past
        return unit(layers.Concatenate()([y, past]), filters)

    image = keras.Input((16, 16, 1))
    pixels = [image[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
    x = unit(layers.Concatenate()(pixels), 16, 3)
    x = csp(unit(x, 32, 3, 2), 32)
    x = layers.SeparableConv2D(48, 3, strides=2, use_bias=False)(layers.ZeroPadding2D(1)(x))
    x = csp(layers.Activation("silu")(layers.BatchNormalization()(x)), 48, depth=2)
    levels = [unit(x, 24)]
    for _ in range(3):
        levels.append(layers.MaxPooling2D(5, strides=1, padding="same")(levels[-1]))
    x = layers.GlobalAveragePooling2D()(unit(layers.Concatenate()(levels), 64))
    return keras.Model(image, layers.Dense(10)(layers.Dropout(0.1)(x)))


def resnet50(side: int = 224) -> keras.Model:
    """Return ResNet-50 v1.5, with the stride in the 3x3 convolution and the shortcut before the other branch."""

    def unit(x: Any, filters: int, kernel: int = 1, stride: int = 1) -> Any:
        if kernel > 1:
            x = layers.ZeroPadding2D(kernel // 2)(x)
        x = layers.Conv2D(filters, kernel, strides=stride, use_bias=False)(x)
        return layers.BatchNormalization()(x)

    image = keras.Input((side, side, 3))
    x = layers.ReLU()(unit(image, 64, 7, 2))
    x = layers.MaxPooling2D(3, strides=2)(layers.ZeroPadding2D(1)(x))
    for stage, depth in enumerate((3, 4, 6, 3)):
        for block in range(depth):
            width, stride = 64 * 2**stage, 2 if stage and not block else 1
            shortcut = x if block else unit(x, 4 * width, 1, stride)
            y = layers.ReLU()(unit(layers.ReLU()(unit(x, width)), width, 3, stride))
            x = layers.ReLU()(layers.Add()([shortcut, unit(y, 4 * width)]))
    return keras.Model(image, layers.Dense(1000)(layers.GlobalAveragePooling2D()(x)))


def hub_resnet50(side: int = 224) -> keras.Model:
    """Return keras-hub's ResNet-50 backbone."""
    from keras_hub.models import ResNetBackbone

    return ResNetBackbone(
        [64], [7], [64, 128, 256, 512], [3, 4, 6, 3], [1, 2, 2, 2], "bottleneck_block", image_shape=(side, side, 3)
    )


def hub_vit(side: int = 224) -> keras.Model:
    """Return keras-hub's ViT backbone, as vit_tiny."""
    from keras_hub.models import ViTBackbone

    return ViTBackbone((side, side, 3), 16, 12, 3, 192, 768)
