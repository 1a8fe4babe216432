"""What a module is called with, where nobody says: by its configuration, its first convolution, or asked for."""

from types import SimpleNamespace

import pytest
import torch
from equivalence import Call
from torch import nn

from converter.capture.example_inputs import bind_shapes
from converter.capture.input_shapes import parse_image_size, parse_input_shape
from converter.capture.run_forward import run_forward
from converter.errors import UsageError
from converter.options import LoadOptions
from converter.pipeline.clock import Clock
from converter.pipeline.load_model import load_model


def opened(module, *shapes, image_size=None):
    return load_model(module, LoadOptions.of(input_shapes=shapes, image_size=image_size), clock=Clock(None))


def configured(module, **attributes):
    for name, value in attributes.items():
        setattr(module, name, value)
    return module.eval()


class Vision(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 3)

    def forward(self, pixel_values, bool_mask=None):
        return self.conv(pixel_values)


class Language(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(11, 4)

    def forward(self, input_ids=None, attention_mask=None):
        return self.table(input_ids)


def config(**values):
    return SimpleNamespace(**values)


def focus(self, x):
    return self.conv(torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1))


CONV = nn.Conv2d(5, 2, 3)
SHAPES = {
    "timm's default_cfg": (configured(nn.Conv2d(3, 2, 3), default_cfg={"input_size": (3, 12, 10)}), None, (3, 12, 10)),
    "timm's pretrained_cfg, another size": (
        configured(nn.Conv2d(3, 2, 3), pretrained_cfg={"input_size": (3, 12, 10)}), "9", (3, 9, 9),
    ),
    "an image model of transformers": (
        configured(Vision(), config=config(model_type="vit", image_size=14, num_channels=3)), None, (3, 14, 14),
    ),
    "of two sides": (
        configured(Vision(), config=config(model_type="vit", image_size=[14, 9], num_channels=3)), None, (3, 14, 9),
    ),
    "tokens of transformers": (
        configured(Language(), config=config(model_type="bert", vocab_size=11, max_position_embeddings=40)),
        None, (40,),
    ),
    "the first convolution": (configured(nn.Sequential(CONV, nn.ReLU())), "9,8", (5, 9, 8)),
    "the first convolution, behind a Focus": (Call(focus, conv=nn.Conv2d(12, 2, 3)).eval(), "16,12", (3, 16, 12)),
}  # fmt: skip


@pytest.mark.parametrize("module, image_size, shape", SHAPES.values(), ids=SHAPES)
def test_shapes_that_the_module_tells(module, image_size, shape):
    source = opened(module, image_size=image_size)
    (example,) = source.examples
    assert tuple(example.shape[1:]) == shape
    assert any(note.code in ("PTC2506", "PTC2507") for note in source.notes), source.notes


@pytest.mark.slow
def test_image_sizes_may_be_free():
    source = opened(configured(nn.Conv2d(4, 2, 3)), image_size="H,2*W")
    assert [str(size) for size in source.calling.shapes[0].shape] == ["1", "4", "H", "2*W"]


ASKED = {
    "images": (nn.Conv2d(5, 2, 3), "--input-shape 1,5,224,224"),
    "sounds": (nn.Conv1d(2, 2, 3), "--input-shape 1,2,16000"),
    "numbers": (nn.Linear(7, 2), "--input-shape 1,7 "),
    "tokens": (nn.Embedding(7, 2), "--input-shape 1,128:int64"),
    "two inputs": (nn.Bilinear(3, 4, 2), "--input-shape input1=1,3,224,224 --input-shape input2="),
    "an encoder and a decoder": (
        configured(Language(), config=config(model_type="t5", is_encoder_decoder=True, vocab_size=9)), "1,128:int64",
    ),
}  # fmt: skip


@pytest.mark.parametrize("module, example", ASKED.values(), ids=ASKED)
def test_shapes_that_nobody_tells_are_asked_for_with_an_example(module, example):
    with pytest.raises(UsageError, match="input shape is unknown") as asked:
        opened(module.eval())
    assert example in asked.value.fix


@pytest.mark.parametrize("text", ["0x3", "1,2,3", "", "H W", "3,", "-1"])
def test_what_is_no_image_size(text):
    with pytest.raises(UsageError, match="image size"):
        parse_image_size(text)


# -- inputs by name


class Keywords(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(9, 4)

    def forward(self, ids, types=None, *, mask, scale=None):
        x = self.table(ids) * mask[..., None]
        x = x if types is None else x + types[..., None]
        return x if scale is None else x * scale


def test_keyword_only_inputs_and_gaps():
    source = opened(Keywords().eval(), "scale=1,1,1", "mask=1,T:bool", "ids=1,T:int64")
    assert source.program.inputs == ["ids", "mask", "scale"]
    assert [x.dtype for x in source.examples] == [torch.int64, torch.bool, torch.float32]
    ids, mask, scale = torch.randint(0, 9, (2, 7)), torch.rand(2, 7) < 0.5, torch.rand(2, 1, 1)
    wanted = source.module.table(ids) * mask[..., None] * scale
    torch.testing.assert_close(source.program.run(ids, mask, scale)[0], wanted.detach())


def test_names_in_any_order_are_those_of_forward():
    calling = bind_shapes(Keywords(), [parse_input_shape("mask=1,3:bool"), parse_input_shape("ids=1,3:int64")])
    assert calling.names == ("ids", "mask")
    module = Keywords()
    calling.bind(module)
    run_forward(module, calling.examples(None, 0))


UNBOUND = {
    "a name that forward lacks": (["ids=1,3:int64", "mask=1,3:bool", "weight=1,3"], "weight"),
    "none for a parameter without a default": (["ids=1,3:int64"], "nothing for mask"),
    "a name twice": (["ids=1,3:int64", "ids=1,3:int64", "mask=1,3"], "two have the same one"),
    "some without a name": (["1,3:int64", "mask=1,3"], "Some input shapes have a name"),
}


@pytest.mark.parametrize("shapes, said", UNBOUND.values(), ids=UNBOUND)
def test_shapes_that_do_not_fit_forward(shapes, said):
    with pytest.raises(UsageError, match=said):
        bind_shapes(Keywords(), [parse_input_shape(text) for text in shapes])
